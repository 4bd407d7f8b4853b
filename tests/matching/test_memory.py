"""Memory of matching and merging does not grow with the number of pairs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MEMORY = """
import sys
import threading
import time
from pathlib import Path
from typing import Any
import numpy as np
from edm_hloc.keypoints.aggregation import KeypointFiles, aggregate
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.base.matches import Matches
from edm_hloc.matchers.base import Features
from edm_hloc.matching.reader import RawMatchReader
from tests.fakes import FakeMatcher

class Large(FakeMatcher):
    def encode(self, image):
        return Features(np.ones(1 << 18, np.float32), image.transform, 1 << 20)
    def find(self, features0, features1):
        rng = np.random.default_rng(0)
        points = rng.uniform(0, 40, (2, 1500, 2)).astype(np.float32)
        return Matches(points[0], points[1], rng.random(1500, np.float32))

root, out, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
names = sorted(path.name for path in root.iterdir())
rng = np.random.default_rng(1)
every = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
pairs = [every[i] for i in rng.permutation(len(every))[:count]]
peak = lambda: Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
match_pairs(root, pairs, Large(), out / "raw", MatchingConfig(cache_bytes=16 << 20))
matching = peak()
with RawMatchReader(out / "raw") as raw:
    aggregate(
        raw, pairs, KeypointFiles(out / "f.h5", out / "m.h5"), QuantizationConfig(2, 8, 8192)
    )
print(matching, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's peak of memory")
@pytest.mark.parametrize(
    ("images", "fewer", "more"),
    [(100, 300, 1200), (1000, 2000, 12000)],
)
def test_memory_does_not_grow_with_the_pairs(
    images: int, fewer: int, more: int, tmp_path: Path
) -> None:
    """Features faked: 16 of them fit the cache; peak memory of whole runs in own processes."""
    (tmp_path / "photos").mkdir()
    for i in range(images):
        Image.new("L", (48, 48), i % 256).save(tmp_path / "photos" / f"{i:04d}.png")
    peaks = []
    for count in (fewer, more):
        arguments = [str(tmp_path / "photos"), str(tmp_path / str(count)), str(count)]
        run = subprocess.run(
            [sys.executable, "-c", MEMORY, *arguments],
            check=True,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # no heaps of glibc's for each thread
        )
        peaks.append([int(kib) / 1024 for kib in run.stdout.split()[-2:]])
    # The raw matches alone are 29 KiB a pair. Names and places take about 1 KiB; merging also holds
    # what one image has of all its pairs, and HDF5's buffers, which are filled by some pairs.
    matching, both = np.subtract(*reversed(peaks))
    assert matching < 8 + (more - fewer) * 1.5 / 1024, peaks
    assert both < 8 + (more - fewer) * 7 / 1024, peaks
