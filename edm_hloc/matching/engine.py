"""Matches a list of image pairs: each image is encoded once, as far as memory allows."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import check_keys
from edm_hloc.base.progress import say, track
from edm_hloc.base.settings import check_range
from edm_hloc.base.text import format_duration
from edm_hloc.base.threads import single_core_pool
from edm_hloc.base.version import __version__
from edm_hloc.images.known import KnownPhotos, warn_of_changed
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.batches import MatchingQueue
from edm_hloc.matching.cache import FeatureCache
from edm_hloc.matching.encoding import Encoder
from edm_hloc.matching.levels import StoredLevels, forget_levels
from edm_hloc.matching.loading import ImageLoader
from edm_hloc.matching.schedule import order_pairs
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair, names_in, unique_pairs

_LOAD_THREADS = 2  # that decode and resize photos
_LOAD_AHEAD = 8  # photos at most that are loaded before the network needs them
_ENCODING = 0.4  # of the time of a pair, for a photo: docs/speed.md, by stages
_FORECAST_AFTER = 5.0  # seconds of matching, the compilation at the first pair not counted
_WORTH_SAYING = 30.0  # seconds: what takes no longer needs no forecast


@dataclass(frozen=True)
class MatchingConfig:
    """Memory and threads of `match_pairs`. Nothing here changes the matches.

    Attributes:
        cache_bytes: memory for features of encoded images on the matcher's device, in bytes.
        host_cache_bytes: memory of a GPU's host for features that do not fit on the GPU, in bytes.
        workers: number of processes that match side by side, each with these limits; only the
            pipelines start them (see `pipelines/workers.py`), in a script of one's own below
            ``if __name__ == "__main__":``. With `ray`, 0 is as many as there is room for.
        ray: address of the Ray cluster whose actors match, or "local" for one that is started on
            this computer; None for processes of this computer.
        device: where the networks of Ray's actors run; None for their GPUs if there are any.
        shards: number of shards in which a pipeline plans its steps for other processes, see
            `pipelines/spreading.py`; 0 to do everything itself.
        shown: whether progress is shown.

    Raises:
        EdmHlocError: a number is out of its range.
    """

    cache_bytes: int = 2 << 30
    host_cache_bytes: int = 4 << 30
    workers: int = 1
    ray: str | None = None
    device: str | None = None
    shards: int = 0
    shown: bool = True

    def __post_init__(self) -> None:
        for name, least, below in (
            ("cache_bytes", 0, math.inf),
            ("host_cache_bytes", 0, math.inf),
            ("workers", 1 if self.ray is None else 0, 1000),
            ("shards", 0, 10**6),
        ):
            check_range(f"MatchingConfig.{name}", getattr(self, name), least, below)


@dataclass(frozen=True)
class MatchingSummary:
    """What `match_pairs` did.

    Attributes:
        matched: pairs matched by this call.
        resumed: pairs that an earlier call had stored already.
        encoded: images encoded, counted again each time.
        images: distinct images among the pairs that were to be matched.
        skipped: photos that could not be read, with the reason.
        skipped_pairs: pairs left out because of them.
        rotated: photos that were turned upright by their EXIF orientation.
        matches: raw matches of all pairs matched by this call.
        seconds: wall-clock time.
        levels: of photos of more than 8 bits the values that were black and white, by folder and
            type of the files; None where the values fill their range.
        left_out: pairs that were not matched since workers failed at them, with the reason.
    """

    matched: int
    resumed: int
    encoded: int
    images: int
    skipped: dict[str, str]
    skipped_pairs: int
    rotated: tuple[str, ...]
    matches: int
    seconds: float
    levels: dict[str, list[float] | None] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def followed_by(self, later: MatchingSummary) -> MatchingSummary:
        """What two calls did together, of which the later one's pairs count as resumed or not."""
        return MatchingSummary(
            matched=self.matched + later.matched,
            resumed=self.resumed + later.resumed,
            encoded=self.encoded + later.encoded,
            images=max(self.images, later.images),
            skipped=self.skipped | later.skipped,
            skipped_pairs=self.skipped_pairs + later.skipped_pairs,
            rotated=tuple(sorted({*self.rotated, *later.rotated})),
            matches=self.matches + later.matches,
            seconds=self.seconds + later.seconds,
            levels=self.levels | later.levels,
            left_out=tuple(dict.fromkeys((*self.left_out, *later.left_out))),
        )


class NothingReadableError(EdmHlocError):
    """Nothing was matched, since of each pair a photo cannot be read.

    Attributes:
        skipped: these photos, with the reason.
    """

    def __init__(self, message: str, skipped: dict[str, str]) -> None:
        super().__init__(message)
        self.skipped = skipped


def run_provenance(matcher: Matcher) -> dict[str, str | int | float | bool | None]:
    """The settings that the raw matches of given photos depend on, as they are stored with them."""
    return {"edm_hloc": __version__, "upright_photos": True, **matcher.provenance}


