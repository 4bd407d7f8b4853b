"""The data that the page's script draws: one JSON object, large arrays packed in base64."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from edm_hloc.base.frames import upright_size
from edm_hloc.report.facts import PhotoFacts, RunFacts
from edm_hloc.report.gallery import (
    Pair,
    best_partners,
    gallery,
    pack_pairs,
    pairs_to_draw,
    upright_places,
)
from edm_hloc.report.match_graph import match_graph
from edm_hloc.report.packing import pack
from edm_hloc.report.pair_matches import PairSource
from edm_hloc.report.scene import Scene, build_scene
from edm_hloc.report.thumbnails import Thumbnail, make_thumbnails, side_for

THUMBNAIL_BYTES = 6_000_000  # for the thumbnails of all photos together
MAX_THUMBNAILS = 2500  # in a larger run only photos of pairs with lines have one
MAX_POINTS = 300_000  # in the 3D view
GRID = (16, 12)  # columns and rows of the coverage grid


@dataclass(frozen=True)
class Payload:
    """The data of a page.

    Attributes:
        data: the JSON object, as page.js reads it.
        scene: the model; None where there is nothing to draw.
        photos: statistics of each photo, by name.
        notes: what was left out to keep the page small, one sentence each, by the section of the
            page that shows them: "model", "graph" or "run".
    """

    data: dict[str, Any]
    scene: Scene | None
    photos: dict[str, PhotoFacts]
    notes: dict[str, list[str]]


def make_payload(facts: RunFacts) -> Payload:
    """Gathers what the page draws; what cannot be read is noted in `facts.problems`."""
    notes: dict[str, list[str]] = {"model": [], "graph": [], "run": []}
    groups = gallery(facts)
    best = best_partners(facts)
    drawn = pairs_to_draw(facts, groups, best)
    photos, entries = _photos(facts, best, drawn, notes["run"])
    scene = None
    if len(facts.points) or facts.views:
        turned = {name: photo.orientation for name, photo in photos.items()}
        views = [replace(view, orientation=turned.get(view.name, 1)) for view in facts.views]
        with facts.noting_errors("Model"):
            place = facts.results.get("georeferenced") or {}
            on_earth = bool(place.get("used")) or facts.on_earth
            scene = build_scene(facts.points, views, on_earth=on_earth)
    pairs: dict[str, Any] = {}
    with facts.noting_errors("Matches"), PairSource(facts) as source:
        pairs = pack_pairs(facts, drawn, photos, source)
    data = {
        "kind": facts.kind,
        "verified": facts.verified,
        "minInliers": facts.min_inliers,
        "hasModel": bool(facts.registered),
        "photos": entries,
        "scene": None if scene is None else _scene_data(facts, scene, notes["model"]),
        "graph": match_graph(facts, notes["graph"]),
        "pairs": pairs,
        "gallery": groups,
        "queries": _query_data(facts, best),
    }
    return Payload(data, scene, photos, notes)


# --------------------------------------------------------------------------- photos


def _photos(
    facts: RunFacts, best: Mapping[int, int], drawn: Sequence[Pair], notes: list[str]
) -> tuple[dict[str, PhotoFacts], list[dict[str, Any]]]:
    """Statistics of each photo by name, and what the page shows of each."""
    thumbnails, unreadable = _thumbnails(facts, drawn, notes)
    sizes = {name: (camera.width, camera.height) for name, camera in facts.cameras.items()}
    sizes |= {name: thumbnail.photo_size for name, thumbnail in thumbnails.items()}
    sizes |= facts.sizes  # the photos at hand may be copies of another size
    turned = {name: thumbnail.orientation for name, thumbnail in thumbnails.items()}
    counted: dict[str, tuple[int, np.ndarray]] = {}
    with facts.noting_errors("Keypoints"), PairSource(facts) as source:
        for name, points in _keypoints(facts, source):
            places = upright_places(points, sizes.get(name), turned.get(name, 1))
            counted[name] = len(points), _coverage_grid(places)
    photos, entries = {}, []
    elsewhere = set(facts.results.get("mapped", {}).get("elsewhere", ()))
    for i, name in enumerate(facts.names):
        thumbnail, size = thumbnails.get(name), sizes.get(name)
        number, grid = counted.get(name, (0, _coverage_grid(np.zeros((0, 2)))))
        orientation = turned.get(name, 1)
        photos[name] = PhotoFacts(size, number, float((grid > 0).mean()), orientation)
        entries.append(
            {
                "name": name,
                "thumb": pack(thumbnail.webp) if thumbnail else None,
                "size": None if size is None else upright_size(size, orientation),
                "keypoints": number,
                "coverage": photos[name].coverage,
                "grid": pack(grid.tobytes()) if number else None,
                "points": facts.registered.get(name),
                "elsewhere": name in elsewhere,
                "best": best.get(i),
                "href": _href(facts, name),
                "problem": facts.skipped.get(name) or unreadable.get(name),
            }
        )
    return photos, entries


def _thumbnails(
    facts: RunFacts, drawn: Sequence[Pair], notes: list[str]
) -> tuple[dict[str, Thumbnail], dict[str, str]]:
    wanted = facts.names
    if len(wanted) > MAX_THUMBNAILS:
        needed = {i for pair in drawn for i in pair}
        wanted = [name for i, name in enumerate(facts.names) if i in needed][:MAX_THUMBNAILS]
        notes.append(f"{len(wanted):,} of {len(facts.names):,} photos have a picture here.")
    paths = {}
    for name in wanted:
        path = facts.photo_path(name)
        if path is not None and name not in facts.skipped:
            paths[name] = path
    side = side_for(max(1, len(paths)), THUMBNAIL_BYTES)
    return make_thumbnails(paths, side)


def _keypoints(facts: RunFacts, source: PairSource) -> Iterator[tuple[str, np.ndarray]]:
    """(N, 2) keypoints of one photo after the other, or the points of its raw matches."""
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


def _coverage_grid(places: np.ndarray) -> np.ndarray:
    """(12, 16) uint8: number of keypoints in each cell of a photo, at most 255.

    Args:
        places: (N, 2) see `upright_places`.
    """
    counts = np.zeros((GRID[1], GRID[0]))
    if len(places):
        column, row = (places * GRID).astype(int).T
        np.add.at(counts, (row.clip(0, GRID[1] - 1), column.clip(0, GRID[0] - 1)), 1)
    return counts.clip(0, 255).astype(np.uint8)


def _href(facts: RunFacts, name: str) -> str | None:
    """Relative URL of a photo, valid while neither the page nor the photos are moved."""
    path = facts.photo_path(name)
    if path is None:
        return None
    try:
        # only the folder is resolved: a symbolic link to a photo is followed by the browser
        relative = os.path.relpath(path.parent.resolve() / path.name, facts.out.resolve())
    except ValueError:  # another drive
        return None
    return quote(Path(relative).as_posix(), safe="/")


# --------------------------------------------------------------------------- model and queries


def _scene_data(facts: RunFacts, scene: Scene, notes: list[str]) -> dict[str, Any]:
    """Points as 16-bit coordinates in descending order of track length, and the cameras.

    A minimum track length then selects the first points of the list.
    """
    points, framed = scene.points, scene.framed
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.random(len(points)), -points.tracks))
    if len(order) > MAX_POINTS:
        notes.append(
            f"The 3D view shows {MAX_POINTS:,} of {len(order):,} points, those with the "
            "longest tracks."
        )
        order = order[:MAX_POINTS]
    points, framed = points[order], framed[order]
    if scene.hidden:
        notes.append(
            f"{scene.hidden:,} points lie far outside the model and are not shown in the 3D view."
        )
    extent = float(np.abs(points.xyz).max()) if len(points) else 1.0
    tracks, first = np.unique(-points.tracks, return_index=True)
    counts = [*first[1:].tolist(), len(points)] if len(points) else []
    index = {name: i for i, name in enumerate(facts.names)}
    return {
        "count": len(points),
        "extent": extent,
        "xyz": pack((points.xyz / max(extent, 1e-12) * 32767).round().astype("<i2").tobytes()),
        "colors": pack(points.colors.tobytes()),
        "framed": pack(framed.astype("u1").tobytes()),
        # [[5, 120], [4, 400], …]: 120 points have tracks of 5 photos or more, 400 of 4 or more, …
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


def _query_data(facts: RunFacts, best: Mapping[int, int]) -> list[dict[str, Any]]:
    """What the page shows of each query, with the database photo that has the most inliers."""
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
