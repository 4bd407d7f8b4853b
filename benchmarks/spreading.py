"""Matching spread over workers: equality, kills, memory, encodes, and what a second worker gains.

    python benchmarks/spreading.py encodes
    python benchmarks/spreading.py equality
    python benchmarks/spreading.py kills --kills 50
    python benchmarks/spreading.py nodes --kills 10          (needs Ray)
    python benchmarks/spreading.py memory --pairs 1000 10000 100000
    python benchmarks/spreading.py overhead --pairs 10000
    python benchmarks/spreading.py workers --images FOLDER   (a rendered scene without it)

All but the last one, and a part of `equality`, use a matcher without a network, which makes 64
matches a pair out of nothing, so that what surrounds the network is measured. The plan, the queue,
the workers, their files and the merge are the real ones, but for `memory` and `overhead`, whose
files of shards are filled with the same matches for all pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from many_workers import BYTES_A_MATCH, COSTS, PAPER_GPU, least_hours, write_shard
from PIL import Image
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.keypoints.aggregation import KeypointFiles, aggregate
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.matching.blocks import count_extra_encodes, cut_into_blocks
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pairs.rules import Pair, exhaustive, names_in
from edm_hloc.pipelines.processes import ProcessCrew
from edm_hloc.pipelines.reconstruct import RECONSTRUCTION_KEYPOINTS
from edm_hloc.pipelines.shard_plan import ShardPlan, load_plan, make_plan
from edm_hloc.pipelines.shard_queue import Crew, Done, Failure, Piece, ShardQueue, work_off
from edm_hloc.pipelines.shard_worker import ShardWorker, WorkerSettings
from edm_hloc.pipelines.shards import match_shard, merge_shards
from edm_hloc.pipelines.workers import match_plan
from edm_hloc.refinement.load import MatcherRecipe

MATCHES = 64
CONFIG = MatchingConfig(cache_bytes=1 << 20, host_cache_bytes=1 << 20, shown=False)


# --------------------------------------------------------------------------- made-up matches


class MadeUp(Matcher):
    """Matches that are random numbers, drawn from the means of the two photos."""

    info = MatcherInfo("made-up", Preprocessing(resize_max=64))
    recipe = MatcherRecipe()  # of another matcher; a plan needs one

    def __init__(self, notes: Path | None = None, seconds: float = 0.0) -> None:
        self._notes, self._seconds = notes, seconds

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {"matcher": self.info.name}

    def encode(self, image: NetworkImage) -> Features:
        return Features(round(float(image.tensor.mean()) * 255), image.transform, 100)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        raise NotImplementedError("its matches are in pixels of the original photos")

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self._find(first.data, second.data) for first, second in pairs]

    def _find(self, first: int, second: int) -> Matches:
        self._note("begun", first, second)
        time.sleep(self._seconds)
        self._note("computed", first, second)
        draw = np.random.default_rng((first, second))
        points = draw.uniform(0, 64, (2, MATCHES, 2)).astype(np.float32)
        return Matches(points[0], points[1], draw.uniform(0.3, 1, MATCHES).astype(np.float32))

    def _note(self, what: str, first: int, second: int) -> None:
        if self._notes is not None:
            with self._notes.open("a") as file:
                file.write(f"{what} {first} {second}\n")


class NotingWorker(ShardWorker):
    """Notes each pair before and after it is matched; takes 50 ms for it."""

    def load(self, plan: ShardPlan) -> Matcher:
        notes = plan.folder.parent / "notes"
        notes.mkdir(exist_ok=True)
        return MadeUp(notes / f"{os.getpid()}-{time.monotonic_ns()}.txt", 0.05)


class QuicklyReplaced(ProcessCrew):
    """Processes that are forked from one that has imported everything."""

    start = "forkserver"


def make_photos(folder: Path, number: int) -> list[str]:
    """Small grey photos, of which neighbours differ."""
    folder.mkdir(parents=True)
    names = [f"{i:06d}.png" for i in range(number)]
    for i, name in enumerate(names):
        Image.new("L", (64, 64), i % 251).save(folder / name)
    return names


def along_a_ring(names: Sequence[str], partners: int) -> list[Pair]:
    """Each photo with the next ones, so that it has `partners` in all."""
    number = len(names)
    steps = range(1, partners // 2 + 1)
    return [(names[i], names[(i + step) % number]) for i in range(number) for step in steps]


# --------------------------------------------------------------------------- the measurements


def measure_encodes(_: argparse.Namespace) -> None:
    """How many more photos are encoded in shards than in one process."""
    names = [f"{i:06d}" for i in range(1000)]
    place = np.random.default_rng(1).uniform(size=(1000, 2))
    near = nearest(place, 14)
    plane = [(names[i], names[j]) for i, j in near]
    for what, pairs in (
        ("1,000 photos, 20 partners along a ring", along_a_ring(names, 20)),
        ("1,000 photos, 14 nearest in a plane", plane),
        ("all pairs of 200 photos", exhaustive(names[:200])),
    ):
        blocks = cut_into_blocks(pairs, -(-len(pairs) // 1000))
        extra = count_extra_encodes(blocks) / len(names_in(pairs))
        sizes = [len(block) for block in blocks]
        print(
            f"{what}: {len(pairs):,} pairs in {len(blocks)} shards of {min(sizes):,} to "
            f"{max(sizes):,}, {100 * extra:.1f} % more"
        )
    count = -(-len(near) // 1000)
    # a honeycomb has the shortest borders: half the outlines of its cells, less those of the square
    borders = (count * math.sqrt(2 * math.sqrt(3) * 4 / count) - 4) / 2
    shared = photos_at_a_cut(place, near)
    print(
        f"the plane's straight cuts share {shared:.0f} photos for each length of its side at best; "
        f"the borders of a honeycomb of {count} cells are {borders:.2f} such lengths: "
        f"{100 * borders * shared / 1000:.1f} % more"
    )


def nearest(place: np.ndarray, partners: int) -> list[tuple[int, int]]:
    """Each point (N, 2) with those nearest to it."""
    distance = np.linalg.norm(place[:, None] - place[None], axis=2)
    order = np.argsort(distance, axis=1)[:, 1 : partners + 1]
    return sorted({(min(i, j), max(i, j)) for i, row in enumerate(order.tolist()) for j in row})


def photos_at_a_cut(place: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    """The least photos shared by the two sides of straight cuts of length 1, on average.

    Of each pair across the cut one photo is in both blocks; by König's theorem the fewest are as
    many as pairs can be chosen across it without a common photo.
    """
    ends, found = np.array(pairs), []
    for axis in (0, 1):
        for at in np.linspace(0.2, 0.8, 13):
            low = place[:, axis] < at
            first, second = np.where(low[ends[:, :1]], ends, ends[:, ::-1]).T
            across = low[first] & ~low[second]
            shape = (len(place), len(place))
            graph = csr_array((np.ones(across.sum()), (first[across], second[across])), shape)
            found.append(np.sum(maximum_bipartite_matching(graph) >= 0))
    return float(np.mean(found))


def keypoint_digest(raw: Path, folder: Path, pairs: Sequence[Pair]) -> str:
    """SHA-256 of features.h5 and matches.h5 made of raw matches."""
    folder.mkdir()
    files = KeypointFiles(folder / "features.h5", folder / "matches.h5")
    with RawMatchReader(raw) as reader:
        aggregate(reader, pairs, files, RECONSTRUCTION_KEYPOINTS)
    data = files.features.read_bytes() + files.matches.read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]


def measure_equality(_: argparse.Namespace) -> None:
    """Files after the merge against those of one process, made-up matches and the network's."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ring = along_a_ring(make_photos(root / "grey", 60), 20)
        show_equality("no network", root / "grey", ring, MadeUp())
        images = render(root, 9, (192, 144))
        pairs = exhaustive(sorted(path.name for path in images.iterdir()))
        show_equality("network", images, pairs, MatcherRecipe(resize=192).load("cpu"))


