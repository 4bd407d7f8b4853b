"""Relative rotations of pairs by their matches, and the pairs that contradict stronger ones.

Photos of places that look alike have many matches, but fewer than photos side by side. So those
pairs are taken as right that connect the photos best: a maximum spanning tree of the matches. Its
rotations, one after the other, give each photo's. A pair of different places then is off by a large
angle, also where a model was bent until its matches fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import networkx as nx
import numpy as np
import pycolmap

from edm_hloc.mapping.database_reading import CACHED_IMAGES, IdPair, keypoints_of

_DRIFT = 10.0  # degrees for each pair of a path, which add up like random errors
_LARGEST_DRIFT = 60.0  # degrees: equal sides of things are mostly a quarter or half a turn apart
_BENT = 5.0  # degrees between a strongest pair's own rotation and a model's. In models that are
# right most are below 2


def rotations_by_matches(
    db: pycolmap.Database, model: pycolmap.Reconstruction, pairs: Iterable[IdPair]
) -> dict[IdPair, pycolmap.Rotation3d]:
    """The rotation from the first camera to the second, by the verified matches of a pair alone.

    Args:
        db: database with keypoints and verified pairs.
        model: its cameras count, not its poses; images have the ids of the database.
        pairs: ids of images of the model. Pairs whose matches determine no pose are left out.
    """

    points = lru_cache(CACHED_IMAGES)(partial(keypoints_of, db))
    rotations = {}
    for a, b in pairs:
        first, second = (model.cameras[model.images[i].camera_id] for i in (a, b))
        geometry = db.read_two_view_geometry(a, b)
        known = pycolmap.estimate_two_view_geometry_pose(
            first, points(a), second, points(b), geometry
        )
        if known and geometry.cam2_from_cam1 is not None:
            rotations[a, b] = geometry.cam2_from_cam1.rotation
    return rotations


def rotation_by_poses(model: pycolmap.Reconstruction, pair: IdPair) -> pycolmap.Rotation3d:
    """The rotation from the first camera of a pair to the second by the poses of a model."""
    first, second = (model.images[i].cam_from_world().rotation for i in pair)
    return second * first.inverse()


@dataclass(frozen=True)
class StrongestPairs:
    """The pairs that connect photos best, and what their rotations say of the others.

    Attributes:
        rotations: of all pairs, see `rotations_by_matches`.
        counts: number of their matches.
    """

    rotations: Mapping[IdPair, pycolmap.Rotation3d]
    counts: Mapping[IdPair, int]

    @classmethod
    def of(
        cls, db: pycolmap.Database, model: pycolmap.Reconstruction, counts: Mapping[IdPair, int]
    ) -> StrongestPairs:
        """Those between the images of a model.

        Args:
            db: database with keypoints and verified pairs.
            model: its cameras count.
            counts: number of matches of each pair.
        """
        inside = set(model.reg_image_ids())
        pairs = sorted(pair for pair in counts if inside.issuperset(pair))
        rotations = rotations_by_matches(db, model, pairs)
        return cls(rotations, {pair: counts[pair] for pair in rotations})

    @cached_property
    def _tree(self) -> nx.Graph:
        graph = nx.Graph()
        graph.add_weighted_edges_from((a, b, n) for (a, b), n in self.counts.items())
        return nx.maximum_spanning_tree(graph)

    def contradicting(self) -> set[IdPair]:
        """The pairs whose rotation is far off the one that the strongest pairs give."""
        turned: dict[int, pycolmap.Rotation3d] = {}
        for images in nx.connected_components(self._tree):
            start = min(images)
            turned[start] = pycolmap.Rotation3d()
            for a, b in nx.bfs_edges(self._tree, start):
                known = self.rotations.get((a, b))
                turned[b] = (self.rotations[b, a].inverse() if known is None else known) * turned[a]
        steps: dict[int, dict[int, int]] = {}
        found = set()
        for (a, b), rotation in self.rotations.items():
            if a not in steps:
                steps = {a: nx.single_source_shortest_path_length(self._tree, a)}
            off = np.degrees(rotation.angle_to(turned[b] * turned[a].inverse()))
            if off > min(_DRIFT * np.sqrt(steps[a][b]), _LARGEST_DRIFT):
                found.add((a, b))
        return found

    def bent(self, model: pycolmap.Reconstruction) -> int:
        """How many of the strongest pairs are turned otherwise in a model."""
        inside = set(model.reg_image_ids())
        strongest = [pair for pair in self.rotations if self._tree.has_edge(*pair)]
        angles = [
            np.degrees(self.rotations[pair].angle_to(rotation_by_poses(model, pair)))
            for pair in strongest
            if inside.issuperset(pair)
        ]
        return sum(bool(angle > _BENT) for angle in angles)
