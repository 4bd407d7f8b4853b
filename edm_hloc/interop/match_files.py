"""Matched points of one pair of photos as other matchers' programs and people's scripts save them.

A file holds the matches of one pair, in any of these forms:

* ``.npz``, or a dictionary in ``.pt``, ``.pth``, ``.torch`` (vismatch) or ``.pkl``
  (image-matching-webui): two arrays (N, 2) of points (x, y) under one of the names `_POINTS`, and
  where there are scores (N,) of [0, 1] under one of `_SCORES`. Or the keypoints of both photos and
  for each of the first photo the index of its match, −1 for none, under ``matches`` or ``matches0``
  (SuperGlue, LightGlue), or the indices of both as ``matches`` (M, 2) (LightGlue). Where the points
  are of resized copies, ``size0`` and ``size1`` say their (width, height). ``image0`` and
  ``image1`` may name the photos;
* ``.npy``, ``.txt`` or ``.csv``: rows ``x0 y0 x1 y1`` or ``x0 y0 x1 y1 score``;
* ``.h5``: one pair a group with the arrays of an ``.npz``, or one a dataset of such rows.

Nothing in a file is run: of pickled objects only arrays, numbers, texts and paths are read.
"""

from __future__ import annotations

import contextlib
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import h5py
import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import DamagedH5Error, open_h5, reading
from edm_hloc.base.pickles import DataUnpickler, safe_globals
from edm_hloc.base.text import read_lines
from edm_hloc.images.find import files_below

_POINTS = (
    ("keypoints0", "keypoints1"),
    ("mkpts0", "mkpts1"),
    ("matched_kpts0", "matched_kpts1"),
    ("mkeypoints0_orig", "mkeypoints1_orig"),
    ("mkpts0_f", "mkpts1_f"),
    ("kpts0", "kpts1"),
    ("points0", "points1"),
)
_ROWS = ("matches", "correspondences", "matched_points")  # (N, 4) or (N, 5)
_INDICES = (("matches0", "matching_scores0"), ("matches", "match_confidence"))
_SCORES = ("scores", "matched_confidences", "mconf", "confidence", "conf", "certainty", "score")
_IMAGES = (("image0", "image1"), ("img0_path", "img1_path"), ("name0", "name1"))
_TORCH, _PICKLE, _TEXT = (".pt", ".pth", ".torch"), (".pkl", ".pickle"), (".txt", ".csv")
H5_SUFFIXES = (".h5", ".hdf5")
SUFFIXES = (".npz", ".npy", *_TORCH, *_PICKLE, *_TEXT, *H5_SUFFIXES)
_COLUMNS = "rows of x0 y0 x1 y1, or with a score behind them"


@dataclass(frozen=True)
class GivenPoints:
    """The matches of a pair as a file has them.

    Attributes:
        points0, points1: (N, 2) float64, in the file's own pixel frame.
        scores: (N,) float64, 1 where the file has none.
        images: what the file calls the two photos; None where it does not.
        sizes: (width, height) of the two images that the points are of; None: the photos as
            they are.
    """

    points0: np.ndarray
    points1: np.ndarray
    scores: np.ndarray
    images: tuple[str, str] | None = None
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None


@dataclass(frozen=True)
class PairSource:
    """Where the matches of one pair stand.

    Attributes:
        path: of the file.
        key: of the group or dataset in an H5 file; empty in others.
    """

    path: Path
    key: str = ""

    def __str__(self) -> str:
        return f"{self.path}, {self.key}" if self.key else str(self.path)

    @property
    def label(self) -> str:
        """What may name the two photos: the file's name without its suffix, or the key."""
        return self.key or self.path.stem

    def read(self) -> GivenPoints:
        """The matches, without those that are not finite.

        Raises:
            EdmHlocError: the file is damaged, or holds something else.
        """
        suffix = self.path.suffix.lower()
        with _telling(self):
            if suffix in _TEXT:
                given = _of_rows(self, _table(self.path))
            elif suffix in H5_SUFFIXES:
                given = self._of_h5()
            else:
                content = _unpacked(self.path)
                is_array = isinstance(content, np.ndarray)
                given = _of_rows(self, content) if is_array else _of_arrays(self, content)
            return _checked(self, given)

    def _of_h5(self) -> GivenPoints:
        with open_h5(self.path) as h5, reading(self.path):
            item = h5[self.key]
            if isinstance(item, h5py.Dataset):
                return _of_rows(self, np.asarray(item))
            arrays = {name: np.asarray(d) for name, d in item.items() if hasattr(d, "shape")}
            return _of_arrays(self, {**dict(item.attrs), **arrays})


