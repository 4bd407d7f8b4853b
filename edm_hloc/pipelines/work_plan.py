"""Steps of a run other than matching, spread over many workers: a plan, a file a shard, results.

    OUT/plan/plan.json           the step, what it was made from, the versions of the libraries that
                                 it needs, and how many items each shard has
    OUT/plan/items-0001.json …   the items of each shard, a list for each that begins with its key
    OUT/plan/input-0001.h5 …     what else a shard needs, where the step has more to hand over
    OUT/plan/work-0001/          of a shard that is at work; goes when it is done
    OUT/plan/results-0001.part   the result of each item, a `Journal` in the order of the items

The process that plans a step is the one that goes on with the results: it puts them where it would
have put its own. What a step computes for an item is in `pipelines/work_kinds.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import pycolmap

from edm_hloc.base.errors import EdmHlocError, WorkLeftError
from edm_hloc.base.files import FolderLock, make_folder, write_whole
from edm_hloc.base.grid import blocks
from edm_hloc.base.journal import Journal, is_journal
from edm_hloc.base.text import plural, read_json_object
from edm_hloc.base.version import __version__
from edm_hloc.matching.shards import differences_between
from edm_hloc.pipelines.plan_folder import (
    PLAN_FOLDER,
    clear_leftovers,
    describe_left,
    number_in,
    refuse_others,
    remove_plan,
)
from edm_hloc.pipelines.shard_plan import (
    check_number,
    find_plan,
    is_merged,
    what_is_planned,
)

logger = logging.getLogger(__name__)

Item = Sequence[Any]
"""What is computed for: JSON values, of which the first is a text that names it."""

DONE = "\0done"
"""Key of the last entry of a shard that is done: no item has such a name."""


@dataclass(frozen=True)
class Work:
    """Work that can be spread.

    Attributes:
        kind: what is computed, one of those that `work_kinds.work_shard` knows.
        made_from: fingerprint of everything that the results depend on.
        shared: what all shards need, JSON-serialisable.
        parts: the items of each shard.
        add_input: path and items of a shard → writes what else it needs there.
    """

    kind: str
    made_from: str
    shared: Mapping[str, Any]
    parts: Sequence[Sequence[Item]]
    add_input: Callable[[Path, Sequence[Item]], None] | None = None


@dataclass(frozen=True)
class WorkPlan:
    """A plan of work as it lies in a folder; shards are numbered from 1.

    Attributes:
        folder: OUT/plan.
        kind, made_from, shared: see `Work`.
        versions: of `versions_for`, where it was planned.
        items: number of items of each shard.
        digests: SHA-256 of the file of items of each shard.
    """

    folder: Path
    kind: str
    made_from: str
    versions: Mapping[str, str]
    shared: Mapping[str, Any] = field(repr=False)
    items: tuple[int, ...] = ()
    digests: tuple[str, ...] = ()

    def items_of(self, shard: int) -> list[Item]:
        """The items of a shard.

        Raises:
            EdmHlocError: there is no such shard, or its file is not the planned one.
        """
        check_number(self.folder, len(self.items), shard)
        path = self.folder / f"items-{shard:04d}.json"
        try:
            text = path.read_bytes()
        except OSError as error:
            raise EdmHlocError(f"Cannot read {path}: {error.strerror}.") from error
        if hashlib.sha256(text).hexdigest() != self.digests[shard - 1]:
            raise EdmHlocError(
                f"{path} has changed since it was planned: remove {self.folder}, then give the "
                "command that planned it again."
            )
        return list(json.loads(text))

    def input_of(self, shard: int) -> Path:
        return self.folder / f"input-{shard:04d}.h5"

    def work_of(self, shard: int) -> Path:
        return self.folder / f"work-{shard:04d}"

    def file_of(self, shard: int) -> Path:
        return self.folder / f"results-{shard:04d}.part"

    def left(self) -> list[int]:
        """The shards that are not done."""
        return [k for k in range(1, len(self.items) + 1) if not self.file_of(k).exists()]


def versions_for(kind: str) -> dict[str, str]:
    """The versions of this package here, and of the libraries that decide the bits of a step."""
    versions = {"edm_hloc": __version__}
    if kind in ("verification", "poses"):
        versions["pycolmap"] = pycolmap.__version__
    if kind in ("descriptors", "poses"):  # which read photos
        versions["opencv"] = cv2.__version__
    return versions


def in_shards(items: Sequence[Item], shards: int) -> list[list[Item]]:
    """Items cut into pieces of about the same number, in their order."""
    size = max(1, -(-len(items) // shards))
    return [list(items[block]) for block in blocks(len(items), size)]


def results_of_workers(out: Path, work: Work) -> Iterator[tuple[str, bytes]]:
    """The results that workers have computed; where these are not there yet, plans them.

    Args:
        out: output folder of the run.
        work: without items nothing is planned.

    Returns:
        Key and result of each item of the plan that is there. Keep each at once: after the last one
        the plan and its files are removed.

    Raises:
        WorkLeftError: the work is planned, or is not done yet.
        EdmHlocError: a shard is damaged, another plan is not finished, or a file cannot be written.
    """
    folder = Path(out) / PLAN_FOLDER
    plan = _load(folder) if what_is_planned(out) not in (None, "matching") else None
    new = _plan_of(folder, work)
    if plan is None or _identity(plan) != _identity(new):
        if not any(work.parts):
            return
        matching = find_plan(out) if what_is_planned(out) == "matching" else None
        if matching is not None and not is_merged(matching):
            raise EdmHlocError(
                f"{folder} holds a plan of matching: finish it with edm-hloc match-shard and "
                f"edm-hloc merge, or remove it, then give this command again."
            )
        plan = _make(new, work)
    elif plan.shared != new.shared:  # paths, as OUT has moved: where the rest finds its files
        plan = replace(plan, shared=new.shared)
        with FolderLock(folder):
            _write(plan)
    if left := plan.left():
        raise WorkLeftError(describe_left(folder, f"{plan.kind} work", plan.items, left))
    for shard in range(1, len(plan.items) + 1):
        yield from _read(plan, shard)
    with FolderLock(folder):
        remove_plan(folder)


@contextlib.contextmanager
def saying_what_goes(folder: Path) -> Iterator[None]:
    """Warns if results of finished shards are removed from the folder of a plan in the block."""
    done = list(folder.glob("results-*.part"))
    yield
    if gone := sum(not path.exists() for path in done):
        logger.warning(
            "%s: %s removed, and planned again as far as needed: the inputs, the settings or a "
            "version have changed since.",
            folder,
            f"{plural(gone, 'finished shard')} {'is' if gone == 1 else 'are'}",
        )


def _plan_of(folder: Path, work: Work) -> WorkPlan:
    """A plan without its items yet."""
    shared = json.loads(json.dumps(work.shared))  # as it is read again
    return WorkPlan(folder, work.kind, work.made_from, versions_for(work.kind), shared)


def _identity(plan: WorkPlan) -> tuple[Any, ...]:
    return plan.kind, plan.made_from, plan.versions


def _make(plan: WorkPlan, work: Work) -> WorkPlan:
    folder = plan.folder
    make_folder(folder)
    texts = [json.dumps(list(part), indent=0).encode() for part in work.parts]
    digests = tuple(hashlib.sha256(text).hexdigest() for text in texts)
    plan = replace(plan, items=tuple(map(len, work.parts)), digests=digests)
    fits = partial(_fits, plan)
    refuse_others(folder, fits)
    with FolderLock(folder):
        with saying_what_goes(folder):
            if what_is_planned(folder.parent) is None:
                clear_leftovers(folder, fits)
            else:
                remove_plan(folder)  # of the same run with other inputs, or merged
        for shard, (part, text) in enumerate(zip(work.parts, texts, strict=True), start=1):
            write_whole(folder / f"items-{shard:04d}.json", text)
            if work.add_input is not None:
                work.add_input(plan.input_of(shard), part)
        _write(plan)
    return plan


def _write(plan: WorkPlan) -> None:
    values = {
        "kind": plan.kind,
        "made_from": plan.made_from,
        "versions": plan.versions,
        "items": plan.items,
        "digests": plan.digests,
        "shared": plan.shared,
    }
    write_whole(plan.folder / "plan.json", json.dumps(values, indent=1), durable=True)


def load_work(out: Path) -> WorkPlan:
    """The plan of work in an output folder, for a worker.

    Raises:
        EdmHlocError: there is none, it is damaged, or it was made with other versions than those
            of this computer.
    """
    plan = _load(Path(out) / PLAN_FOLDER)
    if plan is None:
        raise EdmHlocError(
            f"{Path(out) / PLAN_FOLDER / 'plan.json'} is damaged: give the command that planned it "
            "again, which keeps what is done."
        )
    if differences := differences_between(plan.versions, versions_for(plan.kind)):
        raise EdmHlocError(
            f"{plan.folder} was planned with other versions than {platform.node()} has:\n"
            + "\n".join(differences)
            + "\nInstall the same ones on all computers."
        )
    return plan


def _load(folder: Path) -> WorkPlan | None:
    try:
        values = read_json_object(folder / "plan.json", "plan of shards")
        return WorkPlan(
            folder,
            str(values["kind"]),
            str(values["made_from"]),
            dict(values.get("versions", {})),  # plans of older versions have none
            dict(values["shared"]),
            tuple(int(number) for number in values["items"]),
            tuple(str(digest) for digest in values["digests"]),
        )
    except (EdmHlocError, KeyError, TypeError, ValueError):
        return None


def do_shard(
    plan: WorkPlan,
    shard: int,
    compute: Callable[[Sequence[Item]], Iterator[tuple[str, bytes]]],
) -> int:
    """Computes the items of one shard into its file; goes on where an earlier call was ended.

    The file has the same bytes whoever makes it, and however often that was interrupted.

    Args:
        plan: see `results_of_workers`.
        shard: its number, from 1.
        compute: items → key and result of each, in their order; an item that has none is left out.

    Returns:
        The number of items computed by this call.

    Raises:
        EdmHlocError: no such shard, another process is at work on it, or a file cannot be written.
    """
    items = plan.items_of(shard)
    path, work = plan.file_of(shard), plan.work_of(shard)
    if path.exists():
        return 0
    make_folder(work)
    number = 0
    with FolderLock(work):
        with Journal(work / "results.part", _made_from(plan, shard)) as kept:
            for key, data in compute([item for item in items if item[0] not in kept]):
                kept.put(key, data)
                kept.commit()
                number += 1
            if DONE not in kept:
                kept.put(DONE, b"")
                kept.commit()
        (work / "results.part").replace(path)
    shutil.rmtree(work, ignore_errors=True)
    return number


def _read(plan: WorkPlan, shard: int) -> Iterator[tuple[str, bytes]]:
    """The results of a shard. Raises EdmHlocError if its file is damaged or of another plan."""
    path = plan.file_of(shard)
    with Journal(path, _made_from(plan, shard)) as results:
        if DONE not in results:
            path.unlink()
            raise EdmHlocError(
                f"{path} was damaged or of another plan and is removed: run edm-hloc match-shard "
                f"{plan.folder.parent} {shard} again, then this command."
            )
        for item in plan.items_of(shard):
            if item[0] in results:
                yield item[0], results.get(item[0])


def _fits(plan: WorkPlan, path: Path) -> bool:
    """Whether a file of results, or a folder of work that leads to one, is of a shard of a plan."""
    shard = number_in(path)
    if not 1 <= shard <= len(plan.items):
        return False
    files = {plan.file_of(shard): path, plan.work_of(shard): path / "results.part"}
    return path in files and is_journal(files[path], _made_from(plan, shard))


def _made_from(plan: WorkPlan, shard: int) -> str:
    return f"{plan.kind} {plan.made_from} {plan.digests[shard - 1]}"
