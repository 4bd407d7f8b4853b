"""The step that chooses pairs while it matches them (see `pairs/automatic.py`).

OUT/pairs-automatic10.txt   pairs that were matched, with the number of their matches that agree
OUT/pairs-automatic10.json  the photos among which they were chosen, and how these were compared
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.h5 import DamagedH5Error
from edm_hloc.base.journal import journal_path
from edm_hloc.base.progress import say, track
from edm_hloc.base.text import filled_lines
from edm_hloc.images.capture import read_capture
from edm_hloc.images.find import image_stamps
from edm_hloc.images.known import KnownPhotos
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.connections import agreeing_matches
from edm_hloc.matching.damage import drop_damaged
from edm_hloc.matching.engine import (
    MatchingConfig,
    MatchingSummary,
    run_provenance,
)
from edm_hloc.matching.masked import MaskedMatchReader, NotOfScene
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.shards import shard_paths
from edm_hloc.pairs.automatic import ROUNDS, AutomaticPairs
from edm_hloc.pairs.neighbours import near_in_space, near_in_time
from edm_hloc.pairs.retrieval import SimilarPhotos
from edm_hloc.pairs.rules import Pair, unique_pairs
from edm_hloc.pipelines.matching import PairsToMatch, find_backgrounds, find_pairs, mask_stamps
from edm_hloc.pipelines.retrieval import pairs_of_missing, ranked_photos
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.spreading import spread_matching
from edm_hloc.pipelines.workers import match_in_processes

CONNECTED = 50
"""Number of agreeing matches from which a pair counts as connected."""


@dataclass(frozen=True)
class PairsSummary:
    """What was chosen.

    Attributes:
        photos: number of photos.
        rounds: number of pairs that were added in each round.
        connected: number of pairs whose matches agree.
        near: number of pairs of neighbours in time and space among the first.
    """

    photos: int
    rounds: tuple[int, ...]
    connected: int
    near: int


@dataclass(frozen=True)
class ChosenFrom:
    """What pairs are chosen from, recorded with them: only photos that it names need no new pairs.

    Attributes:
        retrieval: how photos are compared, and the stamp of a given file of descriptors.
        photos: of each photo the stamps of its file and of its mask.
    """

    retrieval: list[Any]
    photos: Mapping[str, list[Any]]

    @classmethod
    def read(cls, path: Path) -> ChosenFrom | None:
        """The record of an earlier run; None if it left none that can be read."""
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def unchanged(self, now: ChosenFrom) -> set[str]:
        """Names of the photos that are as they were."""
        return {name for name, stamps in self.photos.items() if now.photos.get(name) == stamps}


@dataclass(frozen=True)
class PairRounds:
    """The choice of pairs in one run.

    Attributes:
        run: the run in whose folder the files go.
        pairs: the pairs themselves, or the photos among which they are to be found.
        image_root: their folder.
        masks: as for `match_and_quantize`.
        matcher: finds the matches.
    """

    run: Run
    pairs: Sequence[Pair] | SimilarPhotos
    image_root: Path
    masks: Mapping[str, Path]
    matcher: Matcher

    def find(self, matching: MatchingConfig, *, overwrite: bool = False) -> PairsToMatch:
        """The pairs to match; those of `AutomaticPairs` are matched to be found.

        Pairs that an earlier run chose among photos that are still there, with the same content,
        stay. Where it compared photos in the same way, only those of new photos are added.

        Args:
            matching: memory and threads.
            overwrite: match every pair again.

        Raises:
            EdmHlocError: as `match_pairs`, or the descriptors cannot be computed.
        """
        if isinstance(self.pairs, AutomaticPairs):
            listed, chosen = self._in_rounds(self.pairs, matching, overwrite)
            return PairsToMatch(self.image_root, listed, self.masks, chosen=chosen)
        if self.run.results.pop("pairs", None) is not None:  # of an earlier run that chose them
            self.run.done.pop("pairs", None)  # chosen again, they are found and counted again
        listed = find_pairs(self.run, self.pairs, self.image_root, self.matcher)
        return PairsToMatch(self.image_root, listed, self.masks)

    def _in_rounds(
        self, photos: AutomaticPairs, matching: MatchingConfig, overwrite: bool
    ) -> tuple[Sequence[Pair], MatchingSummary | None]:
        """The pairs, and what was matched; None where an earlier run has chosen all of them."""
        path = self.run.out / f"pairs-automatic{photos.partners}.txt"
        chosen_from = self._chosen_from(photos)
        summaries: list[MatchingSummary] = []

        def choose() -> dict[str, Any]:
            if overwrite:
                journal_path(path).unlink(missing_ok=True)
            first, near, ranked, before = self._first(photos, path, chosen_from)
            raw = self.run.out / "raw_matches"
            rounds: list[dict[Pair, int]] = []  # agreeing matches of the pairs of each
            new = first
            not_scene: NotOfScene | None = None

            def checked() -> dict[Pair, int]:
                nonlocal not_scene
                with MaskedMatchReader(raw, self.masks, self.image_root) as reader:
                    if not rounds:  # it has pairs of all photos
                        not_scene = find_backgrounds(reader, new).in_background
                    reader.not_scene = not_scene
                    return _agreeing(reader, new)

            while new and len(rounds) < ROUNDS:
                again = overwrite and not rounds
                spread_matching(self.run, self.image_root, new, self.matcher)
                done = match_in_processes(
                    self.image_root, new, self.matcher, raw, matching, overwrite=again
                )
                summaries.append(done)
                try:
                    rounds.append(checked())
                except DamagedH5Error:
                    drop_damaged(raw)
                    match_in_processes(self.image_root, new, self.matcher, raw, matching)
                    rounds.append(checked())
                skipped = {name for summary in summaries for name in summary.skipped}
                tried = [{pair: n >= CONNECTED for pair, n in pairs.items()} for pairs in rounds]
                new = _with_new_photo(photos.further(ranked, tried, skipped), before)
                if new and len(rounds) < ROUNDS:
                    say(f"Pairs: {len(new):,} more, of photos that have few partners so far")
            agree = {pair: number for pairs in rounds for pair, number in pairs.items()}
            lines = (f"{a}\t{b}\t{number}\n" for (a, b), number in agree.items())
            write_whole(path, "".join(lines))
            write_whole(_record_of(path), json.dumps(asdict(chosen_from)))
            journal_path(path).unlink(missing_ok=True)
            connected = sum(number >= CONNECTED for number in agree.values())
            sizes = tuple(map(len, rounds))
            return {"pairs": PairsSummary(len(photos.names), sizes, connected, near)}

        depends_on = [asdict(chosen_from), asdict(photos), run_provenance(self.matcher)]
        self.run.step("pairs", depends_on, [path, _record_of(path)], choose)
        if summaries:  # the time of the matching is recorded as such
            self.run.seconds["pairs"] -= sum(summary.seconds for summary in summaries)
        total = summaries[0] if summaries else None
        for summary in summaries[1:]:
            assert total is not None
            total = total.followed_by(summary)
        return _read(path), total

    def _chosen_from(self, photos: AutomaticPairs) -> ChosenFrom:
        """What the pairs are chosen from in this run."""
        raw = self.run.out / "raw_matches"
        stamps = KnownPhotos(raw).noted(self.image_root, photos.names)
        how = Path(photos.options.how)
        given = image_stamps(how.parent, [how.name]) if photos.options.is_file else {}
        masked = mask_stamps(raw, self.masks)
        return ChosenFrom(
            [asdict(photos.options), *map(list, given.values())],
            {name: [*stamp, *masked.get(name, [])] for name, stamp in stamps.items()},
        )

    def _first(
        self, photos: AutomaticPairs, path: Path, chosen_from: ChosenFrom
    ) -> tuple[list[Pair], int, dict[str, list[str]], set[str]]:
        """The pairs of the first round, the number of neighbours, similar photos by name.

        And the photos among which an earlier run has chosen all pairs.
        """
        names = photos.names
        ranked = ranked_photos(self.run, photos, self.image_root, self.matcher)
        captures = {
            name: read_capture(self.image_root / name)
            for name in track(names, "Reading photo headers", "photo")
        }
        near = unique_pairs([*near_in_time(names, captures), *near_in_space(names, captures)])
        kept = [pair for pair in self._matched_before(path) if set(names).issuperset(pair)]
        before: set[str] = set()
        earlier = ChosenFrom.read(_record_of(path)) if path.is_file() else None
        if earlier is not None:
            same = earlier.unchanged(chosen_from)
            kept = [pair for pair in kept if same.issuperset(pair)]
            if earlier.retrieval == chosen_from.retrieval:
                before = {name for pair in kept for name in pair}
        first = photos.first(ranked, [*near, *pairs_of_missing(names, ranked)])
        pairs = unique_pairs([*kept, *_with_new_photo(first, before)])
        every = len(names) * (len(names) - 1) // 2
        neighbours = " and with its neighbours in time and space" if near else ""
        of_before = f"; {len(kept):,} of them are of an earlier run" if kept else ""
        say(
            f"Pairs: {len(pairs):,} first of the {every:,} that {len(names)} photos have: each "
            f"photo with those that look like it{neighbours}{of_before}; more where photos are "
            f"left with few partners. --partners N ({photos.partners} now) gives more or fewer, "
            "--pairs exhaustive all."
        )
        return pairs, len(near), ranked, before

    def _matched_before(self, path: Path) -> list[Pair]:
        """The pairs of an earlier run into the same folder, of photos that may be gone.

        Where it chose another number of partners, those are left out that it does not share. They
        are noted in a journal: what an interrupted choice has matched is not of an earlier run, and
        the rounds are the same as if it had not been interrupted.
        """
        if path.is_file():
            return _read(path)
        journal = journal_path(path)
        if journal.is_file():
            return _read(journal)
        raw = self.run.out / "raw_matches"
        pairs: list[Pair] = []
        if not any(self.run.out.glob("pairs-automatic*.txt")) and shard_paths(raw):
            with RawMatchReader(raw) as reader:
                pairs = reader.pairs()
        write_whole(journal, "".join(f"{a}\t{b}\t0\n" for a, b in pairs))
        return pairs


def _agreeing(reader: RawMatchReader, pairs: Sequence[Pair]) -> dict[Pair, int]:
    """The number of agreeing matches of each pair; 0 of those with a photo left out."""
    return {
        pair: agreeing_matches(reader.read(*pair)) if pair in reader else 0
        for pair in track(pairs, "Checking pairs", "pair")
    }


def _record_of(path: Path) -> Path:
    """Where it is recorded what the pairs of a file of this step were chosen from."""
    return path.with_suffix(".json")


def _with_new_photo(pairs: Iterable[Pair], before: set[str]) -> list[Pair]:
    """The pairs with at least one photo that was not there before."""
    return [pair for pair in pairs if not before.issuperset(pair)]


def _read(path: Path) -> list[Pair]:
    """The pairs of a file of this step.

    Raises:
        EdmHlocError: it cannot be read or is damaged.
    """
    pairs = []
    for _, line in filled_lines(path, "chosen pairs"):
        words = line.split("\t")
        if len(words) != 3:
            raise EdmHlocError(f"{path} is damaged: remove it, then run again.")
        pairs.append((words[0], words[1]))
    return pairs
