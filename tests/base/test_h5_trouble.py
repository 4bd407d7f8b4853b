"""H5 files of every kind on a full disk, damaged or missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.descriptors import DescriptorReader
from tests.h5_files import (
    PROVENANCE,
    files,
    posix_only,
    write_many,
)

_FILL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.matching.writer import RawMatchWriter
kind, folder, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
points, scores = np.zeros((2000, 2), np.float32), np.zeros(2000, np.float32)
try:
    if kind == "raw":
        with RawMatchWriter(folder, {}) as writer:
            for i in range(2000):
                writer.add("a", str(i), Matches(points, points, scores))
    elif kind == "features":
        with FeatureWriter(folder / "out.h5", {}) as writer:
            for i in range(2000):
                writer.add(f"a/{i}", points, scores)
    else:
        with MatchWriter(folder / "out.h5", {}) as writer:
            for i in range(2000):
                writer.add("a", str(i), scores, scores)
except EdmHlocError as error:
    print(error)
    sys.exit(3)
"""


@posix_only
@pytest.mark.parametrize("kind", ["raw", "features", "matches"])
@pytest.mark.parametrize("limit", [0, 1_000_000])
def test_full_disk_is_a_clear_error(tmp_path: Path, kind: str, limit: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _FILL_DISK, kind, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 3, result.stderr
    assert "Cannot write" in result.stdout
    assert str(tmp_path) in result.stdout
    assert result.stderr == ""
    assert not list(tmp_path.glob(".*.tmp"))
    assert all(path.stat().st_size <= limit for path in tmp_path.glob("*.h5"))
    if kind == "raw":  # the folder is still good
        RawMatchWriter(tmp_path, {}).close()
    else:
        assert files(tmp_path) == set()


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    write_many(tmp_path, 30)
    (shard,) = tmp_path.glob("*.h5")
    data = shard.read_bytes()
    shard.write_bytes({"cut": data[: len(data) // 2], "text": b"hello" * 99, "empty": b""}[damage])
    for read in (
        lambda: RawMatchReader(tmp_path).pairs(),
        lambda: FeatureReader(shard),
        lambda: MatchReader(shard),
        lambda: DescriptorReader(shard),
    ):
        with pytest.raises(EdmHlocError, match=rf"{shard.name} is damaged"):
            read()
    # matching goes on without it
    RawMatchWriter(tmp_path, PROVENANCE).close()
    assert files(tmp_path) == {f"{shard.name}.damaged"}


def test_missing_files_are_named(tmp_path: Path) -> None:
    for reader in (RawMatchReader, FeatureReader, MatchReader, DescriptorReader):
        with pytest.raises(EdmHlocError, match="nowhere"):
            reader(tmp_path / "nowhere")
