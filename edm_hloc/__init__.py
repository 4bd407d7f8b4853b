"""Structure-from-motion and visual localization with the EDM dense matcher."""

__version__ = "0.1.0"


def register() -> None:
    """Makes EDM and EfficientLoFTR matchers of hloc, see `edm_hloc.interop.hloc_plugin`.

    Raises:
        EdmHlocError: hloc is not installed, too old, or cannot be imported.
    """
    from edm_hloc.interop import hloc_plugin

    hloc_plugin.register()
