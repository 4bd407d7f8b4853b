"""The steps of a run that it leaves to workers, where `Run.shards` asks for that.

A run goes as far as it can, plans the next step that can be spread, and ends with a
`WorkLeftError`. Once `edm-hloc match-shard` has done the shards, the same run goes on: it puts
their results where it would have put its own, so that everything that follows is the same.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edm_hloc.base.errors import WorkLeftError
from edm_hloc.base.files import FolderLock
from edm_hloc.base.log import first_few
from edm_hloc.base.text import plural
from edm_hloc.images.known import KnownPhotos
from edm_hloc.images.roots import ImageRoot, root_to_json
from edm_hloc.localization.log import append_to_log, parse_pose, resume_log
from edm_hloc.localization.pnp import PoseOptions
from edm_hloc.localization.queries import Queries, fingerprint_of_poses
from edm_hloc.localization.shards import QueryFiles, query_items
from edm_hloc.mapping.verification import UnverifiedPairs
from edm_hloc.matchers.base import Matcher
from edm_hloc.matching.blocks import cut_into_blocks
from edm_hloc.matching.stored_index import pairs_to_match
from edm_hloc.pairs.rules import Pair, names_in
from edm_hloc.pipelines.plan_folder import PLAN_FOLDER, describe_left, remove_plan
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.shard_plan import (
    adopt_photos,
    check_matcher,
    find_plan,
    make_plan,
    what_is_planned,
)
from edm_hloc.pipelines.shards import end_plan, is_readable, merge_shards
from edm_hloc.pipelines.work_plan import (
    Work,
    in_shards,
    results_of_workers,
    saying_what_goes,
)

logger = logging.getLogger(__name__)

_UNREADABLE = "unreadable_for_workers"  # in the results of a run: {NAME: [REASON, STAMP]}


def spread_matching(
    run: Run, image_root: ImageRoot, pairs: Sequence[Pair], matcher: Matcher
) -> None:
    """Puts what workers have matched into the raw matches of a run, and plans what is not there.

    Args:
        run: with `shards`; without, nothing is done.
        image_root: folder or folders of the photos.
        pairs: names of two photos each.
        matcher: with a recipe.

    Raises:
        WorkLeftError: shards are to be matched.
        EdmHlocError: a plan of other settings is there; see `make_plan` and `merge_shards`.
    """
    if not run.shards:
        return
    kind, folder = what_is_planned(run.out), run.out / PLAN_FOLDER
    known = KnownPhotos(run.out / "raw_matches")
    known.note(image_root, names_in(pairs))
    marked: dict[str, Any] = run.results.get(_UNREADABLE, {})
    plan = find_plan(run.out) if kind == "matching" else None
    if plan is not None:
        check_matcher(plan, matcher)
        plan = adopt_photos(plan, image_root)
        if left := plan.left():
            raise WorkLeftError(describe_left(folder, "matching", plan.pairs, left))
        skipped = merge_shards(plan).skipped
        end_plan(plan, merge=False)
        _tell_of_readable(image_root, skipped)
        stamps = known.stamps(image_root, skipped)
        marked |= {name: [why, list(stamps.get(name, ()))] for name, why in skipped.items()}
    # they cannot be read here either, and are not planned again and again, unless they change;
    # older versions have noted no stamps
    stamps = known.stamps(image_root, marked)
    unreadable = {n for n, entry in marked.items() if entry[1:] == [list(stamps.get(n, ()))]}
    if marked:
        run.results[_UNREADABLE] = {name: marked[name] for name in marked if name in unreadable}
        run.write()
    todo = [
        pair
        for pair in pairs_to_match(run.out / "raw_matches", image_root, pairs)
        if unreadable.isdisjoint(pair)
    ]
    if todo:
        if kind not in (None, "matching"):
            with FolderLock(folder), saying_what_goes(folder):
                remove_plan(folder)  # of a later step, whose inputs are going to change
        plan = make_plan(run.out, image_root, todo, matcher, shards=run.shards)
        if left := plan.left():
            raise WorkLeftError(describe_left(folder, "matching", plan.pairs, left))
        spread_matching(run, image_root, pairs, matcher)  # plan.json was lost, and no shard


def _tell_of_readable(image_root: ImageRoot, skipped: Mapping[str, str]) -> None:
    """Warns of photos that only the workers could not read, so that their pairs are left."""
    if readable := [name for name in skipped if is_readable(image_root, name)]:
        logger.warning(
            "%s could not be read by the workers, but can be read here, and this process matches "
            "what is left of their pairs. Do all computers see them? %s",
            plural(len(readable), "photo"),
            "; ".join(first_few((f"{name}: {skipped[name]}" for name in readable), "photos", 3)),
        )


def spread_verification(run: Run, unverified: UnverifiedPairs) -> None:
    """Keeps the geometries that workers have estimated, and plans those that are not there.

    Raises:
        WorkLeftError, EdmHlocError: see `results_of_workers`.
    """
    pairs = unverified.pairs()
    named = {(str(a), str(b)): key for key, (a, b) in pairs.items()}
    parts = [
        [[named[pair]] for pair in block] for block in cut_into_blocks(list(named), run.shards)
    ]

    def add_input(path: Path, items: Sequence[Sequence[Any]]) -> None:
        unverified.write(path, [pairs[key] for (key,) in items])

    work = Work("verification", unverified.made_from, {}, parts, add_input)
    for key, geometry in results_of_workers(run.out, work):
        unverified.kept.put(key, geometry)
        unverified.kept.commit()


def spread_descriptors(
    run: Run,
    root: ImageRoot,
    method: dict[str, Any],
    made_from: str,
    names: Sequence[str],
    words: np.ndarray,
) -> Iterator[tuple[str, bytes]]:
    """The descriptors of photos that workers have made; plans those that are not there.

    Args:
        run: with `shards`.
        root: what the names are relative to.
        method: "how" ("edm" or "sift"), and the "weights" of the former with their "sha256".
        made_from: fingerprint of all that the descriptors depend on.
        names: of the photos.
        words: (words, D) float32 vocabulary.

    Raises:
        WorkLeftError, EdmHlocError: see `results_of_workers`.
    """
    shared = {**method, "root": root_to_json(root), "words": words.tolist()}
    items = [[name] for name in names]
    work = Work("descriptors", made_from, shared, in_shards(items, run.shards))
    return results_of_workers(run.out, work)


def spread_poses(run: Run, queries: Queries, files: QueryFiles, options: PoseOptions) -> None:
    """Logs the queries that workers have localized, and plans those that are not there.

    Raises:
        WorkLeftError, EdmHlocError: see `results_of_workers`.
    """
    log = run.out / "queries.jsonl"
    made_from = fingerprint_of_poses(queries, files.features, files.matches, files.points, options)
    done = resume_log(log, made_from)
    todo = [name for name in queries.names if name not in done]
    parts = in_shards(query_items(queries, todo), run.shards)
    work = Work("poses", made_from, files.to_json(options), parts)
    with log.open("a", encoding="utf-8") as file:
        for _, line in results_of_workers(run.out, work):
            append_to_log(file, parse_pose(line.decode()))
