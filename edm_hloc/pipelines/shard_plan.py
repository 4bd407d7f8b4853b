"""A plan of how the matching of pairs is spread over shards: see `pipelines/shards.py`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, make_folder, write_whole
from edm_hloc.base.h5 import DamagedH5Error, Provenance, check_keys, open_h5, reading
from edm_hloc.base.text import read_json_object
from edm_hloc.images.known import KnownPhotos
from edm_hloc.images.roots import ImageRoot, root_from_json, root_to_json
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.blocks import count_extra_encodes, cut_into_blocks
from edm_hloc.matching.engine import run_provenance
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.shards import (
    StoredPair,
    check_folder_provenance,
    check_same_provenance,
    json_provenance,
    shard_paths,
    stored_pairs,
    without_outdated,
)
from edm_hloc.matching.stored_index import StoredIndex, pairs_to_match
from edm_hloc.pairs.files import read_pairs, write_pairs
from edm_hloc.pairs.rules import Pair, names_in, unique_pairs
from edm_hloc.pipelines.plan_folder import (
    PLAN_FOLDER,
    clear_leftovers,
    number_in,
    refuse_others,
    remove_plan,
)
from edm_hloc.pipelines.shard_content import ShardContent
from edm_hloc.refinement.load import MatcherRecipe


@dataclass(frozen=True)
class ShardPlan:
    """How the pairs of a run are spread over shards; shards are numbered from 1.

    Attributes:
        folder: OUT/plan.
        image_root: folder or folders of the photos, with absolute paths.
        matcher: what the matcher is made from.
        provenance: of the raw matches.
        pairs: number of pairs of each shard.
        extra_encodes: photos that are encoded more often than once, counted each time.
        photos: number of photos.
        digests: SHA-256 of the list of pairs of each shard.
    """

    folder: Path
    image_root: ImageRoot
    matcher: MatcherRecipe
    provenance: Mapping[str, Any]
    pairs: tuple[int, ...]
    extra_encodes: int
    photos: int
    digests: tuple[str, ...]

    @property
    def raw_matches(self) -> Path:
        """The folder that `merge_shards` fills."""
        return self.folder.parent / "raw_matches"

    def list_of(self, shard: int) -> Path:
        return self.folder / f"pairs-{shard:04d}.txt"

    def work_of(self, shard: int) -> Path:
        return self.folder / f"work-{shard:04d}"

    def file_of(self, shard: int) -> Path:
        return self.folder / f"matches-{shard:04d}.h5"

    @property
    def numbers(self) -> range:
        """The numbers of all shards."""
        return range(1, len(self.pairs) + 1)

    def left(self) -> list[int]:
        """The shards that have no file yet."""
        return [k for k in self.numbers if not self.file_of(k).exists()]

    def pairs_of(self, shard: int) -> list[Pair]:
        """The pairs of a shard.

        Raises:
            EdmHlocError: there is no such shard, or its list is not the planned one.
        """
        check_number(self.folder, len(self.pairs), shard)
        pairs = read_pairs(self.list_of(shard))
        if _digest(pairs) != self.digests[shard - 1]:
            raise EdmHlocError(
                f"{self.list_of(shard)} has changed since it was planned: plan again, with "
                "--overwrite."
            )
        return pairs


def check_number(folder: Path, shards: int, shard: int) -> None:
    """Raises EdmHlocError if the plan in a folder, of so many shards, has none of this number."""
    if not 1 <= shard <= shards:
        raise EdmHlocError(f"{folder} has the shards 1 to {shards}, but not {shard}.")


def check_matcher(plan: ShardPlan, matcher: Matcher) -> None:
    """Refuses a matcher that is not the one of a plan.

    Raises:
        EdmHlocError: its settings, weights or version are others; the message names what differs.
    """
    check_same_provenance(
        plan.folder / "plan.json",
        plan.provenance,
        json_provenance(run_provenance(matcher)),
        f"Give the settings that {plan.folder} was planned with, or finish it with edm-hloc "
        "match-shard and edm-hloc merge; or remove it, and with it what was matched by it.",
    )


def check_raw_matches(folder: Path, provenance: Provenance) -> None:
    """Refuses a plan in a folder beside raw matches that its own could not be merged into.

    Raises:
        EdmHlocError: they were made with other settings; the message names what differs.
    """
    raw_matches = folder.parent / "raw_matches"
    remedy = f"Choose another output folder, or remove {raw_matches}."
    check_folder_provenance(raw_matches, provenance, remedy)


def make_plan(
    out: Path,
    image_root: ImageRoot,
    pairs: Sequence[Pair],
    matcher: Matcher,
    *,
    shards: int,
    overwrite: bool = False,
) -> ShardPlan:
    """Plans the matching of pairs in shards; a plan that is there and the same is kept.

    Args:
        out: output folder.
        image_root: folder or folders of the photos.
        pairs: names of two photos each, relative to `image_root`.
        matcher: with a recipe, from which the workers make the same. Its provenance is what the
            shards are checked against.
        shards: number of shards; fewer are made of fewer pairs.
        overwrite: replace a plan that is there, and remove what was matched by it.

    Raises:
        EdmHlocError: the matcher has no recipe; H5 files cannot tell two pairs apart; another plan
            is there, or raw matches of other settings; OUT cannot be written; as a `BusyError`: a
            worker is at work on the plan that is to be replaced.
    """
    folder = Path(out) / PLAN_FOLDER
    check_raw_matches(folder, run_provenance(matcher))
    plan, blocks = _cut(folder, image_root, pairs, matcher, shards)
    make_folder(folder)
    fits = partial(_fits, plan, blocks)
    refuse_others(folder, fits)
    with FolderLock(folder):
        there = None if overwrite else find_plan(out)
        if there is not None and _same_work(there, plan):
            return _rewritten(there, image_root)
        if there is not None and not is_merged(there):
            check_matcher(there, matcher)
            before, now = (
                f"{sum(p.pairs):,} pairs in {len(p.pairs):,} shards" for p in (there, plan)
            )
            what = "other pairs" if before == now else before
            raise EdmHlocError(
                f"{folder} holds the plan of {what}, and this one is of {now}: merge or finish it, "
                "choose another output folder, or run with --overwrite."
            )
        if overwrite or there is not None:
            remove_plan(folder)
        else:
            clear_leftovers(folder, fits)
        for shard, block in enumerate(blocks, start=1):
            write_pairs(plan.list_of(shard), block)
        _write(plan)
    return plan


def adopt_photos(plan: ShardPlan, image_root: ImageRoot) -> ShardPlan:
    """A plan that is there with the photos where they are now, if they were moved since.

    Those that are not the ones any more that were matched are told by their stamps.

    Raises:
        EdmHlocError: the folder of the plan cannot be written.
    """
    if root_to_json(image_root) == root_to_json(plan.image_root):
        return plan
    with FolderLock(plan.folder):
        return _rewritten(plan, image_root)


def _rewritten(plan: ShardPlan, image_root: ImageRoot) -> ShardPlan:
    """The plan with its photos at another place, written in its folder, which is locked."""
    plan = replace(plan, image_root=root_from_json(root_to_json(image_root)))
    _write(plan)
    return plan


def _write(plan: ShardPlan) -> None:
    place, matcher = root_to_json(plan.image_root), asdict(plan.matcher)
    values = {**vars(plan), "kind": "matching", "image_root": place, "matcher": matcher}
    del values["folder"]
    write_whole(plan.folder / "plan.json", json.dumps(values, indent=1), durable=True)


def plan_missing(
    out: Path,
    image_root: ImageRoot,
    pairs: Sequence[Pair],
    matcher: Matcher,
    *,
    shards: Callable[[int], int],
    overwrite: bool = False,
) -> ShardPlan | None:
    """`make_plan` of those pairs that OUT/raw_matches lacks, or has of photos that have changed.

    Args:
        out, image_root, pairs, matcher: see `make_plan`.
        shards: number of pairs → number of shards.
        overwrite: plan all pairs, and see `make_plan`.

    Returns:
        None where no pair is missing.

    Raises:
        EdmHlocError: see `make_plan`.
    """
    folder = Path(out) / PLAN_FOLDER
    check_raw_matches(folder, run_provenance(matcher))
    missing = pairs = unique_pairs(pairs)
    if not overwrite:
        missing = pairs_to_match(folder.parent / "raw_matches", image_root, pairs)
    if not missing:
        return None
    there = find_plan(out) if len(missing) < len(pairs) else None
    if there is not None and not is_merged(there):
        # a merge that was killed has put the first shards of the same plan there
        whole, _ = _cut(folder, image_root, pairs, matcher, shards(len(pairs)))
        if _same_work(there, whole):
            return adopt_photos(there, image_root)
    return make_plan(
        out, image_root, missing, matcher, shards=shards(len(missing)), overwrite=overwrite
    )


def _cut(
    folder: Path, image_root: ImageRoot, pairs: Sequence[Pair], matcher: Matcher, shards: int
) -> tuple[ShardPlan, list[list[Pair]]]:
    """A plan that is not written yet, and the pairs of its shards."""
    if matcher.recipe is None:
        raise EdmHlocError(f"Workers cannot make the same as {matcher}: use MatcherRecipe.load.")
    pairs = unique_pairs(pairs)
    check_keys(pairs)
    blocks = cut_into_blocks(pairs, shards)
    plan = ShardPlan(
        folder,
        root_from_json(root_to_json(image_root)),
        matcher.recipe.anywhere(),
        json_provenance(run_provenance(matcher)),
        tuple(len(block) for block in blocks),
        count_extra_encodes(blocks),
        len(names_in(pairs)),
        tuple(_digest(block) for block in blocks),
    )
    return plan, blocks


def _fits(plan: ShardPlan, blocks: Sequence[Sequence[Pair]], path: Path) -> bool:
    """Whether a file or folder of work is such as a plan has, or leads to."""
    shard = number_in(path)
    if not 1 <= shard <= len(blocks):
        return False
    block = blocks[shard - 1]
    if path == plan.list_of(shard):
        with contextlib.suppress(EdmHlocError):
            return _digest(read_pairs(path)) == plan.digests[shard - 1]
    elif path == plan.file_of(shard):
        with contextlib.suppress(EdmHlocError), open_h5(path) as h5, reading(path):
            content = ShardContent.of(h5)
            return content.provenance == plan.provenance and content.is_of(block)
    elif path == plan.work_of(shard):
        with contextlib.suppress(EdmHlocError), RawMatchReader(path) as raw:
            if not raw.pairs():  # killed before the first file of matches
                return (path / ".lock").exists()
            return raw.provenance == plan.provenance and {*raw.pairs()} <= {*block}
    return False


def is_merged(plan: ShardPlan) -> bool:
    """Whether OUT/raw_matches has all that the shards of a plan were to give."""
    if plan.left():
        return False
    there = StoredIndex(plan.raw_matches)
    with contextlib.suppress(DamagedH5Error):
        files = map(_pairs_in, _files_of_workers(plan))
        return not any(there.lacks(stored, plan.image_root) for stored in files)
    return False


def count_matched(plan: ShardPlan, image_root: ImageRoot, pairs: Sequence[Pair]) -> int:
    """How many of the pairs the workers of a plan have matched, of the photos as they are now."""
    files = list(_files_of_workers(plan))
    photos = KnownPhotos(plan.raw_matches)
    stamps = photos.stamps(image_root, names_in(pairs)) if files else {}
    left, matched = {frozenset(pair) for pair in pairs}, set()
    for file in files:
        with contextlib.suppress(DamagedH5Error):
            for pair in _pairs_in(file):
                if pair.stamps == tuple(map(stamps.get, pair.names)):
                    matched.add(frozenset(pair.names))
    return len(matched & left)


def _files_of_workers(plan: ShardPlan) -> Iterator[Path]:
    """The files of a plan's shards, and those in their folders of work."""
    for shard in plan.numbers:
        if plan.file_of(shard).exists():
            yield plan.file_of(shard)
        yield from shard_paths(plan.work_of(shard))


