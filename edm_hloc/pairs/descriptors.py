"""H5 files of global descriptors, one vector an image, in hloc's format.

The group is the image's name, its data set `global_descriptor` (D,); hloc's own files hold float16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import H5Reader, H5Writer, Provenance, check_name, reading
from edm_hloc.base.journal import Journal, journal_path
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
        """Names of all images in the file, sorted. Raises EdmHlocError if there are none."""
        names = self._groups_with("global_descriptor")
        if not names:
            raise EdmHlocError(
                f"{self.path} holds no global descriptors: give a file that has a dataset "
                "global_descriptor for each image, as hloc's have (NetVLAD and the like)."
            )
        return names

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


@contextlib.contextmanager
def new_descriptors(
    out: Path, names: Sequence[str], provenance: Provenance, made_from: str
) -> Iterator[Journal]:
    """A journal for the float32 descriptors of images by name, which becomes an H5 file at the end.

    Args:
        out: the H5 file, written when the ``with`` block ends well.
        names: of the images, in the order of the file; those that have no descriptor are left out.
        provenance: stored in the file.
        made_from: fingerprint of everything that the descriptors depend on: what is in the journal
            when the process is killed is there again next time. Empty: nothing is kept.

    Raises:
        EdmHlocError: a file cannot be written.
    """
    if made_from:
        journal = Journal(journal_path(out), made_from)
    else:
        journal = Journal(None, folder=out.parent)
    with journal:
        yield journal
        with DescriptorWriter(out, provenance) as writer:
            for name in names:
                if name in journal:
                    writer.add(name, journal.array(name, np.float32))
    journal.remove()
