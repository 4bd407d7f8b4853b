"""A query's photo aligned to the photos of the model that it was localized in.

A match is as exact as two photos make it. Here the points that the best database photos see are
projected into the query, and its patches are aligned to the mean of theirs, so that each point is
as exact as all of them make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.localization.points import ModelPoints
from edm_hloc.tracks.alignment import AlignmentSettings, align
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views, mean_directions, viewing_directions
from edm_hloc.tracks.photos import PhotoShelf

_PHOTOS = 8  # of the database, those with most inliers
_POINTS = 4000  # spread over the query, in each place those that most of these photos see
_PLACES = 24  # along the query's longer side
_WIDEST = 0.5  # cosine of the angle between the query's direction and the mean one of a point


class PhotoAligner:
    """Aligns queries to the photos of a model.

    Args:
        points: the model; with the folder of its photos.
        config: the settings.
    """

    def __init__(self, points: ModelPoints, config: TrackConfig | None = None) -> None:
        self._config = config or TrackConfig()
        self._root, self._prefix = points.image_root or Path(), points.prefix
        self._views = Views.of(points.model)
        tracks = Tracks.of(points.model, self._views)
        again = (np.diff(tracks.track) == 0) & (np.diff(tracks.view) == 0)
        self._tracks = tracks.chosen(~np.append(False, again))  # models of others have repeats
        self._rows = {name: v for v, name in enumerate(self._views.names)}

    def align(
        self,
        photo: Path,
        number: int,
        camera: pycolmap.Camera,
        cam_from_world: pycolmap.Rigid3d,
        inliers: Mapping[str, int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where a query sees points of the model.

        Args:
            photo: the query.
            number: of the alignment: the second has smaller patches.
            camera: its intrinsics.
            cam_from_world: its pose, right within some pixels.
            inliers: number of inliers of each database photo that has any.

        Returns:
            Pixels (N, 2) of the query, COLMAP's frame, and the points (N, 3) in the world; none
            where the photos do not agree.
        """
        config = self._config
        best = sorted(inliers, key=lambda name: (-inliers[name], name))[:_PHOTOS]
        rows = np.array(sorted(self._rows[name.removeprefix(self._prefix)] for name in best), int)
        views = self._with_query(rows, photo, camera, cam_from_world)
        tracks = self._seen_by(rows, views)
        query = len(rows)
        voting = tracks.view != query
        shelf = PhotoShelf(self._root, views.names, config.max_side)
        # many queries are aligned at a time, each a part of the one progress
        how = AlignmentSettings(config.patch_radii[number], threads=1, shown=False)
        found = align(tracks, voting, views, shelf, config, how)
        good = (found.correlation > config.min_new_correlation) & ~voting
        good &= found.texture[tracks.track] > config.min_texture
        if good.any():
            good &= found.moved <= config.outlier * np.median(found.moved[good])
        return found.xy[good], tracks.xyz[tracks.track[good]]

    def _with_query(
        self,
        rows: np.ndarray,
        photo: Path,
        camera: pycolmap.Camera,
        cam_from_world: pycolmap.Rigid3d,
    ) -> Views:
        """Some of the model's photos, and the query as the last."""
        of, pose = self._views, cam_from_world.matrix()
        return Views(
            (*(of.names[v] for v in rows), str(photo.resolve())),
            np.append(of.ids[rows], -1),
            (*(of.cameras[v] for v in rows), camera),
            np.concatenate([of.R[rows], pose[None, :, :3]]),
            np.concatenate([of.t[rows], pose[None, :, 3]]),
        )

    def _seen_by(self, rows: np.ndarray, views: Views) -> Tracks:
        """Points that two or more of the photos see, with an observation of the query each."""
        tracks = self._tracks
        new = np.full(len(self._views.ids), -1)
        new[rows] = np.arange(len(rows))
        keep = new[tracks.view] >= 0
        number = np.bincount(tracks.track[keep], minlength=len(tracks.ids))
        which = np.flatnonzero(number > 1)
        place = views.project(tracks.xyz[which], np.full(len(which), len(rows)))
        size = (views.cameras[-1].width, views.cameras[-1].height)
        inside = ((place > 0) & (place < size)).all(axis=1)
        which, place = which[inside], place[inside]
        cells = (place * (_PLACES / max(size))).astype(int) @ (1, _PLACES)
        chosen = np.sort(_spread(cells, number[which])[:_POINTS])
        which, place = which[chosen], place[chosen]
        part, its = tracks.part(which)
        seen = part.chosen(keep[its])
        track = np.concatenate([seen.track, np.arange(len(which))])
        view = np.concatenate([new[seen.view], np.full(len(which), len(rows))])
        both = Tracks.gathered(
            part.ids,
            part.xyz,
            track,
            view,
            np.concatenate([seen.index, np.full(len(which), -1)]),
            np.concatenate([seen.xy, place]),
        )
        of_query = both.view == len(rows)
        others = both.chosen(~of_query)
        along = viewing_directions(both, views)[of_query]
        wide = np.einsum("ti,ti->t", along, mean_directions(others, views)) < _WIDEST
        return both.chosen(~(of_query & wide[both.track]))


def _spread(cells: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """The order (N,) in which every cell gives its most worthy first, then every cell its second.

    Points that the most photos see lie together, in the middle of what all look at: from them alone
    a turn and a shift of the camera can hardly be told apart.
    """
    order = np.lexsort([-worth, cells])
    sorted_cells = cells[order]
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order)) - np.searchsorted(sorted_cells, sorted_cells)
    return np.lexsort([-worth, rank])
