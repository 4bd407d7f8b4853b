"""A verified database → a copy with only the keypoints and matches that poses need."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import open_database
from edm_hloc.mapping.tracks import Correspondences, TrackSelection, find_tracks, select_tracks

_NONE = np.zeros((0, 2), np.float32)
_WORTHWHILE = 0.5  # share of the matched keypoints that may stay for thinning to be worth it


def thin_database(
    database: Path, out: Path, min_inliers: int, selection: TrackSelection | None = None
) -> dict[int, np.ndarray] | None:
    """Copies a database with the keypoints and the matches of chosen tracks only.

    Cameras, images and the geometries of the pairs are the same, with the same ids.

    Args:
        database: COLMAP database with verified pairs.
        out: the file to write.
        min_inliers: pairs with fewer verified matches are left out.
        selection: how many tracks are chosen, see `select_tracks`.

    Returns:
        By image id, the numbers that the copy's keypoints have in `database`. None, and nothing is
        written, where the chosen tracks hold so many of the keypoints that it saves little.
    """
    with open_database(database) as db:
        ids = sorted(image.image_id for image in db.read_all_images())
        number = {image_id: k for k, image_id in enumerate(ids)}
        points = [db.read_keypoints(i)[:, :2] if db.exists_keypoints(i) else _NONE for i in ids]
        pairs = [
            (*pycolmap.pair_id_to_image_pair(pair_id), geometry)
            for pair_id, geometry in zip(*db.read_two_view_geometries(), strict=True)
            if len(geometry.inlier_matches) >= max(1, min_inliers)
        ]
    if not pairs:
        return None
    start = np.concatenate([[0], np.cumsum([len(p) for p in points])]).astype(np.int64)
    found = Correspondences(
        points=np.concatenate(points),
        image_of=np.repeat(np.arange(len(ids)), np.diff(start)),
        matches=np.concatenate(
            [g.inlier_matches + start[[number[a], number[b]]] for a, b, g in pairs]
        ).astype(np.int64),
        pair_of=np.repeat(np.arange(len(pairs)), [len(g.inlier_matches) for _, _, g in pairs]),
    )
    track = find_tracks(found.image_of, found.matches)
    chosen = select_tracks(found, track, selection or TrackSelection())
    if chosen.sum() > _WORTHWHILE * len(np.unique(found.matches)):
        return None
    shutil.copyfile(database, out)
    kept = {i: np.flatnonzero(chosen[start[k] : start[k + 1]]) for i, k in number.items()}
    a, b = found.matches.T
    stays = chosen[a] & (track[a] == track[b])
    before = np.concatenate([[0], np.cumsum(chosen)])
    renumbered = before[:-1] - before[start[found.image_of]]
    with open_database(out) as db, pycolmap.DatabaseTransaction(db):
        db.clear_keypoints()
        db.clear_matches()
        db.clear_two_view_geometries()
        for image_id, k in number.items():
            db.write_keypoints(image_id, points[k][kept[image_id]].astype(np.float32))
        ends = np.cumsum([len(geometry.inlier_matches) for _, _, geometry in pairs])
        for (first, second, geometry), end in zip(pairs, ends, strict=True):
            of_pair = slice(end - len(geometry.inlier_matches), end)
            matches = renumbered[found.matches[of_pair][stays[of_pair]]].astype(np.uint32)
            if len(matches):
                geometry.inlier_matches = matches
                db.write_matches(first, second, matches)
                db.write_two_view_geometry(first, second, geometry)
    return kept
