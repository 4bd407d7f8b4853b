"""Structure-from-motion and visual localization with the EDM dense matcher."""

__version__ = "0.1.0"
