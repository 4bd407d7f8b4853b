"""A verified database → a copy with only the keypoints and matches that poses need."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import open_database
from edm_hloc.mapping.tracks import TrackSelection, find_tracks, select_tracks
from edm_hloc.mapping.verified_matches import read_verified_matches

_WORTHWHILE = 0.5  # share of the matched keypoints that may stay for thinning to be worth it


def thin_database(database: Path, out: Path, min_inliers: int) -> dict[int, np.ndarray] | None:
    """Copies a database with the keypoints and the matches of chosen tracks only.

    Cameras, images and the geometries of the pairs are the same, with the same ids.

    Args:
        database: COLMAP database with verified pairs.
        out: the file to write.
        min_inliers: pairs with fewer verified matches are left out.

    Returns:
        By image id, the numbers that the copy's keypoints have in `database`. None, and nothing is
        written, where the chosen tracks hold so many of the keypoints that it saves little.
    """
    with open_database(database) as db:
        found = read_verified_matches(db, min_inliers)
        geometries = {pair: db.read_two_view_geometry(*pair) for pair in found.rows}
    if not geometries:
        return None
    start = found.start
    track = find_tracks(found.image_of, found.matches)
    chosen = select_tracks(found, track, TrackSelection())
    if chosen.sum() > _WORTHWHILE * len(np.unique(found.matches)):
        return None
    shutil.copyfile(database, out)
    kept = {i: np.flatnonzero(chosen[start[k] : start[k + 1]]) for i, k in found.number.items()}
    a, b = found.matches.T
    stays = chosen[a] & (track[a] == track[b])
    before = np.concatenate([[0], np.cumsum(chosen)])
    renumbered = before[:-1] - before[start[found.image_of]]
    with open_database(out) as db, pycolmap.DatabaseTransaction(db):
        db.clear_keypoints()
        db.clear_matches()
        db.clear_two_view_geometries()
        for image_id, k in found.number.items():
            points = found.points[start[k] : start[k + 1]]
            db.write_keypoints(image_id, points[kept[image_id]].astype(np.float32))
        for (first, second), of_pair in found.rows.items():
            matches = renumbered[found.matches[of_pair][stays[of_pair]]].astype(np.uint32)
            if len(matches):
                geometry = geometries[first, second]
                geometry.inlier_matches = matches
                db.write_matches(first, second, matches)
                db.write_two_view_geometry(first, second, geometry)
    return kept
