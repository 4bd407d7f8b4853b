"""A plan of matching in object storage: workers share nothing but a bucket.

    URL/plan.json, pairs-0001.txt …   as `shard_plan.py` makes them; plan.json is put last
    URL/matches-0001.h5 …             put by the worker that has matched the shard

What a worker has matched so far lies on its own disk, from which the same worker goes on. A second
put of the same shard replaces it by the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock, make_folder, scratch_folder, write_whole
from edm_hloc.base.fingerprint import file_stamp
from edm_hloc.base.storage import Store
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matchers.base import Matcher
from edm_hloc.models.registry import cache_directory
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.plan_folder import (
    PLAN_FOLDER,
    clear_leftovers,
    is_of_a_plan,
    refuse_others,
    remove_plan,
)
from edm_hloc.pipelines.shard_plan import ShardPlan, find_plan, is_merged, load_plan, make_plan
from edm_hloc.pipelines.shards import is_matched

_PLAN = "plan.json"
_ORIGIN = "fetched_from.txt"  # address of the plan that a folder was fetched from


def put_plan(
    store: Store,
    image_root: ImageRoot,
    pairs: Sequence[Pair],
    matcher: Matcher,
    *,
    shards: int,
    overwrite: bool = False,
) -> ShardPlan:
    """`make_plan` into object storage.

    Raises:
        EdmHlocError: see `make_plan`, or the storage cannot be used.
    """
    there = store.objects()
    with scratch_folder() as out:
        if _PLAN in there and not overwrite:
            store.get(_PLAN, out / PLAN_FOLDER / _PLAN)
        try:
            plan = make_plan(out, image_root, pairs, matcher, shards=shards, overwrite=overwrite)
        except EdmHlocError as error:
            raise EdmHlocError(str(error).replace(str(out / PLAN_FOLDER), store.url)) from error
        if _PLAN in there and not overwrite:
            store.put(plan.folder / _PLAN, _PLAN)  # the same, but where photos were moved
            return plan
        if _PLAN in there:
            store.remove(_PLAN)
        for name in filter(is_of_a_plan, there):
            store.remove(name)
        lists = [plan.list_of(shard).name for shard in range(1, len(plan.pairs) + 1)]
        store.put_all(plan.folder, lists)
        store.put(plan.folder / _PLAN, _PLAN)
        return plan


def get_plan(store: Store, shard: int | None = None) -> ShardPlan:
    """A plan in object storage, in a folder of this computer for the work on it.

    Args:
        store: where it is.
        shard: the one whose list of pairs is wanted; None for none.

    Raises:
        EdmHlocError: there is none, or it is damaged, or the storage cannot be used.
    """
    shards = cache_directory() / "shards"
    make_folder(shards)
    # of this process alone, as others of this computer may fetch the same plan at the same time
    with tempfile.TemporaryDirectory(prefix=".", dir=shards) as scratch:
        fetched = Path(scratch) / _PLAN
        store.get(_PLAN, fetched)
        text = store.url.encode() + fetched.read_bytes()
        out = shards / hashlib.sha256(text).hexdigest()[:16]  # a new plan begins anew
        make_folder(out / PLAN_FOLDER)
        fetched.replace(out / PLAN_FOLDER / _PLAN)
    plan = load_plan(out)
    if shard is not None and 1 <= shard <= len(plan.pairs):
        store.get(plan.list_of(shard).name, plan.list_of(shard))
    return plan


def is_put(store: Store, plan: ShardPlan, shard: int) -> bool:
    """Whether a shard is stored, and neither damaged nor of photos that have changed since.

    Args:
        store: where the plan is.
        plan: of `get_plan` for this shard.
        shard: its number.

    Raises:
        EdmHlocError: the storage cannot be used.
    """
    path = plan.file_of(shard)
    if path.exists() or store.stat(path.name) is None:  # one that is here is to be put
        return False
    store.get(path.name, path)
    whole = is_matched(plan, shard)
    path.unlink(missing_ok=True)
    return whole


def put_shard(store: Store, plan: ShardPlan, shard: int) -> None:
    """Stores a shard that is matched, and removes what this computer has of it."""
    store.put(plan.file_of(shard), plan.file_of(shard).name)
    plan.file_of(shard).unlink()
    plan.list_of(shard).unlink(missing_ok=True)


def get_shards(store: Store, out: Path) -> ShardPlan:
    """Fetches a plan and all shards that are there into OUT/plan, for `merge_shards`.

    Files of matches that were fetched already, with the size and the time of the objects, are not
    fetched again; those of an earlier plan of the same storage are removed.

    Raises:
        EdmHlocError: there is no plan; OUT/plan holds another one, which was not fetched from
            there and is not merged, or files of somebody else; or the storage cannot be used.
    """
    folder = Path(out) / PLAN_FOLDER
    make_folder(folder)
    refuse_others(folder, lambda _: False)
    there = store.objects()
    with FolderLock(folder), tempfile.TemporaryDirectory(prefix=".", dir=folder) as scratch:
        new, old, origin = Path(scratch) / _PLAN, folder / _PLAN, folder / _ORIGIN
        store.get(_PLAN, new)
        from_there = origin.exists() and origin.read_text("utf-8") == store.url
        if not old.exists() and not from_there:
            clear_leftovers(folder, lambda _: False)
        if old.exists() and old.read_bytes() != new.read_bytes():
            plan = find_plan(out)
            if not from_there and (plan is None or not is_merged(plan)):
                raise EdmHlocError(
                    f"{folder} holds another plan than {store}: merge it first, remove it, or give "
                    "another folder as INTO."
                )
            remove_plan(folder)
        write_whole(origin, store.url)
        new.replace(old)
        names = [name for name in there if is_of_a_plan(name)]
        lists = [name for name in names if name.startswith("pairs-")]
        matches = [name for name in names if name.startswith("matches-")]
        changed = [name for name in matches if file_stamp(folder / name) != there[name]]
        store.get_all([*lists, *changed], folder)
        for name in changed:
            os.utime(folder / name, ns=(there[name].modified,) * 2)
    return load_plan(out)
