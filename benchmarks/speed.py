"""Measures what matching costs, stage by stage, beside the naive way in the same run.

    python benchmarks/speed.py [--only abcdefghi] [--quick] [--weights NAME] [--json FILE]
           [--papers] [--beside NAMES] [--rival-weights FOLDER]

    a  one pair, stage by stage                       (as Table 6 of arXiv 2503.05122)
    b  a pair at several image sizes                  (as Table 5)
    c  batches of pairs                               (as Table 11)
    d  photos with 20 partners each, to the final H5 files, encoded images reused or not
    e  parameters, operations, memory                 (as Table 12)
    f  growth of time and memory with the photos, and with the pairs of faked features
    g  encodes that the order of pairs costs, beside the least there can be
    h  second look and refinement, stage by stage, at 640 and 1,024 px
    i  other matchers on the same photos              (as Table 10)

The naive way is what one writes first: both images of every pair go through the whole network, the
dual softmax is made as two full matrices and their product, all of the best 0.35 of the rows are
refined, and the keypoints are put together point by point in Python (`tests/oracles`). It uses the
same weights and must find the same matches; the share it has in common with ours is printed. The
refinement is left out (`--refine none`) but in (d), which has it as well, and in (h).

`--papers` measures a, b, c, e and i and prints them once more in the layout of the paper's tables,
with the machine's name; (i) has the matchers of `--beside`, with the names and weights of
`edm-hloc evaluate pose`. `--onnx FOLDER` adds graphs of `edm-hloc export` to (a). `--weights wide`
is the full network carrying the shipped half-width weights: every channel twice, incoming weights
halved. It costs what the full network costs and finds about the same matches as `edm_s`. Everything
is a ratio within one run; on a busy computer `--cpu-time --threads 1` counts the process's own CPU
time instead of the wall clock's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from paper_tables import SECTIONS as PAPER_SECTIONS
from paper_tables import paper_tables
from refined_pairs import instructions, refined_pair, rows_of
from rival_speeds import rival_times
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.matches import Matches
from edm_hloc.evaluation.rivals import make_rivals
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.keypoints.aggregation import KeypointFiles, aggregate
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter, MatchReader, MatchWriter
from edm_hloc.keypoints.quantization import QuantizationConfig
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig
from edm_hloc.matching.engine import MatchingConfig, match_pairs
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.schedule import count_encodes, order_pairs
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.models import weights as weights_module
from edm_hloc.models.coarse import confident_columns
from edm_hloc.models.edm import EDM
from edm_hloc.models.onnx import OnnxEDM
from edm_hloc.models.types import CONFIGS, CoarseMatches, MatchOptions
from edm_hloc.models.weights_file import metadata_of
from edm_hloc.pairs.rules import Pair
from edm_hloc.refinement.load import load_matcher
from edm_hloc.synthetic.photo_collection import make_photo_collection
from tests.oracles import hloc_quantization

T = TypeVar("T")
Row = dict[str, object]
HLOC = QuantizationConfig(max_error=2, cell_size=8, max_kps=8192)  # with hloc's "bin" position
MOST_MATRIX_BYTES = 3 << 30  # of the naive way, which holds four such matrices


# --- The naive way ---------------------------------------------------------------------------


def materialised(
    features0: Tensor, features1: Tensor, temperature: float, topk: int
) -> CoarseMatches:
    """Coarse matches of (B, N, C) and (B, M, C) by the dual softmax written down in full."""
    scale = features0.shape[-1] ** 0.5
    similarity = torch.einsum("nlc,nsc->nls", features0 / scale, features1 / scale) / temperature
    probability = similarity.softmax(dim=1) * similarity.softmax(dim=2)
    best, column = probability.max(dim=2)
    confidence, row = best.topk(topk, dim=1)
    return CoarseMatches(row, column.gather(1, row), confidence)


class NaiveMatcher:
    """The network as trained, run from the start for every pair."""

    def __init__(self, matcher: EDMMatcher) -> None:
        self.model, _ = weights_module.load(matcher.info.weights.path, matcher.info.device)
        self.threshold = matcher.threshold

    def coarse(self, coarse0: Tensor, coarse1: Tensor) -> CoarseMatches:
        cells0, cells1 = (c.flatten(2).transpose(1, 2) for c in (coarse0, coarse1))
        topk = int(0.35 * cells0.shape[1])
        return materialised(cells0, cells1, self.model.config.temperature, topk)

    @torch.inference_mode()
    def match(self, image0: Tensor, image1: Tensor) -> tuple[Tensor, ...]:
        """(1, 1, H, W) twice → keypoints0, keypoints1 (M, 2) and scores (M,)."""
        self.model.coarse_match = lambda a, b, *_: self.coarse(a, b)  # type: ignore[method-assign]
        found = self.model.match(
            self.model.encode(image0),
            self.model.encode(image1),
            MatchOptions(threshold=self.threshold),
        )
        valid = found.valid[0]
        return found.keypoints0[0][valid], found.keypoints1[0][valid], found.confidence[0][valid]


# --- Measuring -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What every measurement needs to know.

    Attributes:
        matcher: with the weights that are measured.
        naive: the same the naive way.
        photos: folder of photos of one scene, and their names.
        repeats: the fastest counts.
        clock: seconds, of the wall or of this process's CPU time.
        peak: floating-point operations a second of a large matrix product.
    """

    matcher: EDMMatcher
    naive: NaiveMatcher
    photos: Path
    names: list[str]
    repeats: int
    quick: bool
    clock: Callable[[], float]
    peak: float
    weights: str
    scratch: Path
    graphs: OnnxEDM | None
    rivals: Mapping[str, Matcher]

    def seconds(self, *functions: Callable[[], object]) -> list[float]:
        """Of each function, the fastest of some calls made in turn."""
        best = [float("inf")] * len(functions)
        for _ in range(self.repeats):
            for i, function in enumerate(functions):
                best[i] = min(best[i], self.once(function)[0])
        return best

    def once(self, function: Callable[[], T]) -> tuple[float, T]:
        self.synchronise()
        start = self.clock()
        result = function()
        self.synchronise()
        return self.clock() - start, result

    def synchronise(self) -> None:
        if self.matcher.info.device.type == "cuda":
            torch.cuda.synchronize()

    def images(self, height: int, width: int, count: int = 2) -> list[Tensor]:
        """Photos of one scene at this size, each (1, 1, height, width)."""
        loaded = (load_image(self.photos / n).tensor[None] for n in self.names[:count])
        return [
            torch.nn.functional.interpolate(
                image, (height, width), mode="bilinear", antialias=True
            ).to(self.matcher.info.device)
            for image in loaded
        ]


