"""Which files of a folder belong together: one module for every layout that is read."""
