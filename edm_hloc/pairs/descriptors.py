"""H5 files of global descriptors, one vector an image, in hloc's format.

The group is the image's name, its data set `global_descriptor` (D,); hloc's own files hold float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import H5Reader, H5Writer, check_name, reading
from edm_hloc.base.log import warn_once
from edm_hloc.images.roots import ImageRoot
from edm_hloc.pairs.names import find_under_other_names


@dataclass(frozen=True)
class RetrievalImages:
    """Images for which similar ones are retrieved, and those that are searched.

    Attributes:
        root: folder or folders of them.
        queries: names, relative to `root`.
        database: names of the images searched; may be the same as `queries`.
    """

    root: ImageRoot
    queries: Sequence[str]
    database: Sequence[str]

    @property
    def names(self) -> list[str]:
        """All images, the database first, each once."""
        return list(dict.fromkeys([*self.database, *self.queries]))


class DescriptorReader(H5Reader):
    """Reads a file of global descriptors, ours or hloc's.

    Raises:
        EdmHlocError: the file is missing or damaged.
    """

    def names(self) -> list[str]:
        """Names of all images in the file, sorted."""
        return self._groups_with("global_descriptor")

    def find(self, queries: Sequence[str], database: Sequence[str]) -> dict[str, str]:
        """The names in the file by image at hand (see `names.find_under_other_names`).

        A warning tells that they differ.
        """
        found = find_under_other_names(self.names(), queries, database)
        others = {name: written for name, written in found.items() if name != written}
        if others:
            name, written = next(iter(others.items()))
            warn_once(
                f"{self.path}: {len(others)} names are not written as those of the images; "
                f"{written!r} was taken for {name!r}, and so on."
            )
        return found

    def read(self, names: Sequence[str]) -> np.ndarray:
        """Some descriptors by the names in the file, (len(names), D) float32.

        Raises:
            EdmHlocError: an image has none, or their lengths differ.
        """
        rows = []
        for name in names:
            with reading(self.path):
                item = self._h5.get(f"{name}/global_descriptor")
                row = None if item is None else np.asarray(item, np.float32).ravel()
            if row is None:
                raise EdmHlocError(
                    f"{self.path} has no descriptor of {name!r}: make it with all images, or give "
                    "another file."
                )
            rows.append(row)
        if len({len(row) for row in rows}) > 1:
            raise EdmHlocError(f"The descriptors in {self.path} differ in length.")
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


class DescriptorWriter(H5Writer):
    """Writes a file of global descriptors, which appears whole when its ``with`` block ends."""

    def add(self, name: str, descriptor: np.ndarray) -> None:
        """Adds one image.

        Args:
            name: of the image, relative to the image folder.
            descriptor: (D,), stored as float32.

        Raises:
            EdmHlocError: the name cannot be stored or is there already, or the disk is full.
        """
        check_name(name)
        group = self._create_group(name)
        group.create_dataset("global_descriptor", data=np.asarray(descriptor, np.float32))
        self._file.check()
