"""What samples are worth: does the anatomy hold, and does the picture follow its mask."""
