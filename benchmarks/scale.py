"""Memory and time of everything behind the matcher, at parts of the size of Aachen Day-Night v1.1.

    python benchmarks/scale.py [--parts 0.05 0.1 0.25] [--full] [--matches 2000] [--json FILE]

Aachen's size is 6,697 database images in 130,000 pairs, and 1,015 queries in 50,000 pairs. The raw
matches are synthetic: cameras stand 0.7 m apart along a wall with relief, each matched with the
next 20 like a semi-dense matcher does: mostly in textured parts, one keypoint of a match on the
12.5 px grid, the other at the projection of the wall's point with 0.7 px of Gaussian noise, and 10
% outliers. The wall repeats itself every 45 m; every photo is one file under many names. Each step
runs in a process of its own, through the functions that `edm-hloc aachen` calls; its peak is the
maximum resident memory of that process during the step (its imports take some 440 MiB). `--full`
runs quantization and retrieval at Aachen's full size. At 2,000 matches a pair that needs 25 GB of
disk.

The growth of a step is the slope of its CPU time, and of its memory beyond the imports', over the
size on logarithmic axes: 1 is linear.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from PIL import Image
from scipy.spatial.transform import Rotation

from edm_hloc.base.matches import Matches
from edm_hloc.base.process import peak_memory_mib
from edm_hloc.evaluation.localization import pose_errors
from edm_hloc.keypoints.aggregation import KeypointFiles, ReferenceFiles, aggregate
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.points import ModelPoints
from edm_hloc.localization.queries import Queries, localize_queries
from edm_hloc.mapping import triangulation
from edm_hloc.mapping.database import MatchedImages
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.covisibility import from_covisibility
from edm_hloc.pairs.descriptors import DescriptorWriter
from edm_hloc.pairs.retrieval import most_similar
from edm_hloc.pipelines.aachen import AachenOptions
from edm_hloc.pipelines.localize import QUERY_KEYPOINTS

IMAGES, PAIRS, QUERIES, QUERY_PAIRS = 6697, 130_000, 1015, 50_000
WIDTH, HEIGHT, FOCAL = 1600, 1200, 1450.0
STEP = 0.7  # metres between cameras
PERIOD = 64  # cameras
GRID = 12.5  # px: 8 px at 1,024
NOISE, WRONG = 0.7, 0.1
IMPORTS = 440  # MiB
DESCRIPTOR = 8192  # numbers, as VLAD of 64 words over SIFT


class World:
    """Cameras along a wall, numbered; those of the queries come after the database's.

    The wall and the cameras' jitter repeat with every `PERIOD` cameras, and so do the matches: they
    are made once.
    """

    def __init__(self, part: float) -> None:
        self.images, self.queries = round(IMAGES * part), round(QUERIES * part)
        self.num_pairs, self.num_query_pairs = round(PAIRS * part), round(QUERY_PAIRS * part)
        database = [f"db/{i:05d}.jpg" for i in range(self.images)]
        self.names = database + [f"query/{i:05d}.jpg" for i in range(self.queries)]
        rng = np.random.default_rng(0)
        self.shift = rng.normal(0, [0.1, 0.3, 0.5], (2, PERIOD, 3))
        angles = rng.normal(0, [4.0, 2.0, 2.0], (2 * PERIOD, 3))
        self.R = Rotation.from_euler("yxz", angles, degrees=True).as_matrix()  # cam from world
        self.R = self.R.reshape(2, PERIOD, 3, 3)
        self.block = rng.integers(0, max(1, self.images // PERIOD), self.queries)
        y, x = np.mgrid[0 : HEIGHT / GRID, 0 : WIDTH / GRID]
        self.grid = np.stack([x.ravel(), y.ravel()], axis=1) * GRID + (GRID / 8 - 1) / 2
        self.seen = lru_cache(256)(self._seen)
        self.base_matches = lru_cache(2**15)(self._matches)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of the database: each image with those that follow it along the wall."""
        partners = -(-self.num_pairs // self.images) + 1
        found = [(i, i + k) for k in range(1, partners + 1) for i in range(self.images - k)]
        return sorted(found[: self.num_pairs])

    @property
    def query_pairs(self) -> list[tuple[int, int]]:
        number = min(self.images, self.num_query_pairs // self.queries)
        found = []
        for query in range(self.queries):
            first = self.block[query] * PERIOD + query % PERIOD - number // 2
            first = min(max(int(first), 0), self.images - number)
            found += [(self.images + query, first + k) for k in range(number)]
        return found

    def named(self, pairs: list[tuple[int, int]]) -> list[tuple[str, str]]:
        return [(self.names[a], self.names[b]) for a, b in pairs]

    def place(self, image: int) -> tuple[int, int]:
        """0 and its number along the wall, or 1 for a query."""
        query = image - self.images
        if query < 0:
            return 0, image
        return 1, int(self.block[query]) * PERIOD + query % PERIOD

    def rotation(self, place: tuple[int, int]) -> np.ndarray:
        return self.R[place[0], place[1] % PERIOD]

    def centre(self, place: tuple[int, int]) -> np.ndarray:
        x = STEP * (place[1] + 0.5 * place[0])
        return self.shift[place[0], place[1] % PERIOD] + np.array([x, 0.0, 0.0])

    def pose(self, image: int) -> pycolmap.Rigid3d:
        place = self.place(image)
        R = self.rotation(place)
        return pycolmap.Rigid3d(pycolmap.Rotation3d(R), -R @ self.centre(place))

    def camera(self) -> pycolmap.Camera:
        params = [FOCAL, WIDTH / 2, HEIGHT / 2]
        return pycolmap.Camera(
            camera_id=1, model="SIMPLE_PINHOLE", width=WIDTH, height=HEIGHT, params=params
        )

    def _seen(self, place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) points of the wall behind the grid of an image; their texture, 0 to 1."""
        rays = self.grid + 0.5 - np.array([WIDTH / 2, HEIGHT / 2])
        rays = np.column_stack([rays, np.full(len(rays), FOCAL)]) @ self.rotation(place)
        rays /= rays[:, 2:]
        centre = self.centre(place)
        depth = np.full(len(rays), 20.0)
        wave = 2 * np.pi / (STEP * PERIOD)
        for _ in range(20):
            x, y = (centre + depth[:, None] * rays)[:, :2].T
            depth = 20 + 2 * np.sin(3 * wave * x) * np.cos(0.3 * y) - centre[2]
        points = centre + depth[:, None] * rays
        x, y, _ = points.T
        texture = np.sin(9 * wave * x + 2 * np.sin(0.7 * y))
        texture += np.sin(1.7 * y + np.sin(15 * wave * x))
        return points, 1 / (1 + np.exp(-3 * texture))

    def matches(self, pair: tuple[int, int], number: int) -> Matches:
        a, b = self.place(pair[0]), self.place(pair[1])
        start = a[1] - a[1] % PERIOD
        return self.base_matches((a[0], a[1] - start), (b[0], b[1] - start), number)

    def _matches(self, a: tuple[int, int], b: tuple[int, int], number: int) -> Matches:
        rng = np.random.default_rng([*a, b[0], b[1] + IMAGES])
        swap = bool(rng.integers(2))  # which side is on its grid
        if swap:
            a, b = b, a
        points, texture = self.seen(a)
        # more than can be seen, mostly where there is texture
        order = np.flatnonzero(rng.random(len(points)) < texture * min(1, 5 * number / len(points)))
        rng.shuffle(order)
        camera = (points[order] - self.centre(b)) @ self.rotation(b).T
        with np.errstate(divide="ignore", invalid="ignore"):
            xy = FOCAL * camera[:, :2] / camera[:, 2:] + [WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5]
        limit = np.array([WIDTH - 1.0, HEIGHT - 1.0])
        inside = (camera[:, 2] > 1) & ((xy > 0) & (xy < limit)).all(axis=1)
        chosen = np.flatnonzero(inside)[:number]
        xy = xy[chosen] + rng.normal(0, NOISE, (len(chosen), 2))
        wrong = rng.random(len(chosen)) < WRONG
        xy[wrong] = rng.uniform([0.0, 0.0], limit, (int(wrong.sum()), 2))
        arrays = (self.grid[order[chosen]], xy.clip(0, limit), rng.uniform(0.2, 1, len(chosen)))
        found = Matches(*(array.astype(np.float32) for array in arrays))
        return found.swapped() if swap else found


# --------------------------------------------------------------------------- steps


@contextlib.contextmanager
def measured(name: str, results: dict[str, Any]) -> Iterator[None]:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    wall, cpu = time.monotonic(), time.process_time()
    yield
    results[name] = {
        "seconds": round(time.monotonic() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mib": peak_memory_mib(),
    }


def make(folder: Path, world: World, matches: int, results: dict[str, Any]) -> dict[str, Any]:
    """Raw matches, photos and the model with the known poses."""
    total = 0
    with measured("raw matches written", results):
        for kind, pairs in (("raw", world.pairs), ("query-raw", world.query_pairs)):
            with RawMatchWriter(folder / kind, {"matcher": "synthetic"}) as writer:
                for pair in pairs:
                    found = world.matches(pair, matches)
                    total += len(found.scores)
                    writer.add(*world.named([pair])[0], found)
    photo = folder / "photo.jpg"
    Image.new("L", (WIDTH, HEIGHT), 128).save(photo)
    for name in world.names[: world.images]:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(photo, path)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(world.camera())
    for i, name in enumerate(world.names[: world.images]):
        image = pycolmap.Image(name=name, camera_id=1, image_id=i + 1)
        model.add_image_with_trivial_frame(image, world.pose(i))
    (folder / "known").mkdir()
    model.write_binary(folder / "known")
    size = sum(path.stat().st_size for path in folder.glob("*raw/*.h5"))
    return {"raw_matches": total, "raw_gib": round(size / 2**30, 2)}


def quantize(folder: Path, world: World, matches: int, results: dict[str, Any]) -> dict[str, Any]:
    features = folder / "features.h5"
    with RawMatchReader(folder / "raw") as raw, measured("quantization", results):
        config = AachenOptions().quantization
        pairs = world.named(world.pairs)
        made = aggregate(raw, pairs, KeypointFiles(features, folder / "matches.h5"), config)
    return {
        "images": made.images,
        "pairs": made.pairs,
        "keypoints_per_image": round(made.keypoints / made.images),
        "matches_per_pair": round(made.matches / made.pairs),
    }


def quantize_queries(
    folder: Path, world: World, matches: int, results: dict[str, Any]
) -> dict[str, Any]:
    with RawMatchReader(folder / "query-raw") as raw, measured("quantization, queries", results):
        made = aggregate(
            raw,
            world.named(world.query_pairs),
            KeypointFiles(folder / "query-features.h5", folder / "query-matches.h5"),
            QUERY_KEYPOINTS,
            ReferenceFiles((folder / "features.h5",)),
        )
    return {
        "queries": made.images,
        "query_pairs": made.pairs,
        "keypoints_per_query": round(made.keypoints / made.images),
        "matches_per_query_pair": round(made.matches / made.pairs),
    }


def map_points(folder: Path, world: World, matches: int, results: dict[str, Any]) -> dict[str, Any]:
    """Triangulation with known poses, each of its parts measured separately."""

    def timed(place: Any, function: str, name: str) -> None:
        work = getattr(place, function)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with measured(name, results):
                return work(*args, **kwargs)

        setattr(place, function, wrapped)

    timed(triangulation, "import_matches", "import into the database")
    timed(triangulation, "verify_known_poses", "verification")
    timed(triangulation, "triangulate_points", "triangulation")
    timed(triangulation, "write_model", "colours, writing the model")
    _, mapped = triangulation.triangulate(
        folder / "known",
        MatchedImages(
            folder / "images",
            folder / "features.h5",
            folder / "matches.h5",
            world.named(world.pairs),
        ),
        folder / "database.db",
        folder / "model",
        AachenOptions().mapping,
    )
    statistics = mapped.statistics
    size = (folder / "database.db").stat().st_size / 2**30
    return {
        "points": statistics.points,
        "track_length": round(statistics.mean_track_length, 2),
        "database_gib": round(size, 2),
    }


def find_poses(folder: Path, world: World, matches: int, results: dict[str, Any]) -> dict[str, Any]:
    with measured("covisible pairs", results):
        from_covisibility(folder / "model", 20)
    with measured("reading the model", results):
        points = ModelPoints(folder / "model")
    retrieval: dict[str, list[str]] = {}
    for query, name in world.named(world.query_pairs):
        retrieval.setdefault(query, []).append(name)
    queries = world.names[world.images :]
    camera = world.camera()
    camera.has_prior_focal_length = True
    with measured("localization", results):
        answers = localize_queries(
            Queries(queries, dict.fromkeys(queries, camera), retrieval),
            folder / "query-features.h5",
            folder / "query-matches.h5",
            points,
            folder / "log.jsonl",
            PoseOptions(),
        )
    errors = [
        pose_errors(answer.pose, world.pose(i))[0]
        for i, answer in enumerate(answers, start=world.images)
        if answer.status == "localized" and answer.pose is not None
    ]
    return {
        "localized": len(errors),
        "position_median_m": round(float(np.median(errors)), 4),
        "inliers_median": float(np.median([answer.inliers for answer in answers])),
    }


def retrieve(folder: Path, world: World, matches: int, results: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    path = folder / "global.h5"
    with DescriptorWriter(path, {}) as writer:
        for name in world.names:
            descriptor = rng.normal(size=DESCRIPTOR)
            writer.add(name, descriptor / np.linalg.norm(descriptor))
    database, queries = world.names[: world.images], world.names[world.images :]
    with measured("retrieval of 50 a query", results):
        found = most_similar(path, queries, database, 50)
    return {"retrieved": len(found)}


STEPS = {
    f.__name__: f for f in (make, quantize, quantize_queries, map_points, find_poses, retrieve)
}
FULL = ("make", "quantize", "quantize_queries", "retrieve")


# --------------------------------------------------------------------------- tables


def run_part(part: float, steps: tuple[str, ...], matches: int, scratch: Path | None) -> dict:
    done: dict[str, Any] = {"part": part, "steps": {}}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for step in steps:
            command = [sys.executable, __file__, "--step", step, "--folder", folder]
            command += ["--parts", str(part), "--matches", str(matches)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            facts = json.loads(out.splitlines()[-1])
            print(json.dumps({"part": part, **facts}), file=sys.stderr, flush=True)
            done["steps"] |= facts.pop("steps")
            done |= facts
    return done


def growth(sizes: list[float], values: list[float]) -> str:
    if len(sizes) < 2 or min(values) <= 0:
        return ""
    return f"{np.polyfit(np.log(sizes), np.log(values), 1)[0]:.2f}"


def table(parts: list[dict]) -> str:
    heads = [f"{p['images']:,} + {p['queries']:,} images" for p in parts]
    rows = ["| step | " + " | ".join(heads) + " | growth of time, of memory |"]
    rows.append("|---" * (len(parts) + 2) + "|")
    sizes = [float(part["part"]) for part in parts]
    names = list(dict.fromkeys(name for part in parts for name in part["steps"]))
    for name in names:
        found = [part["steps"].get(name) for part in parts]
        cells = [
            f"{f['seconds']:,.0f} s ({f['cpu_seconds']:,.0f} s CPU), {f['peak_mib']:,.0f} MiB"
            if f
            else ""
            for f in found
        ]
        known = [(s, f) for s, f in zip(sizes, found, strict=True) if f]
        seconds = growth([s for s, _ in known], [f["cpu_seconds"] for _, f in known])
        memory = growth([s for s, _ in known], [f["peak_mib"] - IMPORTS for _, f in known])
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {seconds}, {memory} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=float, nargs="*", default=[0.05, 0.1, 0.25])
    parser.add_argument("--full", action="store_true", help="quantization at the full size, too")
    parser.add_argument("--matches", type=int, default=2000, help="raw matches of a pair")
    parser.add_argument("--scratch", type=Path, help="folder for the files, which are removed")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--tables", type=Path, nargs="+", help="only show the numbers of files")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        results: dict[str, Any] = {}
        facts = STEPS[args.step](args.folder, World(args.parts[0]), args.matches, results)
        print(json.dumps({"steps": results, **facts}))
        return
    if args.tables:
        parts = [part for path in args.tables for part in json.loads(path.read_text())["parts"]]
        print(table(sorted(parts, key=lambda part: part["part"])))
        return
    parts = [run_part(part, tuple(STEPS), args.matches, args.scratch) for part in args.parts]
    if args.full:
        parts.append(run_part(1.0, FULL, args.matches, args.scratch))
    print(table(parts))
    if args.json:
        args.json.write_text(json.dumps({"matches": args.matches, "parts": parts}, indent=1))


if __name__ == "__main__":
    main()
