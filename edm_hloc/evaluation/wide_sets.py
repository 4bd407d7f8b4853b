"""Pairs of photos with a homography or with correspondences, in the layouts of HPatches, EVD, WxBS.

HPatches   i_NAME/, v_NAME/: 1.ppm … 6.ppm, and H_1_2 … H_1_6 from photo 1 to the others
EVD        1/NAME.png, 2/NAME.png, h/NAME.txt from the first photo to the second
WxBS v1.1  CATEGORY/NAME/: 01.png, 02.png, and corrs.txt with lines of x1 y1 x2 y2
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.text import read_lines
from edm_hloc.images.decode import photo_size

logger = logging.getLogger(__name__)

LEFT_OUT = frozenset(
    {
        "i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding",
        "v_artisans", "v_astronautis", "v_talent",
    }
)  # fmt: skip
"""The sequences of HPatches that were too large for D2-Net; they are left out since then."""

WXBS_VALIDATION = frozenset({"kyiv_dolltheater2", "petrzin"})
"""The pairs of WxBS for validation, which are left out."""

_SEQUENCES = 116 - len(LEFT_OUT)
_SUFFIXES = (".ppm", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class WidePair:
    """Two photos and what is known of them.

    Attributes:
        name0, name1: paths of the photos, relative to the folder of the set.
        size0, size1: (width, height) of the photos.
        group: of which there is a summary of its own.
        truth: the homography (3, 3) from photo 0 to photo 1, or (N, 4) correspondences: x and y in
            photo 0, then in photo 1. Both in pixels, the centre of the top-left one at (0, 0).
    """

    name0: str
    name1: str
    size0: tuple[int, int]
    size1: tuple[int, int]
    group: str
    truth: np.ndarray


@dataclass(frozen=True)
class WideSet:
    """The pairs of a set.

    Attributes:
        kind: "HPatches", "EVD" or "WxBS".
        root: folder that the pairs' names are relative to.
        pairs: all of them.
    """

    kind: str
    root: Path
    pairs: tuple[WidePair, ...]


def read_wide_set(folder: Path) -> WideSet:
    """Reads a set; its layout is recognised by the names of its folders.

    All files are looked for, and the sizes of the photos read, so that nothing is found missing
    later.

    Raises:
        EdmHlocError: the folder has none of the layouts, or a file is missing or malformed.
        ImageError: a photo cannot be read.
    """
    if not folder.is_dir():
        raise EdmHlocError(f"There is no folder {folder}.")
    for root in (folder, folder / "hpatches-sequences-release"):
        if sequences := [s for kind in ("i_*", "v_*") for s in sorted(root.glob(kind))]:
            return _hpatches(root, [s for s in sequences if s.is_dir()])
    for root in (folder, folder / "EVD"):
        if all((root / name).is_dir() for name in ("1", "2", "h")):
            return _evd(root)
    for root in (folder, folder / "v1.1", folder / "WxBS_v1.1"):
        if files := sorted(root.glob("*/*/corrs.txt")):
            return _wxbs(root, files)
    raise EdmHlocError(
        f"{folder} has neither HPatches' folders (i_… and v_…, each with 1.ppm and H_1_2) nor "
        "EVD's (1, 2 and h) nor those of WxBS (CATEGORY/PAIR/corrs.txt): give the folder that "
        "holds them, unpacked."
    )


def _hpatches(root: Path, sequences: Sequence[Path]) -> WideSet:
    chosen = [sequence for sequence in sequences if sequence.name not in LEFT_OUT]
    if not chosen:
        raise EdmHlocError(f"{root} has none of the {_SEQUENCES} sequences that are evaluated.")
    if len(chosen) != _SEQUENCES:
        logger.warning(
            "%s holds %d of the %d sequences of which figures are published.",
            root,
            len(chosen),
            _SEQUENCES,
        )
    pairs = []
    for sequence in chosen:
        group = "illumination" if sequence.name.startswith("i_") else "viewpoint"
        photos = [_photo(sequence / str(number)) for number in range(1, 7)]
        sizes = [photo_size(photo) for photo in photos]
        for number, (photo, size) in enumerate(zip(photos, sizes, strict=True), start=1):
            if number > 1:
                H = _homography(sequence / f"H_1_{number}")
                first, second = _names(root, photos[0], photo)
                pairs.append(WidePair(first, second, sizes[0], size, group, H))
    return WideSet("HPatches", root, tuple(pairs))


def _evd(root: Path) -> WideSet:
    names = sorted(path for path in (root / "1").glob("[!.]*") if path.suffix.lower() in _SUFFIXES)
    if not names:
        raise EdmHlocError(f"{root / '1'} holds no photos (*.png).")
    pairs = []
    for first in names:
        second = _photo(root / "2" / first.stem)
        H = _homography(root / "h" / f"{first.stem}.txt")
        name0, name1 = _names(root, first, second)
        pairs.append(WidePair(name0, name1, photo_size(first), photo_size(second), "", H))
    return WideSet("EVD", root, tuple(pairs))


def _wxbs(root: Path, files: Sequence[Path]) -> WideSet:
    pairs = []
    for file in files:
        if file.parent.name in WXBS_VALIDATION:
            continue
        first, second = (_photo(file.parent / name) for name in ("01", "02"))
        name0, name1 = _names(root, first, second)
        known = _numbers(file, "list of correspondences", 4)
        group = file.parent.parent.name
        pairs.append(WidePair(name0, name1, photo_size(first), photo_size(second), group, known))
    if not pairs:
        raise EdmHlocError(f"{root} holds only the pairs for validation of WxBS.")
    return WideSet("WxBS", root, tuple(pairs))


def _names(root: Path, first: Path, second: Path) -> tuple[str, str]:
    return first.relative_to(root).as_posix(), second.relative_to(root).as_posix()


def _photo(path: Path) -> Path:
    """A photo by its path without the suffix."""
    for suffix in _SUFFIXES:
        if (found := path.with_name(path.name + suffix)).is_file():
            return found
    raise EdmHlocError(
        f"The photo {path}.ppm (or .png, .jpg) is missing: unpack the data set again."
    )


def _homography(path: Path) -> np.ndarray:
    if not path.is_file():
        raise EdmHlocError(f"The homography {path} is missing: unpack the data set again.")
    H = _numbers(path, "homography", 3)
    if H.shape != (3, 3) or abs(np.linalg.det(H)) < 1e-12:
        raise EdmHlocError(f"The homography {path} is not an invertible matrix of 3 × 3 numbers.")
    return H


def _numbers(path: Path, what: str, columns: int) -> np.ndarray:
    try:
        rows = [[float(word) for word in line.split()] for _, line in read_lines(path, what)]
        numbers = np.array(rows, float).reshape(len(rows), columns)
    except ValueError:
        raise EdmHlocError(f"The {what} {path} must have lines of {columns} numbers.") from None
    if not len(numbers) or not np.isfinite(numbers).all():
        raise EdmHlocError(f"The {what} {path} must hold finite numbers.")
    return numbers
