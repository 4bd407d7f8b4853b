"""Matches of the pairs of an evaluation, with the time that they take beside their accuracy."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.matches import Matches
from edm_hloc.base.text import read_json_object
from edm_hloc.images.load import load_image
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import MatchingConfig, match_pairs, run_provenance
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.shards import check_folder_provenance
from edm_hloc.pairs.rules import Pair


@dataclass(frozen=True)
class TimedMatches:
    """The raw matches of one matcher.

    Attributes:
        of: the matches of a pair in pixels of the photos at full size; None where a photo could
            not be read.
        cpu_ms: CPU time a pair in milliseconds, each photo decoded and encoded once; None where
            the matches were made without being timed.
    """

    of: Callable[[Pair], Matches | None]
    cpu_ms: float | None


def match_timed(
    images: Path,
    pairs: Sequence[Pair],
    matcher: Matcher,
    raw: Path,
    dense: MatchingConfig | None = None,
) -> TimedMatches:
    """Matches pairs into a folder of raw matches, from which an interrupted call continues.

    The time of all calls is kept in a file beside the folder. Before each of them a pair is matched
    and forgotten, so that what is done once (compiling, loading libraries) is not counted.

    Args:
        images: folder of the photos.
        pairs: names relative to `images`.
        matcher: encodes and matches them.
        raw: folder of the raw matches; the time is kept in a file of its name with `.time.json`.
        dense: memory and threads of matching.

    Raises:
        EdmHlocError: as `matching.engine.match_pairs`; of matches with other settings it says to
            remove the folder.
    """
    record = raw.with_name(f"{raw.name}.time.json")
    before = {"pairs": 0, "cpu_seconds": 0.0}
    remedy = f"Choose another output folder, or remove {raw} to match them again."
    check_folder_provenance(raw, run_provenance(matcher), remedy)
    _warm_up(images, pairs[0], matcher)
    if record.is_file():
        with contextlib.suppress(EdmHlocError, KeyError, TypeError, ValueError):
            found = read_json_object(record, "record of a time")
            before = {"pairs": int(found["pairs"]), "cpu_seconds": float(found["cpu_seconds"])}
    start = time.process_time()
    summary = match_pairs(images, pairs, matcher, raw, dense)
    if not summary.resumed:  # the record is of matches that are there no more
        before = {"pairs": 0, "cpu_seconds": 0.0}
    if summary.matched:
        before["pairs"] += summary.matched
        before["cpu_seconds"] += time.process_time() - start
        write_whole(record, json.dumps(before) + "\n")
    reader = RawMatchReader(raw)

    def of(pair: Pair) -> Matches | None:
        return reader.read(*pair) if pair in reader else None

    counted = before["pairs"]
    return TimedMatches(of, 1e3 * before["cpu_seconds"] / counted if counted else None)


def _warm_up(images: Path, pair: Pair, matcher: Matcher) -> None:
    seen = matcher.info.preprocessing
    with contextlib.suppress(EdmHlocError):  # a photo that cannot be read is reported later
        loaded = [
            load_image(
                images / name,
                resize_max=seen.resize_max,
                divisor=seen.divisor,
                grayscale=seen.grayscale,
            )
            for name in pair
        ]
        matcher.match(*(matcher.encode(image) for image in loaded))


def cpu_text(cpu_ms: float | None) -> str:
    """A CPU time a pair for a table, in milliseconds."""
    return "–" if cpu_ms is None else f"{cpu_ms:,.0f}"