def _pairs_in(file: Path) -> list[StoredPair]:
    with open_h5(file) as h5, reading(file):
        return stored_pairs(h5)


class _DamagedPlanError(EdmHlocError):
    """A plan.json that cannot be read."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"{path} is damaged ({reason}): give the command that planned it again, which keeps "
            "what is done."
        )


def _values_of(out: Path) -> dict[str, Any]:
    """The content of the plan.json in an output folder."""
    path = Path(out) / PLAN_FOLDER / "plan.json"
    if not path.exists():
        raise EdmHlocError(f"There is no {path}: make one with edm-hloc plan.")
    try:
        return read_json_object(path, "plan of shards")
    except EdmHlocError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise _DamagedPlanError(path, error.__cause__ or "no object in JSON") from error


def load_plan(out: Path) -> ShardPlan:
    """The plan in an output folder.

    Raises:
        EdmHlocError: there is none, or it is damaged, or of another step than matching.
    """
    path, values = Path(out) / PLAN_FOLDER / "plan.json", _values_of(out)
    if values.get("kind", "matching") != "matching":
        raise EdmHlocError(
            f"{path} is a plan of {values['kind']}, not of matching: finish it with edm-hloc "
            "match-shard and the command that planned it, or remove its folder."
        )
    try:
        return ShardPlan(
            path.parent,
            root_from_json(values["image_root"]),
            MatcherRecipe(**values["matcher"]),
            without_outdated(dict(values["provenance"])),
            tuple(int(number) for number in values["pairs"]),
            int(values["extra_encodes"]),
            int(values["photos"]),
            tuple(str(digest) for digest in values["digests"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _DamagedPlanError(path, repr(error)) from error


def find_plan(out: Path) -> ShardPlan | None:
    """`load_plan`; None where there is none that can be read."""
    if what_is_planned(out) is None:
        return None
    with contextlib.suppress(_DamagedPlanError):
        return load_plan(out)
    return None


def what_is_planned(out: Path) -> str | None:
    """What the plan in an output folder is of: "matching" or another step.

    None without any, or where it is damaged: then it is planned again.
    """
    if not (Path(out) / PLAN_FOLDER / "plan.json").exists():
        return None
    with contextlib.suppress(_DamagedPlanError):
        return str(_values_of(out).get("kind", "matching"))
    return None


def number_of_shards(out: Path) -> int:
    """Of the plan in an output folder, whatever it is of. Raises EdmHlocError without a plan."""
    values = _values_of(out)
    return len(values.get("pairs", values.get("items", ())))


def _digest(pairs: Sequence[Pair]) -> str:
    return hashlib.sha256(json.dumps([list(pair) for pair in pairs]).encode()).hexdigest()


def _same_work(first: ShardPlan, second: ShardPlan) -> bool:
    """Whether two plans give the same raw matches in the same shards, wherever the photos are."""
    return (first.provenance, first.digests) == (second.provenance, second.digests)
