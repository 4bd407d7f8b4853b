"""Measures how fast raw matches become keypoints and match indices, and the memory that takes.

    python benchmarks/quantization.py [--json FILE] [--no-oracle]

100 synthetic images × 20 pairs each × 3,000 matches, in which images share scene points as in a
real reconstruction. The rate is raw matches per second of CPU time on one core, from raw matches in
memory to the keypoints, scores, matches0 and matching_scores0 of all images and pairs (each match
is worked on in both of its images). H5 is not included; the rate with it is stated beside. The
plain reading of hloc's description in `tests/oracles` does the same work on the same matches and
must give the same arrays.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import cast

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc.base.matches import Matches
from edm_hloc.keypoints.aggregation import (
    AggregationSummary,
    KeypointFiles,
    KeypointWriters,
    aggregate,
    aggregate_into,
)
from edm_hloc.keypoints.h5 import FeatureWriter, MatchWriter
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair
from tests.oracles import hloc_quantization

WIDTH, HEIGHT, FOCAL = 1600, 1200, 1500.0


class RawInMemory(dict[Pair, Matches]):
    """Stands in for a `RawMatchReader`."""

    def read(self, name0: str, name1: str) -> Matches:
        return self[name0, name1]


class Discard:
    """Stands in for a `FeatureWriter` or a `MatchWriter` and forgets what it is given."""

    def add(self, *item: object) -> None:
        pass


class Sink(dict):
    """Stands in for a `FeatureWriter` or a `MatchWriter` and keeps what it is given."""

    def add(self, *item: object) -> None:
        *names, first, second = item
        self[names[0] if len(names) == 1 else tuple(names)] = (first, second)


def make_matches(images: int, partners: int, matches: int, seed: int = 0) -> RawInMemory:
    """Raw matches of each image with the next `partners` on a ring of cameras around a scene.

    A matched point lies where its scene point is seen, with a noise of 0.7 px per axis (a pixel in
    all) that differs from pair to pair, so that cells are hit again and again but seldom in the
    same place; 5 in 100 matches are wrong.
    """
    rng = np.random.default_rng(seed)
    scene = rng.uniform(-1, 1, (20_000, 3)) * [1.6, 1.2, 0.5]
    views = []
    for angle in np.linspace(0, 2 * np.pi, images, endpoint=False):
        centre = np.array([0.6 * np.cos(angle), 0.4 * np.sin(angle), -3.0])
        x, y, z = (scene - centre).T
        views.append(np.stack([x / z, y / z], 1) * FOCAL + [WIDTH / 2, HEIGHT / 2])
    visible = [((view >= 0) & (view <= [WIDTH - 1, HEIGHT - 1])).all(1) for view in views]
    raw = RawInMemory()
    for i in range(images):
        for j in ((i + step) % images for step in range(1, partners + 1)):
            shared = rng.choice(np.flatnonzero(visible[i] & visible[j]), matches, replace=False)
            points0, points1 = (views[k][shared] + rng.normal(0, 0.7, (matches, 2)) for k in (i, j))
            wrong = rng.random(matches) < 0.05
            points1[wrong] = rng.uniform(0, [WIDTH - 1, HEIGHT - 1], (wrong.sum(), 2))
            raw[f"{i:04d}.jpg", f"{j:04d}.jpg"] = Matches(
                points0.astype(np.float32),
                points1.astype(np.float32),
                rng.beta(2, 1, matches).astype(np.float32),
            )
    return raw


def aggregated(
    raw: RawInMemory,
    features: Sink | Discard,
    matches: Sink | Discard,
    config: QuantizationConfig,
) -> AggregationSummary:
    """`aggregate_into`, which takes stand-ins too, though its types are those of open files."""
    writers = KeypointWriters(cast(FeatureWriter, features), cast(MatchWriter, matches))
    return aggregate_into(cast(RawMatchReader, raw), list(raw), writers, config)


def timed_with_h5(raw: RawInMemory, config: QuantizationConfig) -> float:
    """CPU seconds from H5 files of raw matches to H5 files of keypoints and matches."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with RawMatchWriter(folder / "raw", {}) as writer:
            for pair, matches in raw.items():
                writer.add(*pair, matches)
        start = time.process_time()
        with RawMatchReader(folder / "raw") as reader:
            files = KeypointFiles(folder / "features.h5", folder / "matches.h5")
            aggregate(reader, list(raw), files, config)
        return time.process_time() - start


def assert_same(ours: dict, theirs: dict) -> None:
    """Raises AssertionError unless all arrays agree in value, order and type."""
    assert ours.keys() == theirs.keys()
    for name, arrays in ours.items():
        for mine, other in zip(arrays, theirs[name], strict=True):
            assert mine.dtype == other.dtype, name
            assert np.array_equal(mine, other), name


def measure(raw: RawInMemory, config: QuantizationConfig, repeats: int) -> tuple[dict, Sink, Sink]:
    """The numbers of one configuration, its keypoints and its matches."""
    total = sum(len(matches.scores) for matches in raw.values())
    seconds = []
    for _ in range(repeats):
        features, matches = Sink(), Sink()
        start = time.process_time()  # of the CPU: other programs on this machine do not count
        summary = aggregated(raw, features, matches, config)
        seconds.append(time.process_time() - start)
    result = {
        "max_error": config.max_error,
        "cell_size": config.cell_size,
        "max_kps": config.max_kps,
        "raw_matches": total,
        "keypoints_per_image": round(summary.keypoints / summary.images),
        "matches_per_pair": round(summary.matches / summary.pairs),
        "million_matches_per_second": round(total / min(seconds) / 1e6, 2),
        "million_matches_per_second_with_h5": round(total / timed_with_h5(raw, config) / 1e6, 2),
    }
    tracemalloc.start()  # after the timing, which it would disturb
    aggregated(raw, Discard(), Discard(), config)
    result["peak_working_mib"] = round(tracemalloc.get_traced_memory()[1] / 2**20, 1)
    tracemalloc.stop()
    # of the whole process, with the raw matches and the results of all configurations so far
    result["process_peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    return result, features, matches


def compare(
    raw: RawInMemory, config: QuantizationConfig, result: dict, features: Sink, matches: Sink
) -> None:
    """Adds the oracle's rate to `result`. Raises AssertionError if its arrays are others."""
    settings = config.max_error, config.cell_size, config.max_kps
    start = time.process_time()
    expected_features, expected_matches = hloc_quantization.aggregate(raw, list(raw), *settings)
    seconds = time.process_time() - start
    assert_same(features, expected_features)
    assert_same(matches, expected_matches)
    result["oracle_million_matches_per_second"] = round(result["raw_matches"] / seconds / 1e6, 3)
    result["identical_to_oracle"] = True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--partners", type=int, default=20, help="pairs of each image")
    parser.add_argument("--matches", type=int, default=3000, help="raw matches of each pair")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest run counts")
    parser.add_argument("--no-oracle", action="store_true", help="leave out the slow comparison")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    raw = make_matches(arguments.images, arguments.partners, arguments.matches)
    configs = [QuantizationConfig(max_error=2, cell_size=8, max_kps=n) for n in (8192, None)]
    measured = [(config, measure(raw, config, arguments.repeats)) for config in configs]
    for config, (result, features, matches) in measured:
        if not arguments.no_oracle:
            compare(raw, config, result, features, matches)
        print(*(f"{key:36s} {value}" for key, value in result.items()), "", sep="\n")
    machine = {"python": platform.python_version(), "numpy": np.__version__}
    results = [result for _, (result, _, _) in measured]
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
