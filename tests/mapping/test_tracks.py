"""Tracks through verified matches, and which of them are chosen for the poses."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_hloc.mapping.tracks import Correspondences, TrackSelection, find_tracks, select_tracks


def pieces(track: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(np.flatnonzero(track == t).tolist()) for t in np.unique(track)}


def test_tracks_are_the_connected_keypoints() -> None:
    image_of = np.array([0, 0, 1, 1, 2])
    matches = np.array([[0, 2], [2, 4], [1, 3]])
    assert pieces(find_tracks(image_of, matches)) == {(0, 2, 4), (1, 3)}


def test_a_track_with_two_keypoints_of_a_photo_is_cut_where_fewest_matches_confirm_it() -> None:
    # two points in three photos, all matched, and one wrong match between them
    image_of = np.array([0, 0, 1, 1, 2, 2])
    right = [[0, 2], [2, 4], [0, 4], [1, 3], [3, 5], [1, 5]]
    for wrong in ([0, 3], [3, 4], [1, 4]):
        for matches in ([wrong, *right], [*right, wrong]):
            assert pieces(find_tracks(image_of, np.array(matches))) == {(0, 2, 4), (1, 3, 5)}


def test_memory_does_not_grow_with_the_number_of_photos() -> None:
    """Photos of large numbers, as the last of many thousands have."""
    keypoints = np.arange(2000)
    matches = np.column_stack([keypoints[:-3], keypoints[3:]])
    tracemalloc.start()
    try:
        find_tracks(keypoints % 100, matches)
        few = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        find_tracks(keypoints % 100 + 50_000, matches)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * few
    finally:
        tracemalloc.stop()


@st.composite
def correspondences(draw: st.DrawFn) -> Correspondences:
    """Some photos of one scene with wrong matches among the right ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    photos, points = draw(st.integers(2, 6)), draw(st.integers(1, 60))
    seen = [np.flatnonzero(rng.random(points) < 0.8) for _ in range(photos)]
    start = np.cumsum([0, *(len(s) for s in seen)])
    matches, pair_of, pair = [np.zeros((0, 2), int)], [np.zeros(0, int)], 0
    for a in range(photos):
        for b in range(a + 1, photos):
            _, i, j = np.intersect1d(seen[a], seen[b], return_indices=True)
            wrong = rng.random(len(j)) < draw(st.sampled_from([0.0, 0.2]))
            j[wrong] = rng.permutation(j[wrong])
            matches.append(np.stack([i + start[a], j + start[b]], axis=1))
            pair_of.append(np.full(len(i), pair))
            pair += 1
    return Correspondences(
        points=rng.uniform(0, 640, (start[-1], 2)),
        image_of=np.repeat(np.arange(photos), np.diff(start)),
        matches=np.concatenate(matches),
        pair_of=np.concatenate(pair_of),
    )


@settings(max_examples=60, deadline=None)
@given(correspondences())
def test_no_track_has_two_keypoints_of_a_photo(found: Correspondences) -> None:
    track = find_tracks(found.image_of, found.matches)
    both = np.stack([track, found.image_of])
    assert np.unique(both, axis=1).shape == both.shape
    assert np.array_equal(np.unique(track), np.arange(track.max(initial=-1) + 1))


@settings(max_examples=60, deadline=None)
@given(correspondences(), st.integers(1, 5), st.integers(0, 12))
def test_photos_and_pairs_keep_their_share(
    found: Correspondences, per_cell: int, per_pair: int
) -> None:
    track = find_tracks(found.image_of, found.matches)
    chosen = select_tracks(found, track, TrackSelection(2, per_cell, per_pair))
    length = np.bincount(track, minlength=1)
    for t in np.unique(track):
        assert len(set(chosen[track == t].tolist())) == 1  # whole tracks
    assert not chosen[length[track] < 2].any()
    first, second = found.matches.T
    inside = track[first] == track[second]
    for pair in np.unique(found.pair_of):
        its = inside & (found.pair_of == pair)
        assert (its & chosen[first]).sum() >= min(per_pair, its.sum())
    for image in np.unique(found.image_of):
        its = (found.image_of == image) & (length[track] > 1)
        assert (its & chosen).sum() >= min(4 * (per_cell - 1), its.sum())


def test_dense_parts_of_a_photo_do_not_take_the_place_of_the_others() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (4000, 2))
    rest = rng.uniform(0, 640, (400, 2))
    points = np.concatenate([corner, rest])
    n = len(points)
    found = Correspondences(
        points=np.concatenate([points, points + 30]),
        image_of=np.repeat([0, 1], n),
        matches=np.stack([np.arange(n), np.arange(n) + n], axis=1),
        pair_of=np.zeros(n, int),
    )
    track = find_tracks(found.image_of, found.matches)
    chosen = select_tracks(found, track, TrackSelection(8, 2, 0))[:n]
    assert 128 <= chosen.sum() < 400
    outside = points[chosen & (points > 40).any(axis=1)]
    assert len(outside) > 8
    assert np.ptp(outside, axis=0).min() > 320


def test_what_stays_behind_a_turntable_is_left_out() -> None:
    n = 300
    points = np.random.default_rng(0).uniform(0, 640, (n, 2))
    wall = np.arange(n) < 100

    def chosen_of(moves: np.ndarray) -> np.ndarray:
        found = Correspondences(
            points=np.concatenate([points, points + np.where(moves, 20.0, 0.5)[:, None]]),
            image_of=np.repeat([0, 1], n),
            matches=np.stack([np.arange(n), np.arange(n) + n], axis=1),
            pair_of=np.zeros(n, int),
        )
        track = find_tracks(found.image_of, found.matches)
        return select_tracks(found, track, TrackSelection(per_pair=n))[:n]

    assert np.array_equal(chosen_of(~wall), ~wall)
    assert chosen_of(np.zeros(n, bool)).all()  # photos from a tripod