def show_equality(what: str, images: Path, pairs: Sequence[Pair], matcher: Matcher) -> None:
    """Matches pairs in 1, 2, 5 and 17 shards, in random order, and compares the files."""
    root = images.parent / what
    match_pairs(images, pairs, matcher, root / "alone", CONFIG)
    expected = keypoint_digest(root / "alone", root / "alone_h5", pairs)
    print(f"{what}, {len(pairs)} pairs, one process: {expected}")
    for count in (1, 2, 5, 17):
        plan = make_plan(root / str(count), images, pairs, matcher, shards=count)
        order = random.Random(count).sample(range(1, count + 1), count)
        for shard in order:
            match_shard(plan, shard, matcher, CONFIG)
        merge_shards(plan)
        found = keypoint_digest(plan.raw_matches, root / f"h5-{count}", pairs)
        print(f"{what}, {count} shards: {found}, {equal(found == expected)}", flush=True)


def equal(same: bool) -> str:
    return "equal" if same else "DIFFERENT"


def render(root: Path, views: int, size: tuple[int, int]) -> Path:
    """A folder of rendered photos."""
    from edm_hloc.synthetic.photo_collection import make_photo_collection

    return make_photo_collection(root / "scene", views=views, size=size, seed=3)


def under_fire(make_crew: Callable[[Path], Crew], strike: Callable[[], None], kills: int) -> None:
    """Matches 1,500 pairs while workers are lost, and says what was lost and done twice."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pairs = along_a_ring(make_photos(root / "photos", 150), 20)
        match_pairs(root / "photos", pairs, MadeUp(), root / "alone", CONFIG)
        expected = keypoint_digest(root / "alone", root / "alone_h5", pairs)
        plan = make_plan(root / "out", root / "photos", pairs, MadeUp(), shards=60)
        chance, struck, seen = random.Random(1), 0, 0
        with make_crew(root / "out") as crew, ThreadPoolExecutor(1) as pool:  # type: ignore[attr-defined]
            matching = pool.submit(match_plan, plan, crew)
            while not matching.done() and struck < kills:
                time.sleep(chance.uniform(0.1, 0.5))
                begun = len(list((root / "out").glob("notes/*")))
                if begun > seen:  # another worker is at work by now
                    seen = begun
                    strike()
                    struck += 1
            matching.result()
        merged = merge_shards(plan)
        found = keypoint_digest(plan.raw_matches, root / "h5", pairs)
        print(
            f"{struck} losses: {merged.pairs:,} of {len(pairs):,} pairs, "
            f"{len(merged.left_out)} left out, files {equal(found == expected)}"
        )
        notes = (root / "out" / "notes").iterdir()
        lines = [line.split(" ", 1) for path in notes for line in path.open()]
        for what in ("begun", "computed"):
            often = Counter(pair for kind, pair in lines if kind == what)
            again = often.total() - len(pairs)
            print(
                f"pairs {what} again: {again:,} ({again / struck:.2f} a loss), the one most "
                f"often {max(often.values())} times"
            )


def measure_kills(args: argparse.Namespace) -> None:
    """SIGKILLs of processes at random."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["edm_hloc.pipelines.workers"])

    def crew(out: Path) -> ProcessCrew:
        return QuicklyReplaced(WorkerSettings(out, "cpu", 1, CONFIG), 2, NotingWorker)

    def kill() -> None:
        random.choice(multiprocessing.active_children()).kill()

    under_fire(crew, kill, args.kills)


