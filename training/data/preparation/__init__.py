"""What is done to pixels between a file and an item of the training size."""
