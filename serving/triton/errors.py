"""What goes wrong with the server as a whole."""


class ServerError(RuntimeError):
    """The server cannot be started, or did not come up; the message is meant for the person who asked for it."""
