"""Trains the generators that ``export`` builds."""


class CheckpointError(Exception):
    """A checkpoint that is missing, incomplete or of another format; the message names the file."""
