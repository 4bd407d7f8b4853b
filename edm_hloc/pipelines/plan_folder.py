"""The folder OUT/plan: what belongs to a plan there, and what may be removed.

Nothing that was matched goes without --overwrite, unless OUT/raw_matches has it, and no file of
somebody else's at all. The folder is ours from the time on that there is a `.lock` in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import quote

from edm_hloc.base.errors import BusyError, EdmHlocError
from edm_hloc.base.files import FolderLock
from edm_hloc.base.h5 import DamagedH5Error, open_h5, reading
from edm_hloc.images.roots import ImageRoot, JoinedFolders
from edm_hloc.matching.shards import shard_paths, stored_pairs
from edm_hloc.matching.stored_index import StoredIndex

PLAN_FOLDER = "plan"
"""Name of the folder of a plan in the output folder."""

_FILES = re.compile(
    r"(pairs-\d{4,}\.txt|matches-\d{4,}\.h5|items-\d{4,}\.json|input-\d{4,}\.h5"
    r"|results-\d{4,}\.part|work-\d{4,}|fetched_from\.txt)"
)


def is_of_a_plan(name: str) -> bool:
    """Whether a file or folder of this name belongs to a plan, besides plan.json."""
    return _FILES.fullmatch(name) is not None


def number_in(path: Path) -> int:
    """The number of the shard that a file or folder of a plan is of; 0 where it is of none."""
    found = re.search(r"-(\d+)", path.name)
    return int(found.group(1)) if found else 0


def check_seen(folder: Path, paths: Sequence[Path]) -> None:
    """Refuses to work where a disk is missing: else what lies on it would be left out.

    Args:
        folder: of the plan.
        paths: files or folders of one disk. Some may have been removed since they were planned.

    Raises:
        EdmHlocError: this computer can read none of them.
    """
    if not paths or any(os.access(path, os.R_OK) for path in paths):
        return
    others = f", nor {len(paths) - 1:,} more that this shard needs" if len(paths) > 1 else ""
    raise EdmHlocError(
        f"{platform.node()} does not see {paths[0]}{others}: photos and output must be on a disk "
        "that all workers see, under the same path, and readable. If they were moved since, give "
        "the command that planned it again, with their new path; if they were removed, remove "
        f"{folder} before."
    )


def check_photos_seen(folder: Path, root: ImageRoot, names: Sequence[str]) -> None:
    """`check_seen` for the photos of a shard, those in each folder of the root by themselves."""
    if isinstance(root, JoinedFolders):
        for first in root.folders:
            check_seen(folder, [root / n for n in names if n.partition("/")[0] == first])
    elif isinstance(root, Path):  # and no object storage, where failures have other reasons
        check_seen(folder, [root / name for name in names])


def refuse_others(folder: Path, fits: Callable[[Path], bool]) -> None:
    """Refuses a folder for a plan in which somebody else has files of the names of a plan's.

    To be called before the folder is locked for the first time.

    Args:
        folder: for the plan.
        fits: whether a file is as the plan would have it.

    Raises:
        EdmHlocError: there are such files; the message names one.
    """
    if (folder / ".lock").exists() or _is_plan(folder / "plan.json"):
        return
    for path in sorted(folder.iterdir()):
        if path.name == "plan.json" or (is_of_a_plan(path.name) and not fits(path)):
            raise _not_ours(path)


def _is_plan(path: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return "digests" in json.loads(path.read_bytes())
    return False


def _not_ours(path: Path) -> EdmHlocError:
    return EdmHlocError(
        f"{path} is there already and was not made by edm-hloc. It is not written over, even with "
        "--overwrite. Choose another output folder, or move it."
    )


def clear_leftovers(folder: Path, fits: Callable[[Path], bool]) -> None:
    """Removes what is left of a plan whose plan.json is missing or damaged.

    Args:
        folder: of the plan, locked.
        fits: whether a file or folder of work is one of the plan that is going to be made, which
            goes on from it.

    Raises:
        EdmHlocError: there are matches that fit neither, nor are in OUT/raw_matches, or files of
            somebody else; as a `BusyError`: a worker is at work. Nothing is removed then.
    """
    _check_no_worker(folder)
    merged = StoredIndex(folder.parent / "raw_matches")
    leftovers = [p for p in sorted(folder.iterdir()) if is_of_a_plan(p.name) and not fits(p)]
    for path in leftovers:
        for file in _files_of_matches(path):
            with contextlib.suppress(DamagedH5Error), open_h5(file) as h5, reading(file):
                if not {"pairs", "provenance"} <= h5.attrs.keys():
                    raise _not_ours(file)
                if not merged.holds_same(stored_pairs(h5)):
                    raise EdmHlocError(
                        f"{path} holds matches of other pairs, shards, photos or settings, whose "
                        f"plan.json is missing or damaged: give the command that planned them, "
                        f"choose another output folder, remove {path.name}, or run with "
                        "--overwrite."
                    )
    _remove(folder, leftovers)


def _files_of_matches(path: Path) -> Iterator[Path]:
    """The files of raw matches that a file or folder of a plan is or holds."""
    if path.is_dir():
        yield from shard_paths(path)
    elif path.name.startswith("matches-"):
        yield path


def remove_plan(folder: Path) -> None:
    """Removes the files of a plan from its folder, and no others.

    Raises:
        BusyError: a worker is at work on one of its shards; nothing is removed then.
    """
    _check_no_worker(folder)
    _remove(folder, [path for path in folder.iterdir() if is_of_a_plan(path.name)])


def _remove(folder: Path, paths: list[Path]) -> None:
    (folder / "plan.json").unlink(missing_ok=True)
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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
