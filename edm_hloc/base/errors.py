"""Errors that a user can act on; the command line prints their message without a traceback."""


class EdmHlocError(Exception):
    """An error that the user can correct; the message names the cause, the file and the remedy."""


class ImageError(EdmHlocError):
    """A photo that cannot be read; a run reports it and goes on without it."""
