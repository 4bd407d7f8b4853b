"""Many workers on paper: measured costs, a simulated cluster, and what 10^3 to 10^6 photos take.

    python benchmarks/many_workers.py measure [--photos 9] [--size 640 480]
    python benchmarks/many_workers.py simulate [--pairs 1000000] [--workers 1000] [--out OUT]
    edm-hloc merge OUT
    python benchmarks/many_workers.py table

`measure` runs the steps of a reconstruction on rendered photos, on one core, and writes what each
costs to benchmarks/many_workers.json, from which the other two take it. `simulate` puts pairs
through the real planner, the real queue of shards and the real merge; only the workers are made
up: they take the measured time, die, lose their computers and meet pairs that kill them, on a clock
of its own. Interrupted, it goes on from the plan and the files that are there. `table` prints
docs/scale.md's table.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc.base.h5 import AtomicH5, pair_key, store_text
from edm_hloc.base.matches import Matches
from edm_hloc.base.process import peak_memory_mib
from edm_hloc.matching.blocks import cut_into_blocks
from edm_hloc.matching.shards import StoredPair, store_matches, store_pairs
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.shard_plan import ShardPlan, load_plan, make_plan
from edm_hloc.pipelines.shard_queue import Done, Failure, Piece, ShardQueue, work_off
from edm_hloc.pipelines.shards import merge_shards
from edm_hloc.refinement.load import MatcherRecipe

COSTS = Path(__file__).with_suffix(".json")
PAPER_GPU = 0.0167  # seconds a pair on an RTX 3090, of the network alone (the EDM paper, 640 × 480)

BYTES_A_MATCH = 20  # two points and a score, in float32
PLANNED = 100_000  # pairs of which the planning is measured
# MiB a photo by which the memory grows, of `benchmarks/scale.py` in docs/scale.md
KEYPOINTS_MIB, MAPPING_MIB = 0.36, 1.4

# --------------------------------------------------------------------------- measured costs


def planning() -> dict[str, float]:
    """Seconds and bytes a pair of the planner, in a process that has done nothing else yet."""
    pairs = pairs_along_a_street(PLANNED)
    start, before = time.process_time(), peak_memory_mib() or 0
    cut_into_blocks(pairs, PLANNED // 1000)
    seconds, more = time.process_time() - start, (peak_memory_mib() or 0) - before
    return {"plan_s_a_pair": seconds / PLANNED, "plan_bytes_a_pair": more * 2**20 / PLANNED}


def merging(matches: int) -> dict[str, float]:
    """Seconds a pair of the merge, for pairs with so many matches."""
    from tests.fakes import FakeMatcher

    pairs = pairs_along_a_street(300)
    points = np.random.default_rng(0).random((matches, 2), np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        plan = make_plan(Path(scratch), Path(scratch), pairs, FakeMatcher(), shards=2)
        for shard in (1, 2):
            write_shard(plan, Piece(shard), Matches(points, points, points[:, 0]))
        start = time.process_time()
        merge_shards(plan)
        return {"merge_s_a_pair": (time.process_time() - start) / len(pairs)}


def measure(photos: int, size: tuple[int, int]) -> dict[str, float]:
    """CPU seconds and bytes of each step, for photos that were rendered for this."""
    import torch

    from edm_hloc.images.load import load_image
    from edm_hloc.keypoints.aggregation import KeypointFiles, aggregate
    from edm_hloc.mapping.database import MatchedImages, build_database
    from edm_hloc.mapping.options import MappingOptions
    from edm_hloc.matching.engine import match_pairs
    from edm_hloc.matching.reader import RawMatchReader
    from edm_hloc.pairs.descriptors import RetrievalImages
    from edm_hloc.pairs.local_features import edm_features
    from edm_hloc.pairs.retrieval import most_similar
    from edm_hloc.pairs.vlad import vlad_descriptors
    from edm_hloc.pipelines.reconstruct import RECONSTRUCTION_KEYPOINTS
    from edm_hloc.synthetic.photo_collection import make_photo_collection

    torch.set_num_threads(1)
    found: dict[str, float] = {"width": size[0], "height": size[1], "photos": photos}
    found |= planning()
    matcher = MatcherRecipe(resize=max(size)).load("cpu")

    def timed(name: str, number: int, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        answer = work()
        found[name] = (time.process_time() - start) / number
        print(f"{name:<24} {found[name]:.4g}", flush=True)
        return answer

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_photo_collection(folder, views=photos, size=size, seed=3)
        root = folder / "images"
        names = sorted(path.name for path in root.iterdir())
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 : i + 4]]
        match_pairs(root, pairs[:1], matcher, folder / "warm")  # what is compiled or loaded once
        p = matcher.info.preprocessing
        load = partial(
            load_image, resize_max=p.resize_max, divisor=p.divisor, grayscale=p.grayscale
        )
        timed("encode_s", photos, lambda: [matcher.encode(load(root / name)) for name in names])
        done = timed("all", 1, lambda: match_pairs(root, pairs, matcher, folder / "raw"))
        found["pair_s"] = (found.pop("all") - done.encoded * found["encode_s"]) / done.matched
        raw = sum(path.stat().st_size for path in (folder / "raw").glob("*.h5"))
        found["raw_bytes_a_pair"] = raw / len(pairs)
        files = KeypointFiles(folder / "features.h5", folder / "matches.h5")
        with RawMatchReader(folder / "raw") as reader:
            timed(
                "keypoints_s_a_pair",
                len(pairs),
                lambda: aggregate(reader, pairs, files, RECONSTRUCTION_KEYPOINTS),
            )
        found["features_bytes_a_photo"] = files.features.stat().st_size / photos
        found["matches_bytes_a_pair"] = files.matches.stat().st_size / len(pairs)
        matched = MatchedImages(root, files.features, files.matches, pairs)
        options = MappingOptions(threads=1)
        timed(
            "database_s_a_pair",
            len(pairs),
            lambda: build_database(folder / "d.db", matched, None, options),
        )
        found["database_bytes_a_pair"] = (folder / "d.db").stat().st_size / len(pairs)
        images = RetrievalImages(root, names, names)
        descriptors = folder / "global.h5"
        local = edm_features(None, torch.device("cpu"))
        timed("describe_s", photos, lambda: vlad_descriptors(images, descriptors, local))
        with h5py.File(descriptors) as h5:
            length = len(h5[names[0]]["global_descriptor"])
        found["descriptor_bytes"] = 4.0 * length
        rows = np.random.default_rng(0).normal(size=(512, length)).astype(np.float32)
        start = time.process_time()
        np.argpartition(-(rows @ rows.T), 20, axis=1)
        found["compare_s"] = (time.process_time() - start) / len(rows) ** 2
        most_similar(descriptors, names, names, 5)
    found |= merging(int(found["raw_bytes_a_pair"]) // BYTES_A_MATCH)
    return {name: float(f"{value:.4g}") for name, value in found.items()}


# --------------------------------------------------------------------------- simulated workers


@dataclass(frozen=True)
class Cluster:
    """What goes wrong, and how often.

    Attributes:
        workers: at the start.
        on_a_computer: workers that leave together.
        life: mean hours until a worker dies.
        computer_life: mean hours until a computer leaves, to come back after `away` hours.
        away: hours.
        lost: seconds of work, besides the pair it is at, that are not stored when a worker dies.
        spread: standard deviation of the logarithm of a pair's time.
    """

    workers: int
    on_a_computer: int = 8
    life: float = 20.0
    computer_life: float = 30.0
    away: float = 0.2
    lost: float = 0.1
    spread: float = 0.3


@dataclass(order=True)
class Event:
    """Something that happens at a time, in seconds."""

    at: float
    number: int
    what: str = field(compare=False)
    worker: int = field(compare=False)
    piece: Piece | None = field(compare=False, default=None)
    computed: np.ndarray | None = field(compare=False, default=None)  # positions, in their order
    ends: np.ndarray | None = field(compare=False, default=None)  # when each of them is done


class SimulatedCrew:
    """Workers that only take time; see `Crew`.

    Args:
        plan: whose shards they match.
        photos: number of photos of each shard.
        cluster: how many they are, and what goes wrong.
        guilty: position in a shard of a pair that kills every worker, by shard.
        costs: of `measure`.
    """

    def __init__(
        self,
        plan: ShardPlan,
        photos: Sequence[int],
        cluster: Cluster,
        guilty: dict[int, int],
        costs: dict[str, float],
    ) -> None:
        self._plan, self._photos, self._cluster, self._guilty = plan, photos, cluster, guilty
        self._costs = costs
        self._rng = np.random.default_rng(0)
        self._idle = list(range(cluster.workers))
        self._gone: set[int] = set()
        self._events: list[Event] = []
        self._at_work: dict[int, Event] = {}
        self._numbers = itertools.count()
        self._stored = {k: np.zeros(n, bool) for k, n in enumerate(plan.pairs, start=1)}
        self.now = 0.0
        self.computed = self.deaths = self.removals = 0
        for computer in range(-(-cluster.workers // cluster.on_a_computer)):
            self._later(self._until(cluster.computer_life), "leaves", computer)

    def _until(self, hours: float) -> float:
        return self.now + float(self._rng.exponential(hours * 3600))

    def _later(self, at: float, what: str, worker: int) -> None:
        heapq.heappush(self._events, Event(at, next(self._numbers), what, worker))

    def room(self) -> int:
        return len(self._idle)

    def give(self, piece: Piece) -> None:
        worker = self._idle.pop()
        stored = self._stored[piece.shard]
        first, end = piece.part or (0, len(stored))
        todo = np.array([i for i in range(first, end) if not stored[i]], int)
        if piece.part is None:
            todo = np.array([i for i in todo.tolist() if i not in piece.left_out], int)
        share = len(todo) / len(stored)
        encode = self._photos[piece.shard - 1] * self._costs["encode_s"] * math.sqrt(share)
        took = self._rng.lognormal(0.0, self._cluster.spread, len(todo)) * self._costs["pair_s"]
        took += encode / max(1, len(todo))
        ends = self.now + np.cumsum(took)
        over, what = (float(ends[-1]) if len(ends) else self.now), "done"
        place = np.flatnonzero(todo == self._guilty.get(piece.shard, -1))
        if len(place):
            over, what = float(ends[place[0]]), "dies"
        if (death := self._until(self._cluster.life)) < over:
            over, what = death, "dies"
        event = Event(over, next(self._numbers), what, worker, piece, todo, ends)
        self._at_work[worker] = event
        heapq.heappush(self._events, event)

    def wait(self) -> Iterable[tuple[Piece, Done | Failure]]:
        event = heapq.heappop(self._events)
        if event.piece is not None and self._at_work.get(event.worker) is not event:
            return []  # its computer has left
        self.now = max(self.now, event.at)
        if event.what == "leaves":
            return self._leave(event.worker)
        if event.what == "returns":
            size = self._cluster.on_a_computer
            back = range(event.worker * size, (event.worker + 1) * size)
            self._idle += [worker for worker in back if worker in self._gone]
            self._gone -= set(back)
            self._later(self._until(self._cluster.computer_life), "leaves", event.worker)
            return []
        self._idle.append(event.worker)
        if event.what == "dies":
            self.deaths += 1
            return [self._fail(event, Failure("worker", "the worker died (signal 9)"))]
        return [self._finish(event)]

    def _leave(self, computer: int) -> list[tuple[Piece, Done | Failure]]:
        self.removals += 1
        size = self._cluster.on_a_computer
        workers = range(computer * size, min(self._cluster.workers, (computer + 1) * size))
        self._idle = [worker for worker in self._idle if worker not in workers]
        self._gone |= set(workers)
        self._later(self.now + 3600 * self._cluster.away, "returns", computer)
        working = [self._at_work[worker] for worker in workers if worker in self._at_work]
        return [self._fail(event, Failure("node", "its computer left")) for event in working]

    def _fail(self, event: Event, failure: Failure) -> tuple[Piece, Failure]:
        """Keeps what the worker had stored."""
        assert event.piece is not None
        assert event.computed is not None
        assert event.ends is not None
        del self._at_work[event.worker]
        self.computed += int((event.ends < self.now).sum())
        kept = event.computed[event.ends < self.now - self._cluster.lost]
        self._stored[event.piece.shard][kept] = True
        return event.piece, failure

    def _finish(self, event: Event) -> tuple[Piece, Done]:
        assert event.piece is not None
        assert event.computed is not None
        del self._at_work[event.worker]
        self.computed += len(event.computed)
        self._stored[event.piece.shard][event.computed] = True
        if event.piece.part is None:
            write_shard(self._plan, event.piece)
        return event.piece, Done(matched=len(event.computed))


ONE_MATCH = Matches(
    np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), np.ones(1, np.float32)
)


def write_shard(plan: ShardPlan, piece: Piece, matches: Matches | None = None) -> None:
    """The file of a shard as `match_shard` writes it, but with the same matches for all pairs.

    Args:
        plan, piece: see `ShardWorker.work`.
        matches: stored for each pair; None: one match is stored once, with a link from each pair,
            which takes a third of the time.
    """
    if plan.file_of(piece.shard).exists():
        return  # of a simulation that was interrupted
    pairs = [pair for i, pair in enumerate(plan.pairs_of(piece.shard)) if i not in piece.left_out]
    file = AtomicH5(plan.file_of(piece.shard), plan.provenance)
    first = store_matches(file.h5, StoredPair(pairs[0]), ONE_MATCH if matches is None else matches)
    for pair in pairs[1:]:
        if matches is None:
            file.h5[pair_key(*pair)] = file.h5[first.key]
        else:
            file.h5.copy(first.key, file.h5, name=pair_key(*pair))
    store_pairs(file.h5, [first._replace(names=pair) for pair in pairs])
    store_text(file.h5, "skipped", "{}")
    store_text(file.h5, "levels", "{}")
    if piece.left_out:
        every = plan.pairs_of(piece.shard)
        listed = [[*every[i], reason] for i, reason in sorted(piece.left_out.items())]
        store_text(file.h5, "left_out", json.dumps(listed))
    file.commit()


def pairs_along_a_street(number: int, partners: int = 20) -> list[Pair]:
    """Photos in a row, each with as many of those that follow it as make so many partners."""
    following = partners // 2
    photos = -(-number // following) + following
    found = ((i, i + step) for i in range(photos) for step in range(1, following + 1))
    inside = ((a, b) for a, b in found if b < photos)
    return [(f"{a:07d}.jpg", f"{b:07d}.jpg") for a, b in itertools.islice(inside, number)]


def simulate(number: int, workers: int, out: Path) -> Iterator[tuple[str, str]]:
    """Facts of a simulated run; the plan and the files of its shards stay in a folder."""
    from tests.fakes import FakeMatcher

    costs = json.loads(COSTS.read_text())
    start = time.process_time()
    if (out / "plan" / "plan.json").exists():  # of a simulation that was interrupted
        plan = load_plan(out)
    else:
        pairs = pairs_along_a_street(number)
        plan = make_plan(out, out, pairs, FakeMatcher(), shards=-(-number // 1000))
    if sum(plan.pairs) != number:
        sys.exit(f"{out} holds the plan of {sum(plan.pairs):,} pairs: give another folder by --out")
    planning = time.process_time() - start
    extra = 100 * plan.extra_encodes / plan.photos
    yield "pairs, photos, shards", f"{number:,}, {plan.photos:,}, {len(plan.pairs):,}"
    yield "planning", f"{planning:.0f} s of CPU time, {extra:.1f} % more encodes than the least"
    shards = range(1, len(plan.pairs) + 1)
    photos = [len({name for pair in plan.pairs_of(k) for name in pair}) for k in shards]
    rng = np.random.default_rng(1)
    bad = rng.choice(len(plan.pairs), min(3, len(plan.pairs)), replace=False) + 1
    guilty = {int(k): int(rng.integers(plan.pairs[k - 1])) for k in bad}
    crew = SimulatedCrew(plan, photos, Cluster(workers), guilty, costs)
    queue = ShardQueue(plan.pairs)
    start = time.process_time()
    work_off(queue, crew, lambda *_: None)
    seconds = time.process_time() - start
    hours, least = crew.now / 3600, least_hours(number, plan.photos, costs)
    yield "simulated matching", f"{hours:.2f} hours by {workers:,} workers"
    yield "of the workers' time", f"{100 * least / (hours * workers):.0f} % is what one would need"
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in sorted(queue.kinds.items()))
    yield "failures", f"{kinds}; {crew.removals:,} times a computer left"
    again = crew.computed - (number - len(guilty))
    yield "pairs computed again", f"{again:,} ({100 * again / number:.2f} %)"
    left_out = {shard: list(places) for shard, places in queue.left_out.items()}
    found = left_out == {shard: [place] for shard, place in guilty.items()}
    yield "pairs that kill", f"{len(guilty)}, {'all' if found else 'NOT'} found and left out alone"
    yield "queue, files of shards", f"{seconds:.0f} s of CPU time"
    yield "peak memory", f"{peak_memory_mib():,.0f} MiB"
    yield "next", f"edm-hloc merge {out}"


def least_hours(pairs: float, photos: float, costs: dict[str, float]) -> float:
    """Hours of one worker that encodes each photo once."""
    return (pairs * costs["pair_s"] + photos * costs["encode_s"]) / 3600


# --------------------------------------------------------------------------- on paper


def on_paper(photos: int, costs: dict[str, float], partners: int = 20) -> dict[str, str]:
    """What photos with some partners each take, by the measured costs."""
    pairs = photos * partners / 2
    encodes = photos * (1.0 if pairs <= 1000 else 1.10)
    hours = {
        "describe": photos * costs["describe_s"] / 3600,
        "compare": photos**2 * costs["compare_s"] / 3600,
        "match": least_hours(pairs, encodes, costs),
        "keypoints": pairs * costs["keypoints_s_a_pair"] / 3600,
        "database": pairs * costs["database_s_a_pair"] / 3600,
        "merge": pairs * costs["merge_s_a_pair"] / 3600,
    }
    bytes_of = {
        "raw": pairs * costs["raw_bytes_a_pair"],
        "h5": photos * costs["features_bytes_a_photo"] + pairs * costs["matches_bytes_a_pair"],
        "database": pairs * costs["database_bytes_a_pair"],
        "global": photos * costs["descriptor_bytes"],
    }
    return {
        "pairs": f"{pairs:,.0f}",
        "encodes": f"{encodes:,.0f}",
        "describing, CPU hours": _hours(hours["describe"]),
        "comparing descriptors, CPU hours": _hours(hours["compare"]),
        "matching, CPU hours": _hours(hours["match"]),
        "matching, GPU hours (the paper's network alone)": _hours(pairs * PAPER_GPU / 3600),
        "keypoints, CPU hours, one process": _hours(hours["keypoints"]),
        "database with verification, CPU hours": _hours(hours["database"]),
        "merging, hours, one process": _hours(hours["merge"]),
        "global descriptors": _size(bytes_of["global"]),
        "raw matches": _size(bytes_of["raw"]),
        "keypoints and matches": _size(bytes_of["h5"]),
        "database": _size(bytes_of["database"]),
        "planning, one process": f"{_hours(pairs * costs['plan_s_a_pair'] / 3600)} hours, "
        f"{_size(pairs * costs['plan_bytes_a_pair'])}",
        "memory of keypoints": _size(photos * KEYPOINTS_MIB * 2**20),
        "memory of triangulation": _size(photos * MAPPING_MIB * 2**20),
    }


def _hours(hours: float) -> str:
    if hours < 0.01:
        return "below 0.01"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _size(number: float) -> str:
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 1000:
            return f"{number:.3g} {unit}"
    return f"{number:,.0f} PB"


def table() -> str:
    costs = json.loads(COSTS.read_text())
    sizes = (10**3, 10**4, 10**5, 10**6)
    columns = [on_paper(photos, costs) for photos in sizes]
    rows = ["| photos | " + " | ".join(f"{photos:,}" for photos in sizes) + " |"]
    rows.append("|---" * (len(sizes) + 1) + "|")
    for name in columns[0]:
        rows.append(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("measure", "simulate", "table"))
    parser.add_argument("--photos", type=int, default=9, help="rendered for measure")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("W", "H"))
    parser.add_argument("--pairs", type=int, default=10**6, help="of the simulation")
    parser.add_argument("--workers", type=int, default=1000, help="of the simulation")
    parser.add_argument("--out", type=Path, default=Path("outputs/many_workers"), help="its files")
    args = parser.parse_args()
    if args.what == "measure":
        costs = measure(args.photos, (args.size[0], args.size[1]))
        COSTS.write_text(json.dumps(costs, indent=1) + "\n")
        print(json.dumps(costs, indent=1))
    elif args.what == "simulate":
        for name, fact in simulate(args.pairs, args.workers, args.out):
            print(f"{name:<22} {fact}", flush=True)
    else:
        print(table())


if __name__ == "__main__":
    main()
