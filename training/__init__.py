"""Trains the generators that ``export`` builds."""

from serving.namesakes import check_names

check_names()


class CheckpointError(Exception):
    """A checkpoint that is missing, incomplete or of another format; the message names the file."""