def operations(model: EDM, function: Callable[[], object]) -> float:
    """Floating-point operations of the convolutions, matrix products and attention."""
    threads, search = torch.get_num_threads(), model.coarse_search
    # What happens in other threads and in compiled loops is not counted.
    torch.set_num_threads(1)
    model.coarse_search = confident_columns
    with FlopCounterMode(display=False) as counter:
        function()
    torch.set_num_threads(threads)
    model.coarse_search = search
    return float(counter.get_total_flops())


def matrix_peak(device: torch.device, clock: Callable[[], float]) -> float:
    """Operations a second of an fp32 matrix product in memory that is there already."""
    a, b, out = torch.rand(3, 1536, 1536, device=device)
    best = float("inf")
    for _ in range(5):
        start = clock()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return 2 * 1536**3 / best


def peak_bytes(function: Callable[[], object], device: torch.device) -> float | None:
    """Memory that a call takes beyond what is held before it; None where that is not known."""
    function()  # libraries keep some buffers after the first call
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    try:  # on Linux: give back what is free, and start the maximum afresh
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def print_table(title: str, rows: list[Row]) -> None:
    """A Markdown table of rows with the same keys."""
    print(f"\n### {title}\n")
    cells = [list(rows[0]), *([_cell(v) for v in row.values()] for row in rows)]
    widths = [max(len(c) for c in column) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * w for w in widths])
    for line in cells:
        print("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |")
    sys.stdout.flush()


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)


