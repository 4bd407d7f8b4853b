"""What a worker does for a shard of a step: descriptors, verification or poses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.roots import root_from_json
from edm_hloc.localization.shards import folders_needed, localize_items
from edm_hloc.mapping.verification import verify_stored
from edm_hloc.models.weights import ENVIRONMENT_VARIABLE
from edm_hloc.pairs.local_features import SIFT, edm_features
from edm_hloc.pairs.vlad import describe
from edm_hloc.pipelines.plan_folder import check_photos_seen, check_seen
from edm_hloc.pipelines.work_plan import Item, WorkPlan, do_shard

Results = Iterator[tuple[str, bytes]]


def work_shard(plan: WorkPlan, shard: int, device: torch.device) -> int:
    """Does one shard of a plan of work; gives the number of items that it computed.

    Args:
        plan: of `work_plan.load_work`.
        shard: its number, from 1.
        device: of networks, where the step has any.

    Raises:
        EdmHlocError: see `do_shard`, an input cannot be read, or this computer does not see what
            the step needs.
    """

    def compute(items: Sequence[Item]) -> Results:
        if not items:
            return iter(())
        _check_seen(plan, plan.items_of(shard))
        if plan.kind == "verification":
            return verify_stored(plan.input_of(shard), [item[0] for item in items])
        if plan.kind == "poses":
            return localize_items(plan.shared, items, plan.work_of(shard) / "queries.jsonl")
        return _describe(plan, items, device)

    return do_shard(plan, shard, compute)


def _check_seen(plan: WorkPlan, items: Sequence[Item]) -> None:
    if plan.kind == "descriptors":
        root = root_from_json(plan.shared["root"])
        check_photos_seen(plan.folder, root, [item[0] for item in items])
    elif plan.kind == "poses":
        for place in folders_needed(plan.shared):
            check_seen(plan.folder, [place])
        photos = [Path(told["photo"]) for _, told in items if told["photo"] is not None]
        check_seen(plan.folder, photos)


def _describe(plan: WorkPlan, items: Sequence[Item], device: torch.device) -> Results:
    shared = plan.shared
    local = edm_features(shared.get("weights"), device) if shared["how"] == "edm" else SIFT
    if local.name != shared["sha256"]:
        where = shared.get("weights") or f"a path that ${ENVIRONMENT_VARIABLE} here holds"
        raise EdmHlocError(
            f"The weights of EDM on this computer have the SHA-256 {local.name}, those that the "
            f"work was planned with {shared['sha256']}: put the same file at {where}."
        )
    words = np.array(shared["words"], np.float32)
    return describe(root_from_json(shared["root"]), [item[0] for item in items], local, words)
