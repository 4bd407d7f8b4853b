"""What the page's script draws: the run as one JSON object, large arrays packed in base64."""

from __future__ import annotations

import base64
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from edm_hloc.report.advice import PhotoFacts
from edm_hloc.report.collect import PairSource, RunFacts, original
from edm_hloc.report.scene import Scene, build_scene
from edm_hloc.report.thumbnails import Thumbnail, make_thumbnails, side_for

PHOTO_BYTES = 6_000_000  # for all small pictures
MAX_PICTURES = 2500  # beyond, only photos that are in a shown pair have one
MAX_POINTS = 300_000
MAX_PAIRS = 400  # pairs with lines, beside the gallery and each photo's best
MAX_BEST = 1200
MAX_CELLS = 1200  # of the match graph's longer side; beyond, cells stand for several photos
GALLERY = 6  # pairs of each kind
LINES, LINES_REJECTED = 180, 40  # of a pair
GRID = (16, 12)  # of the coverage


@dataclass(frozen=True)
class Payload:
    """The data of a page.

    Attributes:
        data: what goes into the page as JSON.
        scene: the model, None where there is nothing to draw.
        photos: facts for the advice.
        notes: what was left out to keep the page small, a sentence each.
    """

    data: dict[str, Any]
    scene: Scene | None
    photos: dict[str, PhotoFacts]
    notes: list[str]


def make_payload(facts: RunFacts) -> Payload:
    """Everything the page draws; what cannot be read is noted in `facts.problems`."""
    notes: list[str] = []
    scene = None
    if len(facts.points) or facts.views:
        with facts.tolerant("Model"):
            scene = build_scene(facts.points, facts.views)
    gallery = _gallery(facts)
    best = _best_partners(facts)
    shown = _shown_pairs(facts, gallery, best)
    thumbnails, unreadable = _thumbnails(facts, shown, notes)
    sizes = {name: (camera.width, camera.height) for name, camera in facts.cameras.items()}
    sizes |= {name: thumbnail.photo_size for name, thumbnail in thumbnails.items()}
    counted: dict[str, tuple[int, np.ndarray]] = {}
    with facts.tolerant("Keypoints"), PairSource(facts) as source:
        for name, points in _keypoints(facts, source):
            counted[name] = len(points), _grid(points, sizes.get(name))
    photos, entries = {}, []
    for i, name in enumerate(facts.names):
        thumbnail, size = thumbnails.get(name), sizes.get(name)
        number, grid = counted.get(name, (0, _grid(np.zeros((0, 2)), size)))
        photos[name] = PhotoFacts(size, number, float((grid > 0).mean()))
        entries.append(
            {
                "name": name,
                "thumb": _text(thumbnail.webp) if thumbnail else None,
                "size": size,
                "keypoints": number,
                "coverage": photos[name].coverage,
                "grid": _text(grid.tobytes()) if number else None,
                "points": facts.registered.get(name),
                "best": best.get(i),
                "href": _href(facts, name),
                "problem": facts.skipped.get(name) or unreadable.get(name),
            }
        )
    pairs: dict[str, Any] = {}
    with facts.tolerant("Matches"), PairSource(facts) as source:
        pairs = _pairs(facts, shown, photos, source)
    data = {
        "kind": facts.kind,
        "verified": facts.verified,
        "minInliers": facts.min_inliers,
        "photos": entries,
        "scene": None if scene is None else _scene(facts, scene, notes),
        "graph": _graph(facts, notes),
        "pairs": pairs,
        "gallery": gallery,
        "queries": _queries(facts, best),
    }
    return Payload(data, scene, photos, notes)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _href(facts: RunFacts, name: str) -> str | None:
    """Where the page finds the photo itself, if both stay where they are."""
    path = original(facts, name)
    if path is None:
        return None
    try:
        # the link's own folder: links within it are followed by the browser
        relative = os.path.relpath(path.parent.resolve() / path.name, facts.out.resolve())
    except ValueError:  # another drive
        return None
    return quote(Path(relative).as_posix(), safe="/")


# --------------------------------------------------------------------------- photos


