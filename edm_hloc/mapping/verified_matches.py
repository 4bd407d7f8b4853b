"""A database → its verified matches as arrays, with the keypoints numbered through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap

from edm_hloc.mapping.database_reading import IdPair
from edm_hloc.mapping.tracks import Correspondences


@dataclass(frozen=True)
class VerifiedMatches(Correspondences):
    """The correspondences of a database; points are float32, in COLMAP's pixel frame.

    Attributes:
        number: of each image, by its id; ascending with the ids.
        start: (I + 1,) number of the first keypoint of each image, then that of all keypoints.
        rows: which of the matches a pair has, by the ids of its images, the smaller first.
    """

    number: Mapping[int, int]
    start: np.ndarray
    rows: Mapping[IdPair, slice]


def read_verified_matches(db: pycolmap.Database, min_inliers: int) -> VerifiedMatches:
    """Reads all images, also those without matches, and the pairs with enough verified matches."""
    ids = sorted(image.image_id for image in db.read_all_images())
    number = {image_id: k for k, image_id in enumerate(ids)}
    none = np.zeros((0, 2), np.float32)
    points = [db.read_keypoints(i)[:, :2] if db.exists_keypoints(i) else none for i in ids]
    start = np.concatenate([[0], np.cumsum([len(p) for p in points])]).astype(np.int64)
    matches, rows, at = [np.zeros((0, 2), np.int64)], {}, 0
    for pair_id, geometry in zip(*db.read_two_view_geometries(), strict=True):
        found = geometry.inlier_matches
        if len(found) < max(1, min_inliers):
            continue
        a, b = pycolmap.pair_id_to_image_pair(pair_id)
        rows[a, b] = slice(at, at + len(found))
        at += len(found)
        matches.append(found.astype(np.int64) + start[[number[a], number[b]]])
    return VerifiedMatches(
        points=np.concatenate([none, *points]),
        image_of=np.repeat(np.arange(len(ids)), np.diff(start)),
        matches=np.concatenate(matches),
        pair_of=np.repeat(np.arange(len(rows)), [row.stop - row.start for row in rows.values()]),
        number=number,
        start=start,
        rows=rows,
    )
