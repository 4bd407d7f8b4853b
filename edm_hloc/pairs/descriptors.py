"""H5 files of global descriptors, as hloc writes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import H5Reader, H5Writer, check_name, reading


class DescriptorReader(H5Reader):
    """Reads global descriptors, ours or hloc's. Raises EdmHlocError if missing or damaged."""

    def names(self) -> list[str]:
        """The names of all images in the file, sorted."""
        return self._groups_with("global_descriptor")

    def read(self, names: Sequence[str]) -> np.ndarray:
        """(len(names), D) float32.

        Raises:
            EdmHlocError: an image is not there, or the lengths differ.
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
    """Writes global descriptors as hloc does; use it in a ``with`` block."""

    def add(self, name: str, descriptor: np.ndarray) -> None:
        """Adds one image. Raises EdmHlocError as `FeatureWriter.add`."""
        check_name(name)
        group = self._create_group(name)
        group.create_dataset("global_descriptor", data=np.asarray(descriptor, np.float32))
        self._file.check()
