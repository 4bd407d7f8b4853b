"""What the tests of raw matches and of H5 files share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from edm_hloc.base.matches import Matches
from edm_hloc.matching.writer import RawMatchWriter

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