def sources_in(path: Path, leave_out: Sequence[Path] = ()) -> list[PairSource]:
    """All pairs of a folder of files, one pair each, or of one file; H5 files may hold many.

    Args:
        path: the folder or file.
        leave_out: folders in it that are not searched, as hidden files and the output folders of
            this program's runs are not.

    Raises:
        EdmHlocError: there is no such path, an H5 file is damaged, or no file is of a known kind.
    """
    if path.is_dir():
        below = (path / name for name in files_below(path, leave_out))
        files = sorted(file for file in below if file.suffix.lower() in SUFFIXES)
    elif path.is_file():
        files = [path] if path.suffix.lower() in SUFFIXES else []
    else:
        raise EdmHlocError(f"No matches at {path}: give a folder with a file for each pair.")
    sources = []
    for file in files:
        is_h5 = file.suffix.lower() in H5_SUFFIXES
        sources += [PairSource(file, key) for key in _keys(file)] if is_h5 else [PairSource(file)]
    if not sources:
        raise EdmHlocError(
            f"{path} holds no matches: files of one pair each are read ({', '.join(SUFFIXES)}), "
            "and H5 files of many."
        )
    return sources


def _keys(path: Path) -> list[str]:
    """The groups and datasets of an H5 file that hold a pair each."""
    found: list[str] = []
    indices: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Group):
            names = [pair for pair in _POINTS if all(part in item for part in pair)]
            rows = [item[row] for row in _ROWS if row in item]
            if names or any(isinstance(row, h5py.Dataset) and row.ndim == 2 for row in rows):
                found.append(name)
            elif "matches0" in item:
                indices.append(name)
        elif item.ndim == 2 and item.shape[1] in (4, 5):
            found.append(name)

    try:
        with open_h5(path) as h5, reading(path):
            h5.visititems(visit)
    except DamagedH5Error as error:
        raise EdmHlocError(f"{path} is damaged or no H5 file: write it again.") from error
    if not found and indices:
        raise EdmHlocError(
            f"{path} holds indices of keypoints, as hloc's files of matches do, and no points: the "
            "keypoints of both photos belong into each group, as keypoints0 and keypoints1."
        )
    groups = set(found)
    return [name for name in found if name.rpartition("/")[0] not in groups]


# --------------------------------------------------------------------------- files to arrays


@contextlib.contextmanager
def _telling(source: PairSource) -> Iterator[None]:
    """Turns what NumPy, torch and pickle raise on what a file holds into an EdmHlocError."""
    try:
        yield
    except EdmHlocError:
        raise
    except Exception as error:  # of any kind, on bytes of any kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        if "allow_pickle" in reason:
            reason = "it is no file of NumPy's, or one of Python objects"
        elif isinstance(error, pickle.UnpicklingError) and not reason.endswith("is not data"):
            reason = "it is damaged"
        raise EdmHlocError(
            f"{source} holds no matches that can be read ({reason}): write them again, or take it "
            "out of the folder."
        ) from error


def _unpacked(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix in _TORCH:
        return _of_torch(path)
    if suffix in _PICKLE:
        with path.open("rb") as file:
            return DataUnpickler(file).load()
    loaded = np.load(path, allow_pickle=False)
    return loaded if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}


def _of_torch(path: Path) -> Any:
    """What torch.save has written, new (a ZIP file) or old; nothing but data is taken of it."""
    import torch

    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            content = DataUnpickler(file).load()
        if not isinstance(content, int):  # by which torch's old files begin
            return content
    with torch.serialization.safe_globals(safe_globals()):
        return torch.load(path, map_location="cpu", weights_only=True)


def _table(path: Path) -> np.ndarray:
    """(N, columns) numbers of a text file, separated by white space, commas or semicolons."""
    rows = []
    for number, line in read_lines(path, "matches"):
        words = line.replace(",", " ").replace(";", " ").split()
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            if not rows and number <= 2:
                continue  # the names of the columns
            raise EdmHlocError(
                f"{path}, line {number}: expected {_COLUMNS}; found {line[:80]!r}."
            ) from None
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise EdmHlocError(f"{path}: lines of {sorted(widths)} numbers; expected {_COLUMNS}.")
    return np.array(rows, np.float64).reshape(len(rows), -1 if rows else 4)


# --------------------------------------------------------------------------- arrays to matches


def _array(value: Any) -> np.ndarray:
    """An array or tensor as NumPy's, without leading axes of length 1."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.double()  # NumPy has no bfloat16
    array = np.asarray(value)
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    return array


def _of_rows(source: PairSource, rows: np.ndarray) -> GivenPoints:
    rows = _array(rows)
    if not rows.size:
        return GivenPoints(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    if rows.ndim != 2 or rows.shape[1] not in (4, 5):
        raise EdmHlocError(f"{source}: an array of shape {rows.shape}; expected {_COLUMNS}.")
    scores = rows[:, 4] if rows.shape[1] == 5 else np.ones(len(rows))
    return GivenPoints(rows[:, :2], rows[:, 2:4], scores)


def _of_arrays(source: PairSource, content: Any) -> GivenPoints:
    if not isinstance(content, Mapping):
        raise EdmHlocError(
            f"{source} holds a {type(content).__name__}; expected a dictionary of arrays, such as "
            "keypoints0, keypoints1 and scores."
        )
    named = {str(name): value for name, value in content.items() if value is not None}
    given = _matched(source, named)
    sizes = _sizes(source, named)
    if sizes is not None and min(*sizes[0], *sizes[1]) < 1:
        raise EdmHlocError(f"{source}: no image is of size {sizes[0]} or {sizes[1]}, in pixels.")
    return GivenPoints(given.points0, given.points1, given.scores, _images(named), sizes)


def _images(named: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a file calls the two photos; None where it does not."""
    for both in _IMAGES:
        texts = [_text(named.get(name)) for name in both]
        if texts[0] and texts[1]:
            return texts[0], texts[1]
    return None


