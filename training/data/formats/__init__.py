"""One file as it is stored: one module for every format that is read."""
