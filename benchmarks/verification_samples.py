"""What verifying pairs from a sample of their matches saves, and what it changes.

    python benchmarks/verification_samples.py OUT/database.db [--pairs 48] [--samples 1000 800 600]

Verifies pairs of a run's database again with one thread: from all matches, with two other seeds
from all matches, and from samples of different sizes. Prints the CPU time a pair, the number of
inliers, and how many inliers each has in common with those from all matches: the mean, and the
smallest, of the intersection over the union. The database is not changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pycolmap

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.mapping import two_view
from edm_hloc.mapping.database_reading import cameras_by_image
from edm_hloc.mapping.options import MappingOptions


def inliers_of(
    database: pycolmap.Database, pairs: list[tuple[int, int]], sample: int, seed: int
) -> tuple[list[set[tuple[int, int]]], float]:
    """The inliers of each pair, and the CPU seconds that a pair took."""
    two_view.SAMPLE = sample
    estimate = two_view.estimator(cameras_by_image(database), MappingOptions(seed=seed))
    found, seconds = [], 0.0
    for a, b in pairs:
        points = [database.read_keypoints(i)[:, :2].astype(np.float64) for i in (a, b)]
        matches = np.asarray(database.read_matches(a, b))
        start = time.process_time()
        geometry = estimate((a, b), (points[0], points[1]), matches)
        seconds += time.process_time() - start
        found.append({(int(i), int(j)) for i, j in geometry.inlier_matches})
    return found, seconds / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Samples of matches for verification")
    parser.add_argument("database", type=Path)
    parser.add_argument("--pairs", type=int, default=48, help="evenly over those with matches")
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, two_view.SAMPLE, 600])
    args = parser.parse_args()
    if not args.database.is_file():
        sys.exit(f"{parser.prog}: There is no database {args.database}.")
    database = pycolmap.Database.open(args.database)
    every = [pycolmap.pair_id_to_image_pair(i) for i in database.read_num_matches()[0]]
    chosen = np.linspace(0, len(every) - 1, min(args.pairs, len(every))).round().astype(int)
    pairs = [every[i] for i in chosen]
    number = np.mean([len(database.read_matches(*pair)) for pair in pairs])
    print(f"{len(pairs)} pairs with {number:,.0f} matches each\n")
    print("| from | CPU ms a pair | inliers | in common, mean | least |\n|---|---|---|---|---|")
    everything = sys.maxsize
    rows = [("all matches", everything, 0), *((f"all, seed {s}", everything, s) for s in (1, 2))]
    rows += [(f"{sample:,}", sample, 0) for sample in args.samples]
    reference: list[set[tuple[int, int]]] = []
    with quiet_colmap():
        for name, sample, seed in rows:
            found, seconds = inliers_of(database, pairs, sample, seed)
            reference = reference or found
            shares = [
                len(a & b) / len(a | b) for a, b in zip(reference, found, strict=True) if a | b
            ]
            print(
                f"| {name} | {1e3 * seconds:.0f} | {sum(map(len, found)):,} | "
                f"{np.mean(shares):.3f} | {np.min(shares):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