def _thumbnails(
    facts: RunFacts, shown: Sequence[tuple[int, int]], notes: list[str]
) -> tuple[dict[str, Thumbnail], dict[str, str]]:
    wanted = facts.names
    if len(wanted) > MAX_PICTURES:
        needed = {i for pair in shown for i in pair}
        wanted = [name for i, name in enumerate(facts.names) if i in needed][:MAX_PICTURES]
        notes.append(f"{len(wanted):,} of {len(facts.names):,} photos have a picture here.")
    paths = {}
    for name in wanted:
        path = original(facts, name)
        if path is not None and name not in facts.skipped:
            paths[name] = path
    side = side_for(max(1, len(paths)), PHOTO_BYTES)
    return make_thumbnails(paths, side)


def _keypoints(facts: RunFacts, source: PairSource) -> Iterator[tuple[str, np.ndarray]]:
    """Of one photo after the other; where there are none yet, the points of its raw matches."""
    if any(len(source.keypoints(name)) for name in facts.names):
        for name in facts.names:
            yield name, source.keypoints(name)
        return
    partners: dict[str, list[str]] = defaultdict(list)
    for i, j in facts.pairs.tolist():
        partners[facts.names[i]].append(facts.names[j])
        partners[facts.names[j]].append(facts.names[i])
    for name, others in partners.items():
        read = (source.read(name, other) for other in others)
        found = [matches.points0 for matches in read if matches is not None]
        if found:
            yield name, np.unique(np.concatenate(found).round(), axis=0)


