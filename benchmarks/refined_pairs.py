"""The part of speed.py that measures what the second look and the refinement cost, by stage."""

from __future__ import annotations

import contextlib
import itertools
import platform
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from edm_hloc.images.load import load_image
from edm_hloc.matchers.base import Preprocessing
from edm_hloc.refinement import (
    batched_growing,
    batched_refinement,
    corner_matches,
    growing,
    matcher,
)
from edm_hloc.refinement.load import load_matcher
from edm_hloc.refinement.matcher import RefinedMatcher

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def instructions() -> str:
    """Which of the instructions that matter for speed the CPU has, as Linux names them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()}, PyTorch uses {torch.backends.cpu.get_cpu_capability()}"
    words = {w for line in lines if line.startswith(("flags", "Features")) for w in line.split()}
    return ", ".join(name for name in _INSTRUCTIONS if name in words) or "none of note"


class Stages:
    """Seconds spent in functions, without those spent in others of them that they call."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._clock = clock
        self._inner = [0.0]

    @contextlib.contextmanager
    def timed(self, functions: Sequence[tuple[Any, str, str]]) -> Iterator[None]:
        """Within this context functions are timed, given as (owner, attribute, stage)."""
        with contextlib.ExitStack() as stack:
            for owner, attribute, stage in functions:
                original = getattr(owner, attribute)
                setattr(owner, attribute, self._timed(original, stage))
                stack.callback(setattr, owner, attribute, original)
            yield

    def _timed(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def call(*args: Any, **settings: Any) -> Any:
            self._inner.append(0.0)
            start = self._clock()
            result = function(*args, **settings)
            whole = self._clock() - start
            self.seconds[stage] += whole - self._inner.pop()
            self._inner[-1] += whole
            return result

        return call


@torch.inference_mode()
def refined_pair(
    photos: Sequence[Path],
    size: int,
    settings: dict[str, Any],
    clock: Callable[[], float],
    repeats: int,
) -> tuple[str, dict[str, float]]:
    """The size of the network's input, and seconds of each stage for an image or a pair.

    Of each stage the fastest of some repeats counts. On a GPU pairs go through in batches.

    Args:
        photos: of one size; each is matched with the next one. The mean over the pairs counts.
        size: longest side of the network's input in pixels.
        settings: of the matcher.
        clock: seconds.
        repeats: of all.
    """
    refined = load_matcher(**settings, preprocessing=Preprocessing(resize_max=size))
    assert isinstance(refined, RefinedMatcher)
    assert refined.second_look is not None
    network = refined.network
    p = refined.info.preprocessing
    images = [load_image(x, resize_max=p.resize_max, divisor=p.divisor) for x in photos]
    features = [refined.encode(image) for image in images]
    plain = [network.encode(image) for image in images]
    pairs = list(zip(range(len(images)), range(1, len(images)), strict=False))
    batches = [[pair] for pair in pairs]
    homes: tuple[Any, Any, Any] = matcher, corner_matches, growing
    if refined.batched:
        batches = [list(itertools.islice(itertools.cycle(pairs), refined.info.batch_size))]
        homes = batched_refinement, batched_refinement, batched_growing
        clock = _synchronised(clock)
    count = sum(map(len, batches))
    stages_home, corners_home, growing_home = homes
    timed = [
        (network, "match_pixels", "network"),
        (refined.second_look, "improve", "second look"),
        (matcher, "without_twins", "repeated structure"),
        (stages_home, "neighbour_support", "support of neighbours"),
        (corners_home, "local_affine_maps", "local affine maps"),
        (growing_home, "local_affine_maps", "local affine maps"),
        (corners_home, "align", "alignment"),
        (growing_home, "align", "alignment"),
        (stages_home, "grow", "region growing, the rest of it"),
    ]
    calls: dict[str, Callable[[], object]] = {
        "encode, --refine none": lambda: network.encode_batch(images),
        "encode": lambda: refined.encode_batch(images),
        "a pair, --refine none": lambda: [
            network.match_pixels([(plain[a], plain[b]) for a, b in batch]) for batch in batches
        ],
        "a pair": lambda: [
            refined.match_pixels([(features[a], features[b]) for a, b in batch])
            for batch in batches
        ],
    }
    best: dict[str, float] = {}
    for call in calls.values():
        call()  # loops are compiled, buffers made
    for _ in range(repeats):
        found: dict[str, float] = {}
        for name, call in calls.items():
            number = len(images) if name.startswith("encode") else count
            start = clock()
            call()
            found[name] = (clock() - start) / number
        stages = Stages(clock)
        with stages.timed(timed):
            start = clock()
            calls["a pair"]()
            whole = clock() - start
        found |= {stage: seconds / count for stage, seconds in stages.seconds.items()}
        found["everything else"] = (whole - sum(stages.seconds.values())) / count
        for name, seconds in found.items():
            best[name] = min(best.get(name, seconds), seconds)
    height, width = images[0].tensor.shape[1:]
    return f"{width}×{height}", best


def _synchronised(clock: Callable[[], float]) -> Callable[[], float]:
    """The clock after all that a GPU has to do is done."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return clock()

    return now


def rows_of(sizes: dict[str, dict[str, float]]) -> list[dict[str, object]]:
    """Rows of a table: a stage's milliseconds at each size; then the ratios to `--refine none`."""
    names = list(dict.fromkeys(name for seconds in sizes.values() for name in seconds))
    rows: list[dict[str, object]] = [
        {"stage": name}
        | {f"{size}, ms": round(1e3 * s.get(name, 0.0), 2) for size, s in sizes.items()}
        for name in names
    ]
    for what in ("encode", "a pair"):
        ratios = {
            f"{size}, ms": f"{s[what] / s[f'{what}, --refine none']:.2f} ×"
            for size, s in sizes.items()
        }
        rows.append({"stage": f"{what}, of --refine none", **ratios})
    return rows