def _mib(size: float | None) -> float | None:
    return None if size is None else round(size / 2**20, 1)


# --- a: one pair -------------------------------------------------------------------------------


@torch.no_grad()
def one_pair(bench: Bench) -> list[Row]:
    """Time of every stage, ours and naive, and the share of the machine's peak."""
    ours, naive, threshold = bench.matcher.model, bench.naive.model, bench.matcher.threshold
    image0, image1 = bench.images(480, 640)
    f0, f1 = ours.encode(image0), ours.encode(image1)
    coarse = ours.interact(f0, f1)
    n0, n1 = naive.encode(image0), naive.encode(image1)
    naive_coarse = naive.interact(n0, n1)
    topk = int(0.35 * f0.f8.shape[-2] * f0.f8.shape[-1])
    cells = ours.coarse_match(*coarse, topk, threshold)
    naive_cells = bench.naive.coarse(*naive_coarse)
    match0, match1 = (Features(f, PixelTransform((1.0, 1.0)), f.nbytes) for f in (f0, f1))
    stages: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("encode, one image", lambda: ours.encode(image0), lambda: naive.encode(image0)),
        (
            "correlation injection",
            lambda: ours.interact(f0, f1),
            lambda: naive.interact(n0, n1),
        ),
        (
            "coarse matching",
            lambda: ours.coarse_match(*coarse, topk, threshold),
            lambda: bench.naive.coarse(*naive_coarse),
        ),
        (
            "refinement",
            lambda: ours.refine(f0, f1, *coarse, cells),
            lambda: naive.refine(n0, n1, *naive_coarse, naive_cells),
        ),
        (
            "a lone pair",
            lambda: (ours.encode(image0), ours.encode(image1), bench.matcher.match(match0, match1)),
            lambda: bench.naive.match(image0, image1),
        ),
        (
            "a pair of encoded images",
            lambda: bench.matcher.match(match0, match1),
            lambda: bench.naive.match(image0, image1),
        ),
    ]
    rows: list[Row] = []
    work = {name: operations(ours, our_call) for name, our_call, _ in stages}
    if (graphs := bench.graphs) is not None:
        g0, g1 = graphs.encode(image0), graphs.encode(image1)
        options = MatchOptions(threshold=threshold, refined=graphs.refined)
        for name, beside, graph_call in (
            ("encode, ONNX Runtime", stages[0], lambda: graphs.encode(image0)),
            ("match, ONNX Runtime", stages[-1], lambda: graphs.match(g0, g1, options)),
        ):
            work[name] = work[beside[0]]
            stages.append((name, graph_call, beside[2]))
    for name, our_call, naive_call in stages:
        mine, theirs = bench.seconds(our_call, naive_call)
        flops = work[name]
        rows.append(
            {
                "stage (640×480)": name,
                "naive ms": _ms(theirs),
                "ms": _ms(mine),
                "times faster": round(theirs / mine, 2),
                "GFLOP": round(flops / 1e9, 2),
                "of peak": f"{100 * flops / mine / bench.peak:.0f} %",
            }
        )
    return rows


# --- b: image sizes ------------------------------------------------------------------------------


