"""A plan of how the matching of pairs is spread over shards: see `pipelines/shards.py`."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from edm_hloc.base.errors import BusyError, EdmHlocError
from edm_hloc.base.files import FolderLock, make_folder, write_whole
from edm_hloc.base.h5 import Provenance, check_keys
from edm_hloc.base.text import read_json_object
from edm_hloc.images.roots import ImageRoot, root_from_json, root_to_json
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.blocks import count_extra_encodes, cut_into_blocks
from edm_hloc.matching.engine import run_provenance
from edm_hloc.matching.shards import (
    check_folder_provenance,
    check_same_provenance,
    json_provenance,
    without_outdated,
)
from edm_hloc.pairs.files import read_pairs, write_pairs
from edm_hloc.pairs.rules import Pair, names_in, unique_pairs
from edm_hloc.refinement.load import MatcherRecipe

PLAN_FOLDER = "plan"
"""Name of the folder of a plan in the output folder."""

_FILES = re.compile(
    r"(pairs-\d{4,}\.txt|matches-\d{4,}\.h5|items-\d{4,}\.json|input-\d{4,}\.h5"
    r"|results-\d{4,}\.part|work-\d{4,}|fetched_from\.txt)"
)


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

    def left(self) -> list[int]:
        """The shards that have no file yet."""
        return [k for k in range(1, len(self.pairs) + 1) if not self.file_of(k).exists()]

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
    if matcher.recipe is None:
        raise EdmHlocError(f"Workers cannot make the same as {matcher}: use MatcherRecipe.load.")
    pairs = unique_pairs(pairs)
    check_keys(pairs)
    folder = Path(out) / PLAN_FOLDER
    check_raw_matches(folder, run_provenance(matcher))
    make_folder(folder)
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
    with FolderLock(folder):
        if (folder / "plan.json").exists():
            if not overwrite and _same_work(load_plan(out), plan):
                return plan
            if not overwrite:
                raise EdmHlocError(
                    f"{folder} holds the plan of other pairs, photos or settings: merge or finish "
                    "it, choose another output folder, or run with --overwrite."
                )
        remove_plan(folder)  # also what is left of one without plan.json
        for shard, block in enumerate(blocks, start=1):
            write_pairs(plan.list_of(shard), block)
        values = {
            "kind": "matching",
            "image_root": root_to_json(plan.image_root),
            "matcher": asdict(plan.matcher),
            "provenance": plan.provenance,
            "pairs": plan.pairs,
            "extra_encodes": plan.extra_encodes,
            "photos": plan.photos,
            "digests": plan.digests,
        }
        write_whole(folder / "plan.json", json.dumps(values, indent=1), durable=True)
    return plan


def load_plan(out: Path) -> ShardPlan:
    """The plan in an output folder.

    Raises:
        EdmHlocError: there is none, or it is damaged.
    """
    path = Path(out) / PLAN_FOLDER / "plan.json"
    if not path.exists():
        raise EdmHlocError(f"There is no {path}: make one with edm-hloc plan.")
    values = read_json_object(path, "plan of shards")
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
        raise EdmHlocError(f"{path} is damaged ({error!r}): make the plan again.") from error


def what_is_planned(out: Path) -> str | None:
    """What the plan in an output folder is of: "matching" or another step; None without any.

    Raises:
        EdmHlocError: it cannot be read.
    """
    path = Path(out) / PLAN_FOLDER / "plan.json"
    if not path.exists():
        return None
    return str(read_json_object(path, "plan of shards").get("kind", "matching"))


def number_of_shards(out: Path) -> int:
    """Of the plan in an output folder, whatever it is of. Raises EdmHlocError without a plan."""
    path = Path(out) / PLAN_FOLDER / "plan.json"
    if not path.exists():
        raise EdmHlocError(f"There is no {path}: make one with edm-hloc plan.")
    values = read_json_object(path, "plan of shards")
    return len(values.get("pairs", values.get("items", ())))


def describe_left(folder: Path, what: str, sizes: Sequence[int], left: Sequence[int]) -> str:
    """What is to be done with a plan.

    Args:
        folder: of the plan.
        what: kind of the work.
        sizes: number of items of each shard.
        left: numbers of the shards that are not done.
    """
    many = len(sizes)
    if len(left) == many:
        said = f"Planned     {what}: {many:,} shards of up to {max(sizes):,} items, in {folder}"
        which = f"for K from 1 to {many}"
    else:
        some = ", ".join(map(str, left[:10])) + (", …" if len(left) > 10 else "")
        said = f"Left        {what}: {len(left):,} of {many:,} shards are not done: {some}"
        which = "for these"
    out = quote(str(folder.parent))
    return (
        f"{said}\nNext        edm-hloc match-shard {out} K, {which}, on any computers;\n"
        "            then this command again, which goes on from there"
    )


def _digest(pairs: Sequence[Pair]) -> str:
    return hashlib.sha256(json.dumps([list(pair) for pair in pairs]).encode()).hexdigest()


def _same_work(first: ShardPlan, second: ShardPlan) -> bool:
    """Whether two plans give the same raw matches in the same shards."""
    return (root_to_json(first.image_root), first.provenance, first.digests) == (
        root_to_json(second.image_root),
        second.provenance,
        second.digests,
    )


def is_of_a_plan(name: str) -> bool:
    """Whether a file or folder of this name belongs to a plan, besides plan.json."""
    return _FILES.fullmatch(name) is not None


def _check_no_worker(folder: Path) -> None:
    """Raises BusyError if a worker is at work on a shard of the plan in a folder."""
    for work in sorted(folder.glob("work-*")):
        if not (is_of_a_plan(work.name) and work.is_dir()):
            continue
        try:
            FolderLock(work).release()
        except BusyError as error:
            raise BusyError(
                f"A worker is at work in {work}, and what it does would be lost: wait until it has "
                "ended, or end it, then give this command again."
            ) from error


def remove_plan(folder: Path) -> None:
    """Removes the files of a plan from its folder, and no others.

    Raises:
        BusyError: a worker is at work on one of its shards; nothing is removed then.
    """
    _check_no_worker(folder)
    (folder / "plan.json").unlink(missing_ok=True)
    for path in [path for path in folder.iterdir() if is_of_a_plan(path.name)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
