"""What goes wrong with the server as a whole."""

DROPPED = "The server has ended and dropped"  # how a model's last words begin if it was not let finish


class ServerError(RuntimeError):
    """The server cannot be started, or did not come up; the message is meant for the person who asked for it."""
