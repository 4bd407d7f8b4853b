"""What the tests of raw matches and of H5 files share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from edm_hloc.base.matches import Matches
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair

PROVENANCE = {
    "weights": "f686be",
    "preset": "edm",
    "threshold": 0.05,
    "top_k": None,
    "border": True,
}

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and limits")


def raw(seed: int, count: int = 7) -> Matches:
    """Matches that differ from seed to seed."""
    random = np.random.default_rng(seed)
    return Matches(
        random.random((count, 2), np.float32) * 4000,
        random.random((count, 2), np.float32) * 4000,
        random.random(count, np.float32),
    )


def assert_same(got: Matches, expected: Matches) -> None:
    for field, a in got.arrays().items():
        b = expected.arrays()[field]
        assert a.dtype == np.float32, field
        np.testing.assert_array_equal(a, b, err_msg=field)


def files(folder: Path) -> set[str]:
    """What is in a folder, besides the lock."""
    return {path.name for path in folder.iterdir()} - {".lock"}


# A component of a name that a file system can hold and UTF-8 can write.
components = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda text: text not in (".", ".."))
image_names = st.lists(components, min_size=1, max_size=3).map("/".join)
with_files = settings(max_examples=20, deadline=None)


def write_many(folder: Path, count: int, first_seed: int = 0) -> None:
    with RawMatchWriter(folder, PROVENANCE) as writer:
        for i in range(count):
            writer.add(f"{i // 7}.jpg", f"to/{i}.jpg", raw(first_seed + i))


def stored(folder: Path) -> dict[Pair, tuple[bytes, ...]]:
    """All raw matches of a folder, to the bit."""
    with RawMatchReader(folder) as raw:
        return {
            pair: tuple(array.tobytes() for array in raw.read(*pair).arrays().values())
            for pair in raw.pairs()
        }


def write_descriptors(path: Path, names: Sequence[str]) -> np.ndarray:
    """A file of global descriptors as hloc writes it, in half precision; gives what it holds."""
    rows = np.random.default_rng(0).normal(size=(len(names), 16)).astype(np.float16)
    with h5py.File(path, "w") as h5:
        for name, row in zip(names, rows, strict=True):
            group = h5.create_group(name)
            group.create_dataset("global_descriptor", data=row)
            group.create_dataset("image_size", data=[640, 480])
    return rows.astype(np.float32)