def match_pairs(
    image_root: ImageRoot,
    pairs: Sequence[Pair],
    matcher: Matcher,
    raw_directory: Path,
    config: MatchingConfig | None = None,
    *,
    overwrite: bool = False,
) -> MatchingSummary:
    """Matches pairs of photos and stores the raw matches.

    Pairs that are stored already are not matched again, so an interrupted call is resumed by
    calling it again. Photos that cannot be read are skipped together with their pairs.

    Args:
        image_root: folder or folders of the photos.
        pairs: names of photos relative to `image_root`; repeated pairs are matched once, in
            whichever order, and a photo is not matched with itself.
        matcher: encodes and matches the images.
        raw_directory: folder of the raw matches, made if missing (see `shards.py`).
        config: memory and threads; None is the default `MatchingConfig`.
        overwrite: delete raw matches of earlier calls first.

    Raises:
        EdmHlocError: H5 files cannot tell two of the pairs apart; the folder holds raw matches
            made with other settings or other levels of 16-bit photos, another process writes into
            it, it cannot be written; as a `NothingReadableError`: of each pair a photo cannot be
            read.
    """
    config = config or MatchingConfig()
    start = time.monotonic()
    pairs = unique_pairs(pairs)
    check_keys(pairs)
    stamps = KnownPhotos(raw_directory).stamps(image_root, names_in(pairs))
    with RawMatchWriter(
        raw_directory, run_provenance(matcher), stamps, overwrite=overwrite
    ) as writer:
        todo = [pair for pair in pairs if pair not in writer]
        warn_of_changed(writer.changed)
        if overwrite:
            forget_levels(raw_directory)
        levels = StoredLevels(raw_directory)
        loader = ImageLoader(
            image_root,
            matcher.info.preprocessing,
            levels,
            threads=_LOAD_THREADS,
            ahead=_LOAD_AHEAD,
        )
        with loader, _workers(matcher) as pool:
            queue, encoder = MatchingQueue(matcher, writer, pool), Encoder(matcher, loader, pool)
            _match(todo, matcher, encoder, queue, config)
            _try_others(pairs, loader)
        summary = MatchingSummary(
            matched=queue.num_pairs,
            resumed=len(pairs) - len(todo),
            encoded=encoder.num_images,
            images=len(names_in(todo)),
            skipped=loader.skipped,
            skipped_pairs=len(todo) - queue.num_pairs,
            rotated=tuple(sorted(loader.rotated)),
            matches=queue.num_matches,
            levels=levels.levels,
            seconds=time.monotonic() - start,
        )
    if not summary.matched and not summary.resumed and summary.skipped:
        name, reason = next(iter(summary.skipped.items()))
        raise NothingReadableError(
            f"No pair is left to match, as photos in {image_root} cannot be read; the first, "
            f"{name}: {reason}",
            summary.skipped,
        )
    return summary


def _try_others(pairs: Sequence[Pair], loader: ImageLoader) -> None:
    """Loads photos whose partners all cannot be read, so that those like them are named as well."""
    if not loader.skipped:
        return
    readable = set(names_in([pair for pair in pairs if loader.can_read(pair)]))
    for name in names_in(pairs):
        if name not in readable and name not in loader.skipped and name not in loader.shapes:
            loader.get(name)


@contextlib.contextmanager
def _workers(matcher: Matcher) -> Iterator[ThreadPoolExecutor | None]:
    """The threads that encode and match, each with a single core; None if it is the caller's.

    On a CPU all work on a photo or a pair is done by one core, however many there are: a network
    rounds differently with another number of threads, and what a run computes may not depend on
    the computer that continues it.
    """
    threads = matcher.info.threads
    if threads == 1:
        yield None
        return
    pool = single_core_pool(threads, "match")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _match(
    pairs: list[Pair],
    matcher: Matcher,
    encoder: Encoder,
    queue: MatchingQueue,
    config: MatchingConfig,
) -> None:
    """Matches and stores pairs."""
    # The size of the first pair's features tells how many images fit in memory, on which the order
    # of the pairs depends.
    first = next((f for pair in pairs if (f := encoder.encode(pair))), {})
    size = max((features.nbytes for features in first.values()), default=config.cache_bytes)
    memory = config.cache_bytes
    if any(matcher.to_host(features) is not None for features in first.values()):
        memory += config.host_cache_bytes
    pairs = order_pairs(pairs, max(2, memory // max(1, size)))
    cache = FeatureCache(
        matcher, pairs, device_bytes=config.cache_bytes, host_bytes=config.host_cache_bytes
    )
    for name, features in first.items():
        cache.add(name, features, keep=tuple(first))
    # A GPU encodes several photos at a time; they may take a quarter of its cache.
    together = min(matcher.info.batch_size, config.cache_bytes // max(1, 4 * size))
    forecast = _Forecast(pairs, shown=config.shown)
    for position, pair in enumerate(track(pairs, "Matching", "pair", shown=config.shown)):
        forecast.say(queue.num_pairs, encoder.num_images)
        encoder.prepare(pairs[position : position + 4 * _LOAD_AHEAD], cache)
        new = encoder.encode(pair, cache, together)
        if new is not None:
            for name, features in new.items():
                cache.add(name, features, keep=pair)
            both = cache.get(pair[0], keep=pair), cache.get(pair[1], keep=pair)
            queue.add(pair, encoder.shapes_of(pair), both)
        cache.finished(position, pair)
    queue.finish()


class _Forecast:
    """Says early how long many pairs are going to take, by the pace of the first ones.

    The first pairs need more photos encoded than later ones do, which the lines of the progress do
    not take into account.
    """

    def __init__(self, pairs: Sequence[Pair], *, shown: bool) -> None:
        self._pairs, self._photos = len(pairs), len(names_in(pairs))
        self._done = not shown
        self._start: tuple[float, float] | None = None  # when the first pair was stored: time, work

    def say(self, pairs: int, photos: int) -> None:
        """Says it once, when enough pairs are stored and photos encoded."""
        if self._done or not pairs:
            return
        work, now = pairs + _ENCODING * photos, time.monotonic()
        if self._start is None:
            self._start = now, work
            return
        seconds, done = now - self._start[0], work - self._start[1]
        if seconds < _FORECAST_AFTER or not done:
            return
        self._done = True
        left = (self._pairs + _ENCODING * self._photos - work) * seconds / done
        if left > _WORTH_SAYING:
            say(
                f"Matching {self._pairs:,} pairs of {self._photos:,} photos is going to take about "
                f"{format_duration(left)} at the pace of the first {pairs}"
            )