def measure_nodes(args: argparse.Namespace) -> None:
    """Computers that leave a Ray cluster and others that join it, all on this one."""
    import ray
    from ray.cluster_utils import Cluster

    from edm_hloc.pipelines.ray_actors import RayCrew

    small: dict = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    nodes = [cluster.add_node(**small)]
    ray.init(address=cluster.address, log_to_driver=False)

    def crew(out: Path) -> RayCrew:
        return RayCrew(WorkerSettings(out, None, 1, CONFIG), cluster.address, 0, NotingWorker)

    def exchange() -> None:
        cluster.remove_node(nodes.pop())
        nodes.append(cluster.add_node(**small))

    try:
        under_fire(crew, exchange, args.kills)
    finally:
        ray.shutdown()
        cluster.shutdown()


class WritingWorker(ShardWorker):
    """Writes the file of a shard at once, with one match a pair."""

    def work(self, piece: Piece) -> Done | Failure:
        plan = load_plan(self._settings.out)
        write_shard(plan, piece)
        return Done(plan.pairs[piece.shard - 1])


def measure_memory(args: argparse.Namespace) -> None:
    """Time and peak memory of planning, driving two workers, and merging, each in a process."""
    for number in args.pairs:
        with tempfile.TemporaryDirectory() as folder:
            for step in ("plan", "drive", "merge"):
                command = [sys.executable, __file__, "step", folder, step, str(number)]
                subprocess.run(command, check=True)


