"""Structure-from-motion and visual localization with the EDM dense matcher.

    import edm_hloc

    edm_hloc.match("a.jpg", "b.jpg").draw()
    edm_hloc.reconstruct("photos", "out")
    edm_hloc.localize("out/model", "photos", "new", "poses")

Errors that the user can correct are `edm_hloc.EdmHlocError`. What is used is imported when it is
used: `import edm_hloc` alone loads neither torch nor pycolmap.
"""

from __future__ import annotations

import zlib  # noqa: F401 (before pycolmap, whose own zlib would take the place of Python's and crash)
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.version import __version__

if TYPE_CHECKING:
    from edm_hloc.api import (
        Localization,
        PhotoMatches,
        Reconstruction,
        load_matcher,
        localize,
        match,
        reconstruct,
    )
    from edm_hloc.pairs.selection import PairSelection
    from edm_hloc.pipelines.localize import LocalizationConfig
    from edm_hloc.pipelines.reconstruct import ReconstructionConfig

__all__ = [
    "EdmHlocError",
    "Localization",
    "LocalizationConfig",
    "PairSelection",
    "PhotoMatches",
    "Reconstruction",
    "ReconstructionConfig",
    "__version__",
    "load_matcher",
    "localize",
    "match",
    "reconstruct",
    "register",
]


def register() -> None:
    """Makes EDM and EfficientLoFTR matchers of hloc, see `edm_hloc.interop.hloc_plugin`.

    Raises:
        EdmHlocError: hloc is not installed, too old, or cannot be imported.
    """
    from edm_hloc.interop import hloc_plugin

    hloc_plugin.register()


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("edm_hloc.api"), name)
    raise AttributeError(f"module 'edm_hloc' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