@torch.inference_mode()
def image_sizes(bench: Bench) -> list[Row]:
    """A pair at several sizes: encoded once for 20 partners, and the naive way."""
    model = bench.matcher.model
    rows: list[Row] = []
    options = MatchOptions(threshold=bench.matcher.threshold)
    for side in (480, 640) if bench.quick else (480, 640, 832, 1024, 1152):
        image0, image1 = bench.images(side, side)
        features0, features1 = model.encode(image0), model.encode(image1)
        calls: list[Callable[[], object]] = [
            partial(model.encode, image0),
            partial(model.match, features0, features1, options),
        ]
        if (side // 8) ** 4 * 4 <= MOST_MATRIX_BYTES:
            calls.append(partial(bench.naive.match, image0, image1))
        encode, match, *theirs = bench.seconds(*calls)
        lone, shared = 2 * encode + match, encode / 10 + match
        naive = theirs[0] if theirs else None
        rows.append(
            {
                "size": f"{side}×{side}",
                "naive ms": naive and _ms(naive),
                "lone pair ms": _ms(lone),
                "encode ms": _ms(encode),
                "match ms": _ms(match),
                "20 partners, ms a pair": _ms(shared),
                "times faster, lone": naive and round(naive / lone, 2),
                "times faster, 20 partners": naive and round(naive / shared, 2),
            }
        )
    return rows


# --- c: batches ----------------------------------------------------------------------------------


@torch.inference_mode()
def batches(bench: Bench) -> list[Row]:
    """Milliseconds a pair when several pairs of one size go through the network together."""
    model = bench.matcher.model
    rows: list[Row] = []
    options = MatchOptions(threshold=bench.matcher.threshold)
    cuda = bench.matcher.info.device.type == "cuda"
    for size in (1, 4) if bench.quick else (1, 2, 4, 8, 16, 32) if cuda else (1, 2, 4, 8):
        image0, image1 = (i.repeat(size, 1, 1, 1) for i in bench.images(480, 640))
        features0, features1 = model.encode(image0), model.encode(image1)
        encode, match = bench.seconds(
            partial(model.encode, image0),
            partial(model.match, features0, features1, options),
        )
        rows.append(
            {
                "pairs (640×480)": size,
                "encode ms an image": _ms(encode / size),
                "match ms a pair": _ms(match / size),
            }
        )
    return rows


# --- d: structure from motion --------------------------------------------------------------------


def ring(names: list[str], following: int) -> list[Pair]:
    """Each image with the next ones on a ring: 2·following partners each."""
    count = len(names)
    pairs = (
        (names[i], names[(i + k) % count]) for i in range(count) for k in range(1, following + 1)
    )
    return list(dict.fromkeys((min(pair), max(pair)) for pair in pairs))


def sfm_workload(bench: Bench) -> list[Row]:
    """From photos to final H5 files, ours and naive, and what they have in common."""
    names = bench.names[:8] if bench.quick else bench.names
    pairs = ring(names, min(10, (len(names) - 1) // 2))
    out, plain = bench.scratch / "ours", bench.scratch / "naive"
    ours_stages, encoded = _ours(bench, bench.matcher, pairs, out)
    default = load_matcher(
        weights=bench.weights,
        preprocessing=bench.matcher.info.preprocessing,
        device=str(bench.matcher.info.device),
    )
    first = [load_image(bench.photos / name, resize_max=640, divisor=32) for name in pairs[0]]
    default.match(*map(default.encode, first))  # its loops are compiled once
    default_stages, default_encoded = _ours(bench, default, pairs, bench.scratch / "default")
    naive_matching, _ = bench.once(lambda: _naive_matches(bench, pairs, plain / "raw"))
    naive_merging, _ = bench.once(lambda: _naive_merge(pairs, plain))
    naive_stages = naive_matching, naive_merging
    common = _in_common(pairs, out, plain)
    other = dict.fromkeys(common)
    rows: list[Row] = []
    for way, encodes, stages, shares in (
        ("naive", 2 * len(pairs), naive_stages, common),
        ("--refine none", encoded, ours_stages, common),
        ("default", default_encoded, default_stages, other),
    ):
        rows.append(
            {
                "way": way,
                "photos": len(names),
                "pairs": len(pairs),
                "encode calls": encodes,
                "matching s": round(stages[0], 2),
                "keypoints s": round(stages[1], 2),
                "pairs/s": round(len(pairs) / sum(stages), 2),
                "times faster": round(sum(naive_stages) / sum(stages), 2),
                **shares,
            }
        )
    return rows


def _ours(
    bench: Bench, matcher: Matcher, pairs: list[Pair], out: Path
) -> tuple[tuple[float, float], int]:
    """Seconds of matching and of merging, and the number of encode calls."""
    matching, summary = bench.once(lambda: match_pairs(bench.photos, pairs, matcher, out / "raw"))
    with RawMatchReader(out / "raw") as raw:
        files = KeypointFiles(out / "features.h5", out / "matches.h5")
        merging, _ = bench.once(lambda: aggregate(raw, pairs, files, HLOC))
    return (matching, merging), summary.encoded


def _naive_matches(bench: Bench, pairs: list[Pair], folder: Path) -> None:
    p = bench.matcher.info.preprocessing
    with RawMatchWriter(folder, {}) as writer:
        for pair in pairs:
            images = [
                load_image(bench.photos / name, resize_max=p.resize_max, divisor=p.divisor)
                for name in pair
            ]
            found = bench.naive.match(
                *(i.tensor[None].to(bench.matcher.info.device) for i in images)
            )
            points0, points1, scores = (t.cpu().numpy() for t in found)
            points0, points1 = (
                image.transform.to_original(points)
                for image, points in zip(images, (points0, points1), strict=True)
            )
            writer.add(*pair, Matches(points0, points1, scores))


def _naive_merge(pairs: list[Pair], folder: Path) -> None:
    with RawMatchReader(folder / "raw") as reader:
        raw = {pair: reader.read(*pair) for pair in pairs}
    settings = HLOC.max_error, HLOC.cell_size, HLOC.max_kps
    features, matches = hloc_quantization.aggregate(raw, pairs, *settings)
    with FeatureWriter(folder / "features.h5", {}) as writer:
        for name, (keypoints, scores) in features.items():
            writer.add(name, keypoints, scores)
    with MatchWriter(folder / "matches.h5", {}) as writer:
        for pair, found in matches.items():
            writer.add(*pair, *found)


def _in_common(pairs: list[Pair], ours: Path, naive: Path) -> Row:
    """Shares of the raw and of the final matches that are in both, to a hundredth of a pixel."""
    shares = []
    raw = [RawMatchReader(folder / "raw") for folder in (ours, naive)]
    final = [
        (FeatureReader(f / "features.h5"), MatchReader(f / "matches.h5")) for f in (ours, naive)
    ]
    for kind in ("raw", "final"):
        both = either = 0
        for pair in pairs:
            sets = []
            for side in range(2):
                if kind == "raw":
                    found = raw[side].read(*pair)
                    points = np.hstack([found.keypoints0, found.keypoints1])
                else:
                    features, matches = final[side]
                    index = matches.matches(*pair)[0]
                    keypoints = [features.keypoints(name) for name in pair]
                    points = np.hstack([keypoints[i][index[:, i]] for i in range(2)])
                sets.append({tuple(row) for row in np.round(points, 1).tolist()})
            both += len(sets[0] & sets[1])
            either += max(map(len, sets))
        shares.append(f"{100 * both / max(1, either):.1f} %")
    for reader in [*raw, *(r for readers in final for r in readers)]:
        reader.close()
    return {"raw matches in common": shares[0], "final matches in common": shares[1]}


# --- e: parameters, operations, memory ----------------------------------------------------------


@torch.no_grad()
def sizes_of_everything(bench: Bench) -> list[Row]:
    """Parameters, operations and memory at several sizes."""
    model = bench.matcher.model
    rows: list[Row] = []
    flow = sum(p.numel() for p in model.fine_matching.flow.parameters())  # for training only
    parameters = sum(p.numel() for p in bench.naive.model.parameters()) - flow
    device = bench.matcher.info.device
    for height, width in ((480, 640),) if bench.quick else ((480, 640), (832, 832), (1152, 1152)):
        image0, image1 = bench.images(height, width)
        features0, features1 = model.encode(image0), model.encode(image1)
        maps = model.interact(features0, features1)
        tokens = [m.flatten(2).transpose(1, 2) for m in maps]
        call = tokens[0], tokens[1], model.config.temperature
        matrix = 4 * tokens[0].shape[1] * tokens[1].shape[1]
        small = matrix <= MOST_MATRIX_BYTES
        our_call = partial(model.coarse_search, *call, bench.matcher.threshold)
        naive_call = partial(materialised, *call, topk=1000)
        ours = peak_bytes(our_call, device)
        search = peak_bytes(partial(model.coarse_search, *call, 0.0), device)
        naive = peak_bytes(naive_call, device) if small else None
        seconds = bench.seconds(our_call, *([naive_call] if small else []))
        encoding = operations(model, partial(model.encode, image0))
        matching = operations(model, partial(model.match, features0, features1))
        rows.append(
            {
                "size": f"{width}×{height}",
                "million parameters": round(parameters / 1e6, 2),
                "GFLOP an image": round(encoding / 1e9, 2),
                "GFLOP a pair": round(matching / 1e9, 2),
                "features MiB": _mib(features0.nbytes),
                "naive coarse MiB": _mib(naive),
                "coarse MiB": _mib(ours),
                "coarse MiB, threshold 0": _mib(search),
                "naive coarse ms": _ms(seconds[1]) if small else None,
                "coarse ms": _ms(seconds[0]),
                "times faster": round(seconds[1] / seconds[0], 2) if small else None,
            }
        )
    return rows


# --- f: growth -----------------------------------------------------------------------------------


class FakedMatcher(Matcher):
    """Features of a megabyte that nothing was computed for, and 300 random matches a pair."""

    info = MatcherInfo("faked", Preprocessing(resize_max=64))

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {"matcher": self.info.name}

    def encode(self, image: NetworkImage) -> Features:
        return Features(np.ones(1 << 18, np.float32), image.transform, 1 << 20)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        found = []
        for _ in pairs:
            rng = np.random.default_rng(0)
            points = rng.uniform(0, 63, (2, 300, 2)).astype(np.float32)
            found.append(Matches(points[0], points[1], rng.random(300, np.float32)))
        return found


def growth(bench: Bench) -> list[Row]:
    """Whole runs in processes of their own: more photos with 20 partners each, and more pairs."""
    rows: list[Row] = []
    counts = (25, 50) if bench.quick else (25, 50, 100, 200)
    jobs: list[dict[str, Any]] = [{"images": n, "following": 10, "faked": False} for n in counts]
    following = (2, 4) if bench.quick else (5, 10, 20)
    jobs += [{"images": 1000, "following": k, "faked": True} for k in following]
    for job in jobs:
        root = bench.scratch / "growth"
        shutil.rmtree(root, ignore_errors=True)
        (root / "images").mkdir(parents=True)
        for i in range(job["images"]):
            source = bench.photos / bench.names[i % len(bench.names)]
            shutil.copy(source, root / "images" / f"{i:04d}.jpg")
        job |= {
            "root": str(root),
            "weights": bench.weights,
            "device": str(bench.matcher.info.device),
            "threads": torch.get_num_threads(),
            "cpu_time": bench.clock is time.process_time,
        }
        command = [sys.executable, __file__, "--child", json.dumps(job)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
    return rows


def growth_child(job: dict[str, Any]) -> Row:
    """One run of `growth`, in a process that does nothing else, so that its peak is known."""
    torch.set_num_threads(job["threads"])
    clock = time.process_time if job["cpu_time"] else time.perf_counter
    root = Path(job["root"])
    names = sorted(path.name for path in (root / "images").iterdir())
    pairs = ring(names, job["following"])
    matcher: Matcher = FakedMatcher()
    if not job["faked"]:
        small = Preprocessing(resize_max=256)
        matcher = EDMMatcher(EDMMatcherConfig(job["weights"], small, device=job["device"]))
    start = clock()
    summary = match_pairs(
        root / "images", pairs, matcher, root / "raw", MatchingConfig(cache_bytes=64 << 20)
    )
    matching = clock() - start
    with RawMatchReader(root / "raw") as raw:
        aggregate(raw, pairs, KeypointFiles(root / "features.h5", root / "matches.h5"), HLOC)
    total = clock() - start
    try:
        peak = _status("VmHWM")
    except OSError:  # no Linux; there this would also count what the parent had in memory
        unit = 1 if sys.platform == "darwin" else 1024
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "features": "faked" if job["faked"] else "256 px",
        "photos": len(names),
        "pairs": len(pairs),
        "encode calls": summary.encoded,
        "matching ms a pair": _ms(matching / len(pairs)),
        "keypoints ms a pair": _ms((total - matching) / len(pairs)),
        "process peak MiB": round(peak / 2**20),
    }


# --- g: order of pairs ------------------------------------------------------------------------


def orders(_: Bench) -> list[Row]:
    """Encodes with room for some images, for pair lists in a random order and in ours.

    No order needs fewer encodes than there are images; nor fewer than pairs / (room − 1), since an
    image that comes to room − 1 others can be matched with no more than those.
    """
    rng = np.random.default_rng(0)
    points = rng.random((1000, 2))
    nearest = np.argsort(((points[:, None] - points) ** 2).sum(-1), axis=1)[:, 1:21]
    edges = {tuple(sorted((i, int(j)))) for i in range(1000) for j in nearest[i]}
    lists = {
        "1,000 in a sequence, 20 partners": (
            [(i, j) for i in range(1000) for j in range(i + 1, min(1000, i + 11))],
            (20, 100),
        ),
        "1,000 on a plane, the 20 nearest": (sorted(edges), (50, 100, 200)),
        "200, all pairs": ([(i, j) for i in range(200) for j in range(i + 1, 200)], (20, 100)),
    }
    rows: list[Row] = []
    for name, (listed, rooms) in lists.items():
        label = [f"{i:04d}" for i in rng.permutation(1000)]
        pairs = [(label[i], label[j]) for i, j in rng.permutation(np.array(listed)).tolist()]
        for room in rooms:
            images = len({image for pair in pairs for image in pair})
            least = max(images, -(-len(pairs) // (room - 1)))
            encodes = count_encodes(order_pairs(pairs, room), room)
            rows.append(
                {
                    "photos": name,
                    "pairs": len(pairs),
                    "room": room,
                    "encodes, shuffled": count_encodes(pairs, room),
                    "encodes": encodes,
                    "lower bound": least,
                    "times the bound": round(encodes / least, 2),
                }
            )
    return rows


# --- h: second look and refinement ------------------------------------------------------------


def refinement_stages(bench: Bench) -> list[Row]:
    """Each stage of matching with the default settings, at two sizes."""
    photos = [bench.photos / name for name in bench.names[: 3 if bench.quick else 5]]
    settings = {"weights": bench.weights, "device": str(bench.matcher.info.device)}
    sizes = dict(
        refined_pair(photos, side, settings, bench.clock, bench.repeats) for side in (640, 1024)
    )
    return rows_of(sizes)


# --- i: other matchers --------------------------------------------------------------------------


def other_matchers(bench: Bench) -> list[Row]:
    """Ours, with and without the refinement, and the rivals at 640 × 480 px."""
    device = str(bench.matcher.info.device)
    ours: dict[str, Matcher] = {"edm-network": bench.matcher}
    size = bench.matcher.info.preprocessing
    ours["edm"] = load_matcher(weights=bench.weights, preprocessing=size, device=device)
    photos = [bench.photos / name for name in bench.names[:2]]
    return rival_times({**ours, **bench.rivals}, photos, bench.once, bench.repeats)


# --- Running ------------------------------------------------------------------------------------


SECTIONS: dict[str, tuple[str, Callable[[Bench], list[Row]]]] = {
    "a": ("One pair, stage by stage", one_pair),
    "b": ("Image sizes", image_sizes),
    "c": ("Batches", batches),
    "d": ("Structure from motion, photos to final H5 files", sfm_workload),
    "e": ("Parameters, operations, memory", sizes_of_everything),
    "f": ("Growth", growth),
    "g": ("Order of pairs", orders),
    "h": ("Second look and refinement, stage by stage", refinement_stages),
    "i": ("Other matchers", other_matchers),
}


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    listed = Path("/proc/cpuinfo")
    found = listed.is_file() and re.search(r"^model name\s*:\s*(.+)$", listed.read_text(), re.M)
    return found[1] if found else platform.processor() or "CPU"


def wide_weights(folder: Path) -> Path:
    """The full network that carries the shipped half-width weights, as a weights file."""
    small, _ = weights_module.load("edm_s")
    config = replace(CONFIGS["edm"], train_size=small.config.train_size)
    target = EDM(config).state_dict()
    state = {}
    for name, value in small.state_dict().items():
        for dim in range(value.ndim):
            if target[name].shape[dim] == 2 * value.shape[dim]:
                # inputs that are two maps, one after the other, are doubled one by one
                two = dim == 1 and (".mlp.0." in name or "merge_qr.0" in name)
                parts = value.unflatten(dim, (2 if two else 1, -1))
                value = torch.cat([parts, parts], dim + 1).flatten(dim, dim + 1)
                value = value / 2 if dim == 1 else value
        state[name] = value.contiguous()
    path = folder / "wide.safetensors"
    save_file(state, path, metadata_of(config, threshold=0.2, origin="centre"))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="the measurements, by letter; by default all")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller: 1 to 2 minutes")
    parser.add_argument("--weights", default="edm_s", help="a name, a path, or wide (see above)")
    parser.add_argument("--device", help="by default the fastest there is")
    parser.add_argument("--onnx", type=Path, help="folder of edm-hloc export, of these weights")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    parser.add_argument("--cpu-time", action="store_true", help="for a busy computer")
    parser.add_argument("--photos", type=Path, help="of one scene; default: rendered, 1024×768")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--papers", action="store_true", help="Tables 5, 6, 10, 11 and 12")
    parser.add_argument("--beside", default="sift", help="other matchers for (i), or none")
    parser.add_argument("--rival-weights", type=Path, help="folder of their weights")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(growth_child(json.loads(args.child))))
        return
    args.only = args.only or (PAPER_SECTIONS if args.papers else "".join(SECTIONS))
    if unknown := set(args.only) - SECTIONS.keys():
        parser.error(f"--only knows {', '.join(SECTIONS)}, not {', '.join(sorted(unknown))}")
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):
        _run(args, Path(name))


def _run(args: argparse.Namespace, scratch: Path) -> None:
    clock = time.process_time if args.cpu_time else time.perf_counter
    weights = str(wide_weights(scratch)) if args.weights == "wide" else args.weights
    size = Preprocessing(resize_max=640)
    matcher = EDMMatcher(EDMMatcherConfig(weights, size, device=args.device))
    if args.photos is None:
        views = 8 if args.quick else 25
        print(f"Rendering {views} photos …", flush=True)
        photos = make_photo_collection(scratch / "scene", views, (1024, 768))
    else:
        photos = args.photos
    names = sorted(p.name for p in photos.iterdir() if p.suffix.lower() in (".jpg", ".png"))
    if len(names) < 3:
        sys.exit(f"speed.py: {photos} holds {len(names)} photos (.jpg, .png); it takes at least 3.")
    others = [name for name in args.beside.split(",") if name not in ("", "none")]
    bench = Bench(
        matcher=matcher,
        naive=NaiveMatcher(matcher),
        photos=photos,
        names=names,
        repeats=2 if args.quick else 4,
        quick=args.quick,
        clock=clock,
        peak=matrix_peak(matcher.info.device, clock),
        weights=weights,
        scratch=scratch,
        rivals=make_rivals(others, args.rival_weights, 640, args.device),
        graphs=None if args.onnx is None else OnnxEDM(args.onnx, matcher.info.device),
    )
    cuda = matcher.info.device.type == "cuda"
    results: Row = {
        "machine": {
            "device": torch.cuda.get_device_name() if cuda else processor(),
            "instructions": instructions(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "gflops_of_a_matrix_product": round(bench.peak / 1e9, 1),
            "clock": "process CPU time" if args.cpu_time else "wall",
        },
        "weights": args.weights,
        "architecture": matcher.info.weights.architecture,
    }
    print(*(f"{key}: {value}" for key, value in results.items()), sep="\n")
    for letter in args.only:
        title, section = SECTIONS[letter]
        results[letter] = rows = section(bench)
        print_table(f"{letter}. {title}", rows)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    if args.papers:
        print(f"\n### As in the paper\n\n{paper_tables(results)}")


if __name__ == "__main__":
    main()
