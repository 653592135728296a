"""What the values of masks mean, and how much of a patient a picture of the heart shows."""

LESION = ("background", "lesion")
HEART = ("background", "LV", "MYO", "RV")
FIELD_OF_VIEW = 160.0  # mm of every slice of a heart, along rows and columns
