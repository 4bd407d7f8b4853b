"""A plan of matching in object storage: workers share nothing but a bucket.

    URL/plan.json, pairs-0001.txt …   as `shard_plan.py` makes them; plan.json is put last
    URL/matches-0001.h5 …             put by the worker that has matched the shard

What a worker has matched so far lies on its own disk, from which the same worker goes on. A second
put of the same shard replaces it by the same bytes.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.storage import Store
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matchers.base import Matcher
from edm_hloc.models.weights import cache_directory
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.shard_plan import PLAN_FOLDER, ShardPlan, is_of_a_plan, load_plan, make_plan

_PLAN = "plan.json"


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
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        if _PLAN in there:
            store.get(_PLAN, out / PLAN_FOLDER / _PLAN)
        try:
            plan = make_plan(out, image_root, pairs, matcher, shards=shards, overwrite=overwrite)
        except EdmHlocError as error:
            raise EdmHlocError(str(error).replace(str(out / PLAN_FOLDER), store.url)) from error
        if _PLAN in there and not overwrite:
            return plan  # the same
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
    with tempfile.TemporaryDirectory() as scratch:
        store.get(_PLAN, Path(scratch) / _PLAN)
        text = (Path(scratch) / _PLAN).read_bytes()
    name = hashlib.sha256(store.url.encode() + text).hexdigest()[:16]  # a new plan begins anew
    out = cache_directory() / "shards" / name
    write_whole(out / PLAN_FOLDER / _PLAN, text)
    plan = load_plan(out)
    if shard is not None and 1 <= shard <= len(plan.pairs):
        store.get(plan.list_of(shard).name, plan.list_of(shard))
    return plan


def is_put(store: Store, plan: ShardPlan, shard: int) -> bool:
    """Whether a shard is matched and stored."""
    return store.stat(plan.file_of(shard).name) is not None


def put_shard(store: Store, plan: ShardPlan, shard: int) -> None:
    """Stores a shard that is matched, and removes what this computer has of it."""
    store.put(plan.file_of(shard), plan.file_of(shard).name)
    plan.file_of(shard).unlink()
    plan.list_of(shard).unlink(missing_ok=True)


def get_shards(store: Store, out: Path) -> ShardPlan:
    """Fetches a plan and all shards that are there into OUT/plan, for `merge_shards`.

    Files that are there already with the same size are not fetched again.

    Raises:
        EdmHlocError: there is no plan, or the storage cannot be used.
    """
    folder = Path(out) / PLAN_FOLDER
    there = store.objects()
    wanted = [name for name in there if name.startswith(("matches-", "pairs-"))]
    sizes = {path.name: path.stat().st_size for path in folder.glob("*") if path.is_file()}
    store.get(_PLAN, folder / _PLAN)
    store.get_all([name for name in wanted if sizes.get(name) != there[name].size], folder)
    return load_plan(out)
