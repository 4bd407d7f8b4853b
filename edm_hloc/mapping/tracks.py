"""Tracks of keypoints through verified matches, and the few of them that poses need.

Semi-dense matchers give some thousand keypoints a photo. A mapper's time grows with them, the
accuracy of its poses hardly does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components


@dataclass(frozen=True)
class Correspondences:
    """Verified matches of several photos, with their keypoints numbered through.

    Attributes:
        points: (N, 2) keypoints of all photos, pixels.
        image_of: (N,) number of the photo of each keypoint, ascending.
        matches: (M, 2) verified matches, numbers of keypoints.
        pair_of: (M,) number of the pair of each match.
    """

    points: np.ndarray
    image_of: np.ndarray
    matches: np.ndarray
    pair_of: np.ndarray


def find_tracks(image_of: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """Groups keypoints that show the same point, never two of one photo.

    Connected keypoints are one track. Where two of them are of one photo, at least one of their
    matches is wrong: such a group is joined anew match by match, first those that the most other
    matches confirm, without those that would bring two keypoints of one photo together.

    Args:
        image_of: (N,) number of the photo of each keypoint.
        matches: (M, 2) numbers of matched keypoints.

    Returns:
        (N,) number of each keypoint's track; keypoints without a match are tracks of their own.
    """
    n = len(image_of)
    graph = coo_array((np.ones(len(matches), np.int32), tuple(matches.T)), shape=(n, n)).tocsr()
    count, track = connected_components(graph, directed=False)
    members = np.unique(np.stack([track, image_of]), axis=1)[0]
    torn = np.bincount(track, minlength=count) != np.bincount(members, minlength=count)
    open_matches = matches[torn[track[matches[:, 0]]]]
    if not len(open_matches):
        return track
    order = np.argsort(-support(open_matches, n), kind="stable")
    parent = _join(open_matches[order], image_of)
    loose = torn[track]
    track[loose] = count + parent[loose]
    return np.unique(track, return_inverse=True)[1]


def support(matches: np.ndarray, n: int) -> np.ndarray:
    """(M,) number of keypoints, of `n`, that both keypoints of a match (M, 2) are matched with."""
    rows, columns = np.concatenate([matches, matches[:, ::-1]]).T
    graph = csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape=(n, n))
    graph.data[:] = 1
    a, b = graph[matches[:, 0]], graph[matches[:, 1]]
    return np.asarray(a.multiply(b).sum(axis=1)).ravel()


def _join(matches: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    """(N,) one keypoint of the group of each, groups joined in the order of the matches."""
    parent = list(range(len(image_of)))
    members = np.unique(matches)
    photo = dict(zip(members.tolist(), image_of[members].tolist(), strict=True))
    photos: dict[int, set[int]] = {}  # of the groups of several keypoints
    for a, b in matches.tolist():  # written out: a function call each would take twice as long
        while parent[a] != a:
            parent[a] = a = parent[parent[a]]
        while parent[b] != b:
            parent[b] = b = parent[parent[b]]
        if a == b:
            continue
        small, large = photos.get(a) or {photo[a]}, photos.get(b) or {photo[b]}
        if small.isdisjoint(large):
            if len(small) > len(large):
                small, large = large, small
            large |= small
            photos.pop(b, None)
            photos[a], parent[b] = large, a
    roots = np.array(parent)
    while (roots[roots] != roots).any():
        roots = roots[roots]
    return roots


@dataclass(frozen=True)
class TrackSelection:
    """How many tracks are chosen.

    Attributes:
        cells: a photo has `cells`² parts that hold equally many of its matched keypoints.
        per_cell: tracks that each part of a photo gets, where it has as many.
        per_pair: matches that each pair of photos keeps, where it has as many.
        still: share of the photos' longer side; matches that move by less stay where they are.
    """

    cells: int = 8
    per_cell: int = 4
    per_pair: int = 30
    still: float = 2e-3


def select_tracks(
    found: Correspondences, track: np.ndarray, selection: TrackSelection
) -> np.ndarray:
    """Chooses the longest tracks such that all parts of all photos and all pairs keep their share.

    Tracks that stay at the same pixels are left out, unless most do: they tell nothing of the
    motion, or the wrong, as the wall behind a turntable does.

    Args:
        found: keypoints and verified matches.
        track: (N,) number of each keypoint's track.
        selection: how many are chosen.

    Returns:
        (N,) whether a keypoint's track was chosen.
    """
    if not len(found.matches):
        return np.zeros(len(track), bool)
    length = np.bincount(track)
    usable = (length > 1) & ~_still(found, track, selection.still)
    used = np.flatnonzero(usable[track])
    first, second = found.matches.T
    inside = (track[first] == track[second]) & usable[track[first]]
    # what a track fills: a part of each of its photos, and its pairs
    part = _cells(found.points[used], found.image_of[used], selection.cells)
    part += found.image_of[used] * selection.cells**2
    parts = (int(found.image_of.max()) + 1) * selection.cells**2
    owner = np.concatenate([track[used], track[first[inside]]])
    fills = np.concatenate([part, parts + found.pair_of[inside]])
    order = np.lexsort([owner, -length[owner]])
    owner, fills = owner[order], fills[order]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    room = [selection.per_cell] * parts
    room += [selection.per_pair] * (int(found.pair_of.max()) + 1)
    chosen = np.zeros(len(length), bool)
    for t, its in zip(owner[starts].tolist(), np.split(fills, starts[1:]), strict=True):
        filled = its.tolist()
        if any(room[i] > 0 for i in filled):
            chosen[t] = True
            for i in filled:
                room[i] -= 1
    return chosen[track]


def _still(found: Correspondences, track: np.ndarray, tolerance: float) -> np.ndarray:
    """(T,) whether most matches of a track stay at the same pixels while most others move."""
    first, second = found.matches.T
    stays = np.abs(found.points[first] - found.points[second]).max(axis=1) < tolerance * np.ptp(
        found.points
    )
    if stays.mean() > 0.5:
        return np.zeros(int(track.max()) + 1, bool)
    inside = track[first] == track[second]
    number = int(track.max()) + 1
    matches = np.bincount(track[first[inside]], minlength=number)
    still = np.bincount(track[first[inside]], stays[inside], minlength=number)
    return np.asarray(still > matches / 2)


def _cells(points: np.ndarray, group: np.ndarray, number: int) -> np.ndarray:
    """(N,) cell of each point among `number`² of its group, which hold equally many points each.

    Cells of equal area would favour the sparse parts of a photo: a plain wall behind the scene.
    """
    columns = _quantile(points[:, 0], group, number)
    return columns * number + _quantile(points[:, 1], group * number + columns, number)


def _quantile(values: np.ndarray, group: np.ndarray, number: int) -> np.ndarray:
    """(N,) which of `number` equal parts of its group a value is in, 0 for the smallest."""
    order = np.lexsort([values, group])
    size = np.bincount(group)
    start = np.cumsum(size) - size
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - start[group[order]]
    return np.asarray(rank * number // size[group])
