"""Structure-from-motion and visual localization with the EDM dense matcher."""

from edm_hloc.base.version import __version__ as __version__


def register() -> None:
    """Makes EDM and EfficientLoFTR matchers of hloc, see `edm_hloc.interop.hloc_plugin`.

    Raises:
        EdmHlocError: hloc is not installed, too old, or cannot be imported.
    """
    from edm_hloc.interop import hloc_plugin

    hloc_plugin.register()