def _grid(points: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """(12, 16) uint8: how many keypoints each cell of a photo holds, up to 255."""
    counts = np.zeros((GRID[1], GRID[0]))
    if len(points):
        extent = size or tuple(points.max(axis=0) + 1)
        column, row = ((points + 0.5) / extent * GRID).astype(int).T
        np.add.at(counts, (row.clip(0, GRID[1] - 1), column.clip(0, GRID[0] - 1)), 1)
    return counts.clip(0, 255).astype(np.uint8)


def _best_partners(facts: RunFacts) -> dict[int, int]:
    """For each photo the one it has most verified matches with, or most matches."""
    best: dict[int, tuple[int, int, int]] = {}
    for (a, b), m, n in zip(facts.pairs.tolist(), facts.matches, facts.inliers, strict=True):
        for this, that in ((a, b), (b, a)):
            best[this] = max(best.get(this, (-2, -1, -1)), (int(n), int(m), that))
    return {photo: entry[2] for photo, entry in best.items()}


# --------------------------------------------------------------------------- pairs


def _gallery(facts: RunFacts) -> list[dict[str, Any]]:
    """The pairs worth a look: best, borderline and worst."""
    if not len(facts.pairs):
        return []
    if facts.kind == "localization":
        return []  # the table of queries has its own pictures
    value = facts.inliers if facts.verified else facts.matches
    order = np.lexsort((-facts.matches, -value))
    groups = []
    taken: set[int] = set()

    def add(title: str, text: str, candidates: Sequence[int]) -> None:
        chosen: list[int] = []
        uses: dict[int, int] = {}
        for most in (2, 99):  # first pairs of different photos
            for i in candidates:
                a, b = facts.pairs[i].tolist()
                if len(chosen) == GALLERY or i in taken:
                    continue
                if max(uses.get(a, 0), uses.get(b, 0)) < most:
                    chosen.append(i)
                    taken.add(i)
                    uses[a], uses[b] = uses.get(a, 0) + 1, uses.get(b, 0) + 1
        if chosen:
            chosen.sort(key=list(candidates).index)
            pairs = [facts.pairs[i].tolist() for i in chosen]
            groups.append({"title": title, "text": text, "pairs": pairs})

    each = min(GALLERY, max(1, len(order) // 3))
    if not facts.verified:
        add("Most matches", "", order[:each].tolist())
        middle = len(order) // 2
        add("In between", "", order[middle : middle + each].tolist())
        add("Fewest matches", "", order[::-1][:each].tolist())
        return groups
    least = facts.min_inliers
    good = order[value[order] >= least]
    rejected = order[value[order] < least]
    best = good[: max(1, min(each * 3, len(good) // 3))] if len(good) else good
    add("Best", "The pairs with the most verified matches.", best.tolist())
    border = good[np.argsort(value[good], kind="stable")]
    add(
        "Borderline",
        f"The verified pairs that are nearest to the {least} matches a pair needs: wrong ones "
        "would hide here.",
        border[: max(1, len(good) // 3)].tolist() if len(good) else [],
    )
    worst = rejected[np.argsort(-facts.matches[rejected], kind="stable")]
    add(
        "Rejected",
        "The pairs with the most matches of all that no common geometry was found for.",
        worst.tolist(),
    )
    return groups


def _shown_pairs(
    facts: RunFacts, gallery: Sequence[dict[str, Any]], best: dict[int, int]
) -> list[tuple[int, int]]:
    """The pairs whose lines are in the page."""
    chosen = {(a, b) for group in gallery for a, b in group["pairs"]}
    every = {(a, b) for a, b in facts.pairs.tolist()}
    if len(every) <= MAX_PAIRS:
        return sorted(every)
    limit = MAX_BEST if facts.kind != "localization" else 2 * MAX_BEST
    for i, j in best.items():
        if len(chosen) >= limit:
            break
        if facts.kind != "localization" or i < len(facts.queries):
            chosen.add((i, j) if (i, j) in every else (j, i))
    return sorted(chosen)


def _pairs(
    facts: RunFacts,
    shown: Sequence[tuple[int, int]],
    photos: dict[str, PhotoFacts],
    source: PairSource,
) -> dict[str, Any]:
    """By "a-b": the counts and the lines, 9 bytes each: x0 y0 x1 y1 as 16-bit shares of the
    photos' sides, and the score in the upper 7 bits with the inlier bit lowest."""
    index = {(a, b): k for k, (a, b) in enumerate(facts.pairs.tolist())}
    rng = np.random.default_rng(0)
    lines = LINES if len(shown) <= MAX_PAIRS else LINES // 2
    packed = {}
    for a, b in shown:
        matches = source.read(facts.names[a], facts.names[b])
        sizes = photos[facts.names[a]].size, photos[facts.names[b]].size
        k = index[a, b]
        entry: dict[str, Any] = {"matches": int(facts.matches[k]), "inliers": int(facts.inliers[k])}
        if matches is not None and sizes[0] is not None and sizes[1] is not None:
            inlier = matches.inliers
            if inlier is None:
                inlier = np.ones(len(matches.scores), bool)
            elif facts.kind == "localization":
                entry["inliers"] = int(inlier.sum())  # those of the pose, also repeated points
            right, wrong = np.flatnonzero(inlier), np.flatnonzero(~inlier)
            pick = np.concatenate(
                [
                    rng.permutation(wrong)[:LINES_REJECTED],
                    rng.permutation(right)[:lines],
                ]
            )
            # the surest are drawn last, on top; the rejected first
            pick = pick[np.lexsort((matches.scores[pick], inlier[pick]))]
            places = np.hstack(
                [
                    (matches.points0[pick] + 0.5) / sizes[0],
                    (matches.points1[pick] + 0.5) / sizes[1],
                ]
            )
            record = np.zeros(len(pick), [("xy", "<u2", 4), ("score", "u1")])
            record["xy"] = (places.clip(0, 1) * 65535).round()
            score = (matches.scores[pick].clip(0, 1) * 127).round().astype(np.uint8)
            record["score"] = (score << 1) | inlier[pick]
            entry["lines"] = _text(record.tobytes())
        packed[f"{a}-{b}"] = entry
    return packed


# --------------------------------------------------------------------------- graph


def _graph(facts: RunFacts, notes: list[str]) -> dict[str, Any] | None:
    """Cells of the match graph: row, column, matches and inliers as columns of one table."""
    if not len(facts.pairs):
        return None
    queries = facts.kind == "localization"
    number = len(facts.names)
    rows = list(range(number))
    columns = list(range(number))
    if queries:
        split = len(set(facts.pairs[:, 0].tolist()) | {0})
        split = max(split, len(facts.queries))
        rows, columns = list(range(split)), list(range(split, number))
        if not columns:
            return None
    joined = 1
    if max(len(rows), len(columns)) > MAX_CELLS:
        joined = -(-max(len(rows), len(columns)) // MAX_CELLS)
        notes.append(f"A cell of the match graph stands for {joined} × {joined} photos.")
    offset = len(rows) if queries else 0
    row = facts.pairs[:, 0] // joined
    column = (facts.pairs[:, 1] - offset) // joined
    if joined > 1:  # the best pair of each cell
        value = np.maximum(facts.inliers, 0)
        order = np.lexsort((facts.matches, value))
        width = max(len(rows), len(columns)) // joined + 1
        cells = row[order] * width + column[order]
        last = len(order) - 1 - np.unique(cells[::-1], return_index=True)[1]
        kept = order[last]
    else:
        kept = np.arange(len(facts.pairs))
    counts = np.stack([facts.matches[kept], facts.inliers[kept]])
    small = counts.max() < 1 << 15
    return {
        "rows": len(rows),
        "columns": len(columns),
        "offset": offset,
        "joined": joined,
        "symmetric": not queries,
        "pairs": _text(facts.pairs[kept].astype("<u2" if number < 65536 else "<u4").tobytes()),
        "wide": number >= 65536,
        "large": not small,
        "matches": _text(counts[0].astype("<i2" if small else "<i4").tobytes()),
        "inliers": _text(counts[1].astype("<i2" if small else "<i4").tobytes()),
        "order": _connected_order(facts) if not queries and joined == 1 else None,
    }


def _connected_order(facts: RunFacts) -> list[int] | None:
    """Photos so that those with many common matches are neighbours: groups become blocks."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

    number = len(facts.names)
    weight = facts.inliers if facts.verified else facts.matches
    strong = weight >= max(facts.min_inliers, 1)
    if not strong.any():
        return None
    a, b = facts.pairs[strong].T
    graph = coo_array((np.ones(len(a)), (a, b)), (number, number)).tocsr()
    graph = graph + graph.T
    order = reverse_cuthill_mckee(graph.tocsr(), symmetric_mode=True)
    part = connected_components(graph, directed=False)[1]
    sizes = np.bincount(part)
    place = np.lexsort((part[order], -sizes[part[order]]))
    return [int(i) for i in order[place]]


# --------------------------------------------------------------------------- model


def _scene(facts: RunFacts, scene: Scene, notes: list[str]) -> dict[str, Any]:
    """Points as 16-bit coordinates, the most seen first, so that a slider can cut them off."""
    points = scene.points
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.random(len(points)), -points.tracks))
    if len(order) > MAX_POINTS:
        notes.append(
            f"The 3D view shows {MAX_POINTS:,} of {len(order):,} points, those that most photos "
            "see."
        )
        order = order[:MAX_POINTS]
    points = points[order]
    if scene.hidden:
        notes.append(f"{scene.hidden:,} points lie too far off and are not shown in the 3D view.")
    extent = float(np.abs(points.xyz).max()) if len(points) else 1.0
    tracks, first = np.unique(-points.tracks, return_index=True)
    counts = [*first[1:].tolist(), len(points)] if len(points) else []
    index = {name: i for i, name in enumerate(facts.names)}
    return {
        "count": len(points),
        "extent": extent,
        "xyz": _text((points.xyz / max(extent, 1e-12) * 32767).round().astype("<i2").tobytes()),
        "colors": _text(points.colors.tobytes()),
        # [[5, 120], [4, 400], …]: so many points are seen by 5, by 4 … photos or more
        "tracks": [[int(-t), int(c)] for t, c in zip(tracks, counts, strict=True)],
        "frustum": scene.frustum,
        "cameras": [
            {
                "photo": index.get(name),
                "name": name,
                "kind": kind,
                "centre": [round(float(v), 5) for v in centre],
                "rotation": [round(float(v), 5) for v in R.ravel()],
                "size": [round(float(v), 4) for v in size],
            }
            for name, kind, centre, R, size in zip(
                scene.names, scene.kinds, scene.centres, scene.rotations, scene.sizes, strict=True
            )
        ],
    }


# --------------------------------------------------------------------------- queries


def _queries(facts: RunFacts, best: dict[int, int]) -> list[dict[str, Any]]:
    index = {name: i for i, name in enumerate(facts.names)}
    answers = []
    for answer in facts.queries:
        photo = index[answer.query]
        partner = max(answer.inliers_of, key=lambda n: answer.inliers_of[n], default=None)
        where = None
        if answer.pose is not None and answer.status == "localized":
            where = [float(v) for v in answer.pose.inverse().translation]
        answers.append(
            {
                "photo": photo,
                "status": answer.status,
                "confidence": answer.confidence,
                "reason": answer.reason,
                "inliers": answer.inliers,
                "correspondences": answer.correspondences,
                "matched": answer.matched,
                "retrieved": answer.retrieved,
                "error": answer.median_error,
                "position": answer.position_deviation,
                "rotation": answer.rotation_deviation,
                "where": where,
                "best": index.get(partner) if partner else best.get(photo),
                "bestInliers": answer.inliers_of.get(partner, 0) if partner else 0,
            }
        )
    return answers
