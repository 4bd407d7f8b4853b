"""Matching spread over many workers: a plan, a file of raw matches a shard, and their merge.

    OUT/plan/plan.json          photos, matcher, and what each shard holds
    OUT/plan/pairs-0001.txt …   the pairs of each shard, two names a line
    OUT/plan/work-0001/ …       raw matches of a shard that is being matched; goes when it is done
    OUT/plan/matches-0001.h5 …  raw matches of a shard, as `match_shard` leaves them
    OUT/raw_matches/            all of them after `merge_shards`, for the commands that go on

The shards do not know of each other: they are matched in any order, on any machine that sees the
photos and OUT, again after they were killed, or twice. Whatever spreads them (a shell, an array of
jobs) needs their number only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import FolderLock, make_folder, refuse_other_kinds
from edm_hloc.base.h5 import (
    AtomicH5,
    DamagedH5Error,
    open_h5,
    reading,
    store_text,
)
from edm_hloc.images.decode import check_not_mirrored, decode
from edm_hloc.images.known import KnownPhotos
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.engine import (
    MatchingConfig,
    NothingReadableError,
    match_pairs,
)
from edm_hloc.matching.left_out import read_left_out, store_left_out
from edm_hloc.matching.levels import StoredLevels, are_those_of_now
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.shards import (
    FileStamp,
    StoredPair,
    copy_pairs,
    read_matches,
    shard_number,
    shard_path,
    shard_paths,
    store_matches,
    store_pairs,
    stored_pairs,
)
from edm_hloc.matching.stored_index import StoredIndex
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.pairs.rules import Pair, names_in
from edm_hloc.pipelines.plan_folder import check_photos_seen, remove_plan
from edm_hloc.pipelines.shard_content import ShardContent
from edm_hloc.pipelines.shard_plan import ShardPlan, check_matcher, check_raw_matches

Levels = dict[str, tuple[Any, int]]
"""Black and white of 16-bit photos, see `StoredLevels`, each with the first shard that has them."""


@dataclass(frozen=True)
class ShardSummary:
    """What `match_shard` did.

    Attributes:
        pairs: pairs of the shard.
        matched: pairs matched by this call; the others were there already or were skipped.
        encoded: photos encoded by this call.
        skipped: photos that could not be read, with the reason.
        rotated: photos that were turned upright.
        matches: raw matches of the pairs matched by this call.
    """

    pairs: int
    matched: int
    encoded: int
    skipped: dict[str, str]
    rotated: tuple[str, ...] = ()
    matches: int = 0


@dataclass(frozen=True)
class MergeSummary:
    """What `merge_shards` did.

    Attributes:
        shards: number of shards.
        pairs: pairs with raw matches.
        skipped: photos that could not be read, with the reason.
        left_out: pairs at which the workers failed, with the reason.
    """

    shards: int
    pairs: int
    skipped: dict[str, str]
    left_out: dict[Pair, str] = field(default_factory=dict)


def match_shard(
    plan: ShardPlan,
    shard: int,
    matcher: Matcher,
    config: MatchingConfig | None = None,
    left_out: Mapping[Pair, str] | None = None,
) -> ShardSummary:
    """Matches the pairs of one shard into its file; goes on where an earlier call was ended.

    The file has the same bytes whichever worker makes it, and however often it was interrupted.

    Args:
        plan: see `make_plan`.
        shard: its number, from 1.
        matcher: made as the plan says.
        config: memory and threads.
        left_out: pairs that are not matched, with the reason, which the file names.

    Raises:
        EdmHlocError: no such shard; the matcher is not the planned one; this computer sees none of
            the photos; another process is at work on the same shard; see `match_pairs`.
    """
    left_out = left_out or {}
    pairs = plan.pairs_of(shard)
    check_photos_seen(plan.folder, plan.image_root, names_in(pairs))
    path, work = plan.file_of(shard), plan.work_of(shard)
    check_matcher(plan, matcher)
    if content := _up_to_date(plan, shard):
        return ShardSummary(len(pairs), 0, 0, content.skipped)
    wanted = [pair for pair in pairs if pair not in left_out]
    summary = _match_into_work(plan, shard, wanted, matcher, config)
    with (
        FolderLock(work),
        RawMatchReader(work) as raw,
        AtomicH5(path, plan.provenance) as file,
    ):
        stamped = {pair.names: pair for pair in raw.stored()}
        stored = []
        for names in wanted:
            if not summary.skipped.keys() & set(names):
                pair = stamped.get(names) or StoredPair(names)
                stored.append(store_matches(file.h5, pair, raw.read(*names)))
        store_pairs(file.h5, stored)
        store_text(file.h5, "skipped", json.dumps(summary.skipped, sort_keys=True))
        levels = json.dumps(StoredLevels(work).levels, sort_keys=True)
        store_text(file.h5, "levels", levels)
        if left_out:
            listed = [[*names, left_out[names]] for names in pairs if names in left_out]
            store_text(file.h5, "left_out", json.dumps(listed))
    shutil.rmtree(work, ignore_errors=True)
    return summary


def match_part(
    plan: ShardPlan,
    shard: int,
    part: tuple[int, int],
    matcher: Matcher,
    config: MatchingConfig | None = None,
) -> ShardSummary:
    """Matches some pairs of a shard into its folder of work, where `match_shard` finds them.

    Args:
        plan, shard, matcher, config: see `match_shard`.
        part: positions in the shard's list of the first pair, and of the one after the last.

    Raises:
        EdmHlocError: see `match_shard`.
    """
    pairs = plan.pairs_of(shard)
    check_photos_seen(plan.folder, plan.image_root, names_in(pairs))
    return _match_into_work(plan, shard, pairs[slice(*part)], matcher, config)


def is_matched(plan: ShardPlan, shard: int) -> bool:
    """Whether the file of a shard is there, so that `match_shard` has nothing to do."""
    return _up_to_date(plan, shard) is not None


def _up_to_date(plan: ShardPlan, shard: int) -> ShardContent | None:
    """The content of a shard's file; None if there is none, or if it is to be made again.

    That is so if it is damaged or of another plan, if the photos are not those any more that were
    matched, or not with the same levels, or if a photo that could not be read can be read now.
    """
    if not plan.file_of(shard).exists():
        return None
    try:
        content = _whole_shard(plan, shard)
    except DamagedH5Error:
        return None
    known = KnownPhotos(plan.raw_matches)
    now = known.stamps(plan.image_root, names_in(pair.names for pair in content.stored))
    same_photos = all(
        known.first(name, stamp) == now.get(name)
        for pair in content.stored
        for name, stamp in zip(pair.names, pair.stamps, strict=True)
    )
    if not same_photos or not are_those_of_now(content.levels):
        return None
    return None if any(is_readable(plan.image_root, name) for name in content.skipped) else content


def is_readable(root: ImageRoot, name: str) -> bool:
    """Whether this computer can read a photo."""
    try:
        path = root / name
        check_not_mirrored(path, decode(path, grayscale=True)[1])
    except ImageError:
        return False
    return True


def _match_into_work(
    plan: ShardPlan,
    shard: int,
    pairs: Sequence[Pair],
    matcher: Matcher,
    config: MatchingConfig | None,
) -> ShardSummary:
    """Matches pairs of a shard into its folder of work."""
    check_matcher(plan, matcher)
    work = plan.work_of(shard)
    outdated = not are_those_of_now(StoredLevels(work).levels)
    try:
        done = match_pairs(plan.image_root, pairs, matcher, work, config, overwrite=outdated)
    except NothingReadableError as error:
        return ShardSummary(len(pairs), 0, 0, error.skipped)
    return ShardSummary(
        len(pairs), done.matched, done.encoded, done.skipped, done.rotated, done.matches
    )


def merge_shards(plan: ShardPlan) -> MergeSummary:
    """Puts the files of all shards into OUT/raw_matches, where the other commands find them.

    Memory does not grow with the number of pairs in all, only with that of a shard.

    Raises:
        EdmHlocError: shards are missing, damaged, of other settings or of photos that have changed
            meanwhile; each is named. Or OUT/raw_matches holds matches of other settings, or of
            other levels of 16-bit photos. Nothing is merged then.
    """
    wrong: dict[int, str] = {}
    stamps = _Stamps(KnownPhotos(plan.raw_matches))
    levels: Levels = {}
    skipped: dict[str, str] = {}
    skipped_in: dict[str, int] = {}
    left_out: dict[Pair, str] = {}
    number = 0
    for shard in plan.numbers:
        try:
            content = _whole_shard(plan, shard)
            stamps.check(content.stored, shard)
            _check_levels(content.levels, levels, shard)
        except EdmHlocError as error:
            reason = error.reason if isinstance(error, DamagedH5Error) else str(error)
            wrong[shard] = reason if plan.file_of(shard).exists() else "not matched yet"
            continue
        skipped |= content.skipped
        skipped_in |= dict.fromkeys(content.skipped, shard)
        left_out |= content.left_out
        number += len(content.stored)
    for name in sorted(skipped_in.keys() & stamps.found.keys()):
        wrong[skipped_in[name]] = (
            f"the photo {name} could not be read ({skipped[name].removesuffix('.')}), but for "
            f"shard {stamps.found[name][1]} it could: match both again"
        )
    if wrong:
        listed = "\n".join(f"  {shard}: {reason}" for shard, reason in list(wrong.items())[:20])
        more = f"\n  … and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise EdmHlocError(
            f"{len(wrong)} of {len(plan.pairs)} shards cannot be merged; match them (again) with "
            f"edm-hloc match-shard:\n{listed}{more}"
        )
    _put_together(plan, map(plan.file_of, plan.numbers), levels, left_out)
    return MergeSummary(len(plan.pairs), number, skipped, left_out)


def end_plan(plan: ShardPlan, *, merge: bool = True) -> None:
    """Puts all pairs that are matched into OUT/raw_matches, and removes the plan.

    Pairs of shards that were interrupted are among them.

    Args:
        plan: see `make_plan`.
        merge: False to discard what was matched.

    Raises:
        EdmHlocError: OUT/raw_matches holds matches of other settings, or the levels of 16-bit
            photos differ; another process is at work on a shard; or a file cannot be written.
    """
    files: list[Path] = []
    levels: Levels = {}
    left_out: dict[Pair, str] = {}
    for shard in plan.numbers if merge else ():
        found: list[dict[str, Any]] = []
        with contextlib.suppress(EdmHlocError):
            content = _whole_shard(plan, shard)
            files.append(plan.file_of(shard))
            left_out |= content.left_out
            found.append(content.levels)
        work = plan.work_of(shard)
        if work.exists():
            # which puts what a killed worker has left in its journal into a file
            RawMatchWriter(work, plan.provenance).close()
            files += shard_paths(work)
            found.append(StoredLevels(work).levels)
        try:
            for some in found:
                _check_levels(some, levels, shard)
        except EdmHlocError as error:
            raise EdmHlocError(
                f"Shard {shard} in {plan.folder} does not belong to the others, as {error}: match "
                f"both again with edm-hloc match-shard, or remove {plan.folder}."
            ) from error
    if files:
        _put_together(plan, files, levels, left_out)
    with FolderLock(plan.folder):
        remove_plan(plan.folder)


def _put_together(
    plan: ShardPlan, files: Iterable[Path], levels: Levels, left_out: Mapping[Pair, str]
) -> None:
    """Puts files of matches into OUT/raw_matches, but for those pairs that it has already."""
    make_folder(plan.raw_matches)
    with FolderLock(plan.raw_matches):
        check_raw_matches(plan.folder, plan.provenance)
        StoredLevels(plan.raw_matches).add({name: values for name, (values, _) in levels.items()})
        present = StoredIndex(plan.raw_matches)
        paths = shard_paths(plan.raw_matches)
        following = shard_number(paths[-1]) + 1 if paths else 0
        left_out = read_left_out(plan.raw_matches) | dict(left_out)
        matched_since = present.are_of_now(list(left_out), plan.image_root)
        left_out = dict(itertools.compress(left_out.items(), ~matched_since))
        store_left_out(plan.raw_matches, left_out)
        for file in files:
            with open_h5(file) as h5, reading(file):
                stored = stored_pairs(h5)
                wanted = present.lacks(stored, plan.image_root)
                target = shard_path(plan.raw_matches, following)
                if 0 < len(wanted) < len(stored):
                    copy_pairs(h5, wanted, target)
            if wanted and len(wanted) == len(stored):
                _put(file, target)
            following += bool(wanted)
            matched = {frozenset(pair.names) for pair in stored} if left_out else ()
            left_out = {pair: why for pair, why in left_out.items() if {*pair} not in matched}
        store_left_out(plan.raw_matches, left_out)


def _whole_shard(plan: ShardPlan, shard: int) -> ShardContent:
    """The content of a shard's file, once it is known that its pairs are there and whole.

    Raises:
        DamagedH5Error: it is damaged, of other settings or of other pairs.
        EdmHlocError: there is none, or its list of pairs is not the planned one.
    """
    path = plan.file_of(shard)
    with open_h5(path) as h5, reading(path):
        content = ShardContent.of(h5)
        if content.provenance != plan.provenance:
            raise DamagedH5Error(path, "it was matched with other settings")
        for pair in content.stored:
            read_matches(h5, pair)
    if not content.is_of(plan.pairs_of(shard)):
        raise DamagedH5Error(path, "it holds other pairs than those planned")
    return content


@dataclass
class _Stamps:
    """The stamps that photos had in the shards, each with the first shard that has it."""

    known: KnownPhotos
    found: dict[str, tuple[FileStamp | None, int]] = field(default_factory=dict)

    def check(self, stored: Sequence[StoredPair], shard: int) -> None:
        """Refuses photos that were other files in earlier shards."""
        for pair in stored:
            for name, stamp in zip(pair.names, pair.stamps, strict=True):
                stamp = self.known.first(name, stamp)
                before, earlier = self.found.setdefault(name, (stamp, shard))
                if before != stamp:
                    raise EdmHlocError(
                        f"the photo {name} was another file (size or time of change) for shard "
                        f"{earlier}"
                    )


def _check_levels(found: dict[str, Any], levels: Levels, shard: int) -> None:
    """Refuses 16-bit photos whose black and white were not the same in all shards; fills `levels`.

    They depend on all photos of a folder, which may have been added to between two shards.
    """
    for folder, values in found.items():
        before, earlier = levels.setdefault(folder, (values, shard))
        if before != values:
            raise EdmHlocError(
                f"black and white of the photos in {folder} were other values for shard {earlier}"
            )


def _put(source: Path, target: Path) -> None:
    """Puts a file beside others under its final name, without a copy where that is possible."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        refuse_other_kinds(target)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    except OSError as error:
        raise EdmHlocError(f"Cannot write {target}: {error.strerror or error}.") from error