def _text(value: Any) -> str:
    """A text or path, which may be in an array of its own; empty for anything else."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value) if isinstance(value, (str, PurePath)) else ""


def _matched(source: PairSource, named: Mapping[str, Any]) -> GivenPoints:
    points = next(((a, b) for a, b in _POINTS if a in named and b in named), None)
    for name in _ROWS if points is None else ():
        if name in named and _array(named[name]).ndim == 2:
            return _of_rows(source, named[name])
    if points is None:
        raise EdmHlocError(
            f"{source} has no two arrays of points (keypoints0 and keypoints1, mkpts0 and mkpts1, "
            f"…), but {', '.join(sorted(named)[:8]) or 'nothing'}."
        )
    points0, points1 = (_array(named[name]) for name in points)
    for name, array in zip(points, (points0, points1), strict=True):
        if array.size and (array.ndim != 2 or array.shape[1] != 2):
            raise EdmHlocError(
                f"{source}: {name} is an array of shape {array.shape}; expected (N, 2), x and y."
            )
    scores = next((_array(named[n]) for n in _SCORES if n in named), None)
    given_scores = -1 if scores is None else scores.size
    for name, confidence in _INDICES:
        indices = _array(named[name]) if name in named else np.zeros(())
        whole = np.issubdtype(indices.dtype, np.integer) or not indices.size
        if name == "matches" and whole and indices.ndim == 2 and indices.shape[1] == 2:
            pairs = indices.astype(np.int64)  # LightGlue's, with a score for each
            fits = pairs.min(initial=0) >= 0
        elif indices.ndim == 1 or (whole and indices.ndim == 2 and len(indices) == 1):
            partner = indices.reshape(-1).astype(np.int64)
            every = confidence not in named or partner.min(initial=0) >= 0
            is_list = len(partner) == len(points0) and every
            if name == "matches0" and len(points0) == len(points1) == given_scores and not is_list:
                break  # hloc's of a dense matcher: indices of keypoints in another file
            # hloc's end with the last match, and an empty list of pairs has one axis
            ends_early = len(partner) < len(points0) and (name == "matches0" or not len(partner))
            fits = len(partner) == len(points0) or ends_early
            matched = np.flatnonzero(partner >= 0)
            pairs = np.column_stack([matched, partner[matched]])
            if confidence in named and fits:
                confidences = _array(named[confidence]).reshape(-1)
                fits = len(confidences) == len(partner)
                scores = confidences[matched] if fits else None
        else:
            continue
        if not fits or (pairs >= [len(points0), len(points1)]).any():
            raise EdmHlocError(f"{source}: {name} are of other keypoints than these.")
        points0, points1 = points0[pairs[:, 0]], points1[pairs[:, 1]]
        break
    scores = np.ones(len(points0)) if scores is None else scores.reshape(-1)
    return GivenPoints(points0.reshape(-1, 2), points1.reshape(-1, 2), scores)


def _sizes(
    source: PairSource, named: Mapping[str, Any]
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The sizes of the images that the points are of, where a file tells them."""
    if "size0" in named and "size1" in named:
        first, second = (_array(named[name]).reshape(-1).tolist() for name in ("size0", "size1"))
        if len(first) == len(second) == 2:
            return (int(first[0]), int(first[1])), (int(second[0]), int(second[1]))
    if "im_size" in named and "img0_path" in named:  # vismatch squeezes photos into squares
        sides = [int(side) for side in _array(named["im_size"]).reshape(-1).tolist()]
        if len(set(sides)) != 1:
            raise EdmHlocError(
                f"{source}: im_size is {sides}, no square: give the (width, height) of both images "
                "as size0 and size1."
            )
        side = sides[0]
        return (side, side), (side, side)
    shown: list[Any] = [named.get(name) for name in ("image0_orig", "image1_orig")]
    if all(hasattr(pixels, "shape") and len(pixels.shape) == 3 for pixels in shown):
        (h0, w0), (h1, w1) = (pixels.shape[:2] for pixels in shown)
        return (w0, h0), (w1, h1)
    return None


def _checked(source: PairSource, given: GivenPoints) -> GivenPoints:
    points0, points1, scores = given.points0, given.points1, given.scores
    if not len(points0) == len(points1) == len(scores):
        raise EdmHlocError(
            f"{source}: {len(points0)} points of the first photo, {len(points1)} of the second and "
            f"{len(scores)} scores; they must be as many, one row a match."
        )
    try:
        points0, points1, scores = (
            np.asarray(array, np.float64) for array in (points0, points1, scores)
        )
    except (TypeError, ValueError):
        raise EdmHlocError(f"{source}: points and scores must be numbers.") from None
    finite = np.isfinite(points0).all(1) & np.isfinite(points1).all(1) & np.isfinite(scores)
    return GivenPoints(points0[finite], points1[finite], scores[finite], given.images, given.sizes)
