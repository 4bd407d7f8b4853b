"""The real hloc for tests, where it is installed, with a stand-in for torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What hloc uses of torchvision: bilinear, with antialiasing where an image gets smaller.

    Args:
        image: (C, H, W).
        size: height and width.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return torch.nn.functional.interpolate(
        image[None], tuple(size), mode="bilinear", antialias=True, align_corners=False
    )[0]


def import_match_dense() -> ModuleType:
    """`hloc.match_dense`; raises whatever keeps it from being imported.

    Where torchvision is not installed, the stand-in is there during the import only: other
    libraries ask whether torchvision is installed.
    """
    if importlib.util.find_spec("hloc") is None:
        raise ImportError("hloc is not installed")
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("hloc.match_dense")
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    modules = [ModuleType(name) for name in names]
    modules[0].transforms = modules[1]  # type: ignore[attr-defined]
    modules[1].functional = modules[2]  # type: ignore[attr-defined]
    modules[2].resize = resize  # type: ignore[attr-defined]
    sys.modules.update(zip(names, modules, strict=True))
    try:
        return importlib.import_module("hloc.match_dense")
    finally:
        for name in names:
            sys.modules.pop(name, None)
