"""The tables of PIG's and the cardiac paper, theirs and ours side by side."""
