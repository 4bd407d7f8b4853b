"""The errors a user can act on; the command line prints their message without a traceback."""


class EdmHlocError(Exception):
    """Something the user can put right; the message names the file and the remedy."""


class ImageError(EdmHlocError):
    """A photo that cannot be decoded; a run reports it and goes on without it."""
