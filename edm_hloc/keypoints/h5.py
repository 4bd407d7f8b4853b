"""Reads and writes hloc's H5 files of keypoints ("features") and of match indices.

* *Features*: group = image name relative to the image root, with the datasets ``keypoints`` (N, 2)
  and ``scores`` (N,), both float32; ``keypoints`` has the attribute ``uncertainty`` where that is
  known. Keypoints are (x, y) in pixels of the original image, with the centre of the top-left pixel
  at (0, 0).
* *Matches*: group ``a/b`` of a pair (see `base.h5.pair_key`) with the datasets ``matches0`` (N0,)
  int32, for each keypoint of image 0 its match in image 1 or −1, and ``matching_scores0`` (N0,)
  float16.

Files written here also have the attribute ``provenance``, a JSON object of the settings they were
made with. They are written under a temporary name, synced and renamed, so that a file with its
final name is complete.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import (
    H5Reader,
    H5Writer,
    Provenance,
    check_collision,
    check_name,
    check_shape,
    pair_key,
    reading,
)


class FeatureReader(H5Reader):
    """Reads a feature file of edm_hloc or hloc. Raises EdmHlocError if it is missing or damaged."""

    def names(self) -> list[str]:
        """The names of all images in the file, sorted."""
        return self._groups_with("keypoints")

    def __contains__(self, name: str) -> bool:
        return isinstance(self._h5.get(f"{name}/keypoints"), h5py.Dataset)

    def keypoints(self, name: str) -> np.ndarray:
        """(N, 2), (x, y) in pixels of the original image, in the float type of the file.

        Raises:
            EdmHlocError: the image is not in the file, or the file is damaged.
        """
        with reading(self.path):
            found = np.asarray(self._group(name)["keypoints"])
        return found if found.size else found.reshape(0, 2)  # hloc writes none as (0,)

    def scores(self, name: str) -> np.ndarray | None:
        """(N,) scores of the keypoints, or None if the file has none.

        hloc writes them as ``score``, which is read where there is no ``scores``.
        """
        group = self._group(name)
        with reading(self.path):
            for key in ("scores", "score"):
                if isinstance(group.get(key), h5py.Dataset):
                    return np.asarray(group[key])
        return None

    def uncertainty(self, name: str) -> float | None:
        """Standard deviation of the keypoints in pixels, or None if the file has none."""
        with reading(self.path):
            value = self._group(name)["keypoints"].attrs.get("uncertainty")
        return None if value is None else float(value)

    def _group(self, name: str) -> h5py.Group:
        if name not in self:
            raise EdmHlocError(f"No keypoints of image {name!r} in {self.path}.")
        return self._h5[name]


class MatchReader(H5Reader):
    """Reads a match file of edm_hloc or hloc. Raises EdmHlocError if it is missing or damaged."""

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return self._find(*pair) is not None

    def matches(self, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
        """The matches of a pair, which may be stored in either order.

        Returns:
            (K, 2) int64, indices of keypoints of image `name0` and image `name1`; and their scores
            (K,) float32.

        Raises:
            EdmHlocError: the pair is not in the file, or the file is damaged.
        """
        indices, key, index0 = self._indices(name0, name1)
        with reading(self.path):
            return indices, self._array(f"{key}/matching_scores0")[index0].astype(np.float32)

    def indices(self, name0: str, name1: str) -> np.ndarray:
        """The first of what `matches` gives."""
        return self._indices(name0, name1)[0]

    def _indices(self, name0: str, name1: str) -> tuple[np.ndarray, str, np.ndarray]:
        """Indices of a pair's matches, its group, and those indices that are of the group's order.

        Raises:
            EdmHlocError: see `matches`.
        """
        found = self._find(name0, name1)
        if found is None:
            raise EdmHlocError(
                f"No matches of the pair {name0!r}, {name1!r} in {self.path}: "
                "was it made with another list of pairs?"
            )
        key, reverse = found
        with reading(self.path):
            matches0 = self._array(f"{key}/matches0")
            index0 = np.flatnonzero(matches0 != -1)
            matches = np.stack([index0, matches0[index0].astype(np.int64)], axis=1)
        return np.ascontiguousarray(matches[:, ::-1] if reverse else matches), key, index0

    def _array(self, name: str) -> np.ndarray:
        """A dataset, in a quarter of the time of h5py's own `Dataset`."""
        stored = h5py.h5d.open(self._h5.id, name.encode())
        array = np.empty(stored.shape, stored.dtype)
        stored.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
        return array

    def _find(self, name0: str, name1: str) -> tuple[str, bool] | None:
        """The pair's group, and whether it holds the pair in reverse order.

        Groups are named "a/b", or "a_b" in older files of hloc.
        """
        new, new_reverse = pair_key(name0, name1), pair_key(name1, name0)
        old, old_reverse = (
            "_".join(name.replace("/", "-") for name in names)
            for names in ((name0, name1), (name1, name0))
        )
        for key, reverse in (
            (new, False),
            (new_reverse, True),
            (old, False),
            (old_reverse, True),
        ):
            if f"{key}/matches0" in self._h5:
                return key, reverse
        return None


class FeatureWriter(H5Writer):
    """Writes a feature file that hloc reads; use it in a ``with`` block."""

    def add(
        self,
        name: str,
        keypoints: np.ndarray,
        scores: np.ndarray,
        uncertainty: float | None = None,
    ) -> None:
        """Adds one image.

        Args:
            name: path of the image relative to the image root, with "/".
            keypoints: (N, 2), (x, y) in pixels of the original image.
            scores: (N,) float.
            uncertainty: standard deviation of the keypoints in pixels; None if it is not known.

        Raises:
            EdmHlocError: the disk is full, the image was added before, or its name cannot be
                stored.
            ValueError: a shape is wrong.
        """
        check_name(name)
        check_shape("scores", scores, (len(keypoints),))
        check_shape("keypoints", keypoints, (len(keypoints), 2))
        group = self._create_group(name)
        dataset = group.create_dataset("keypoints", data=np.asarray(keypoints, np.float32))
        group.create_dataset("scores", data=np.asarray(scores, np.float32))
        if uncertainty is not None:
            dataset.attrs["uncertainty"] = float(uncertainty)
        self._file.check()


class MatchWriter(H5Writer):
    """Writes a match file that hloc reads; use it in a ``with`` block."""

    def __init__(self, path: Path, provenance: Provenance) -> None:
        super().__init__(path, provenance)
        self._names: dict[str, tuple[str, str]] = {}

    def add(self, name0: str, name1: str, matches0: np.ndarray, scores0: np.ndarray) -> None:
        """Adds one pair.

        Args:
            name0, name1: paths of the images relative to the image root, with "/".
            matches0: (N0,) int, for each keypoint of image 0 its match in image 1, −1 for none.
            scores0: (N0,) float, 0 where there is no match.

        Raises:
            EdmHlocError: the disk is full, the pair was added before, another pair has the same
                key, or a name cannot be stored.
            ValueError: the arrays differ in length.
        """
        check_name(name0)
        check_name(name1)
        check_shape("scores0", scores0, (len(matches0),))
        key = pair_key(name0, name1)
        check_collision(self._names.setdefault(key, (name0, name1)), (name0, name1))
        group = self._create_group(key)
        group.create_dataset("matches0", data=np.asarray(matches0, np.int32))
        group.create_dataset("matching_scores0", data=np.asarray(scores0, np.float16))
        self._file.check()