def measure_step(args: argparse.Namespace) -> None:
    """One step of `measure_memory`."""
    start = resource.getrusage(resource.RUSAGE_SELF)
    if args.step == "plan":
        pairs = along_a_ring([f"{i:06d}.png" for i in range(args.number // 10)], 20)
        make_plan(args.folder, args.folder, pairs, MadeUp(), shards=-(-len(pairs) // 1000))
    elif args.step == "drive":
        settings = WorkerSettings(args.folder, "cpu", 1, CONFIG)
        with ProcessCrew(settings, 2, WritingWorker) as crew:
            match_plan(load_plan(args.folder), crew)
    else:
        merge_shards(load_plan(args.folder))
    end = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{args.number:,} pairs, {args.step}: {cpu_seconds(start, end):.2f} s of CPU time, peak "
        f"memory {end.ru_maxrss / 1024:.0f} MiB ({start.ru_maxrss / 1024:.0f} MiB at the start)",
        flush=True,
    )


def cpu_seconds(start: resource.struct_rusage, end: resource.struct_rusage) -> float:
    return end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime


def measure_overhead(args: argparse.Namespace) -> None:
    """CPU time of plan and merge, against that of matching by the costs of many_workers.json."""
    costs = json.loads(COSTS.read_text())
    matches = int(costs["raw_bytes_a_pair"]) // BYTES_A_MATCH
    with tempfile.TemporaryDirectory() as folder:
        pairs = along_a_ring([f"{i:06d}.png" for i in range(args.number // 10)], 20)
        used = [resource.getrusage(resource.RUSAGE_SELF)]
        plan = make_plan(
            Path(folder), Path(folder), pairs, MadeUp(), shards=-(-args.number // 1000)
        )
        used.append(resource.getrusage(resource.RUSAGE_SELF))
        points = np.random.default_rng(0).random((matches, 2), np.float32)
        for shard in range(1, len(plan.pairs) + 1):
            write_shard(plan, Piece(shard), Matches(points, points, points[:, 0]))
        used.append(resource.getrusage(resource.RUSAGE_SELF))
        merge_shards(plan)
        used.append(resource.getrusage(resource.RUSAGE_SELF))
    planning, merging = cpu_seconds(*used[:2]), cpu_seconds(*used[2:])
    needed = 3600 * least_hours(args.number, plan.photos, costs)
    print(
        f"{args.number:,} pairs of {matches:,} matches: plan {planning:.2f} s, merge {merging:.2f} "
        f"s, together {100 * (planning + merging) / needed:.2f} % of the {needed:,.0f} s of "
        f"matching on a CPU, and {100 * (planning + merging) / (args.number * PAPER_GPU):.2f} % of "
        f"the {args.number * PAPER_GPU:,.0f} s of the paper's GPU"
    )


def measure_workers(args: argparse.Namespace) -> None:
    """Pairs a second of one worker on one core, and of two on two, with the network."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = args.images or render(root, 11, (640, 480))
        pairs = exhaustive(sorted(path.name for path in images.iterdir()))[: args.most]
        matcher = MatcherRecipe(resize=args.resize).load("cpu")
        rates = {}
        cores = sorted(os.sched_getaffinity(0))
        for number in (1, 2):
            os.sched_setaffinity(0, cores[:number])
            plan = make_plan(root / f"out{number}", images, pairs, matcher, shards=18)
            rates[number] = measure_rate(plan, number)
        print(f"2 workers on 2 cores: {rates[2] / rates[1]:.2f} × 1 worker on 1 core")


def measure_rate(plan: ShardPlan, number: int) -> float:
    """Pairs a second, from when the network is loaded for certain until a worker has no shard."""
    times: list[tuple[float, int]] = []

    def done(piece: Piece, _: Done, finished: bool) -> None:
        times.append((time.monotonic(), plan.pairs[piece.shard - 1]))

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    config = MatchingConfig(workers=number, shown=False)
    with ProcessCrew(WorkerSettings(plan.folder.parent, "cpu", 1, config), number) as crew:
        work_off(ShardQueue(plan.pairs), crew, done)
    cpu = cpu_seconds(used, resource.getrusage(resource.RUSAGE_CHILDREN))
    begin, end = 2 * number - 1, len(times) - number
    wall = times[end][0] - times[begin][0]
    pairs = sum(count for _, count in times[begin + 1 : end + 1])
    print(
        f"{number} on as many cores: {pairs} pairs in {wall:.1f} s, {pairs / wall:.2f} pairs a "
        f"second; {cpu:.1f} s of CPU time in all for {sum(plan.pairs)} pairs, start included"
    )
    return pairs / wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=(run.__doc__ or "").split("\n")[0])
        sub.set_defaults(run=run)
        return sub

    command("encodes", measure_encodes)
    command("equality", measure_equality)
    command("kills", measure_kills).add_argument("--kills", type=int, default=50)
    command("nodes", measure_nodes).add_argument("--kills", type=int, default=10)
    sub = command("memory", measure_memory)
    sub.add_argument("--pairs", type=int, nargs="+", default=[1000, 10_000, 100_000])
    sub = command("step", measure_step)
    sub.add_argument("folder", type=Path)
    sub.add_argument("step", choices=("plan", "drive", "merge"))
    sub.add_argument("number", type=int)
    sub = command("overhead", measure_overhead)
    sub.add_argument("--pairs", dest="number", type=int, default=10_000)
    sub = command("workers", measure_workers)
    sub.add_argument("--images", type=Path)
    sub.add_argument("--resize", type=int, default=640)
    sub.add_argument("--most", type=int, default=55, help="number of pairs")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
