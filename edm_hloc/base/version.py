"""The version of this package, which is part of what is written beside every result."""

__version__ = "0.3.0"
