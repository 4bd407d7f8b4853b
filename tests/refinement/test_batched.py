"""The refinement of batches, for GPUs, beside that of single pairs: the same to rounding.

Everything runs on the CPU, and on a GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.refinement import affine, batched_affine, batched_corners, corners
from edm_hloc.refinement.batched_consensus import Correspondences, robust_maps
from edm_hloc.refinement.batched_points import nearest
from edm_hloc.refinement.batched_warping import warped_together
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.load import load_matcher
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.refinement.second_look import SecondLookConfig
from tests.planar import PlanarPair

CONFIG = RefinementConfig()
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def padded(sets: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets of points (M, 2) as (B, N, 2), between which lies what must not be used; and which of
    them are points, (B, N)."""
    length = max(map(len, sets)) + 2
    points = np.full((len(sets), length, 2), 7.0, np.float32)
    for row, one in zip(points, sets, strict=True):
        row[: len(one)] = one
    valid = np.arange(length) < np.array([len(one) for one in sets])[:, None]
    return torch.from_numpy(points).to(device), torch.from_numpy(valid).to(device)


def test_the_nearest_are_exact_and_of_equal_distances_the_first(device: torch.device) -> None:
    rng = np.random.default_rng(0)
    grid = 8.0 * np.stack(np.meshgrid(np.arange(12), np.arange(9)), axis=-1).reshape(-1, 2)
    sets = [grid[rng.permutation(len(grid))], rng.uniform(0, 90, (40, 2)), grid[:3], grid[:0]]
    points, valid = padded([one.astype(np.float32) for one in sets], device)
    squared, index = nearest(points, valid, points, 21)
    for i, one in enumerate(sets):
        one = one.astype(np.float32)
        all_squared = ((one[:, None] - one) ** 2).sum(axis=2)
        order = np.argsort(all_squared, axis=1, kind="stable")[:, :21]
        count = min(21, len(one))
        here = squared[i, : len(one)].cpu().numpy()
        np.testing.assert_array_equal(index[i, : len(one), :count].cpu().numpy(), order)
        np.testing.assert_allclose(
            here[:, :count], np.take_along_axis(all_squared, order, 1), rtol=1e-6
        )
        assert np.isinf(here[:, count:]).all()


def random_matches(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (M, 2) on the grid of one photo and beside it in the other; a fifth are wrong."""
    rng = np.random.default_rng(seed)
    points0 = 8.0 * rng.permutation(np.stack(np.mgrid[:40, :30], axis=-1).reshape(-1, 2))[:count]
    A = np.array([[0.9, -0.3], [0.3, 0.9]])
    points1 = points0 @ A.T + 5 * np.sin(points0 / 40) + rng.normal(0, 1, points0.shape)
    wrong = rng.random(count) < 0.2
    points1[wrong] = rng.uniform(0, 300, (wrong.sum(), 2))
    return points0.astype(np.float32), points1.astype(np.float32)


def test_maps_and_support_are_those_of_single_pairs(device: torch.device) -> None:
    pairs = [random_matches(count, count) for count in (0, 1, 2, 3, 4, 15, 700)]
    points0, valid = padded([first for first, _ in pairs], device)
    points1, _ = padded([second for _, second in pairs], device)
    maps = batched_affine.local_affine_maps(points0, points1, valid, 20)
    at = torch.tensor([[2, 0, 1]], device=device).expand(len(pairs), -1)
    some = batched_affine.local_affine_maps(points0, points1, valid, 20, at)
    supports = [
        batched_affine.neighbour_support(points0, points1, valid, 20, aligned)
        for aligned in (False, True)
    ]
    for i, (first, second) in enumerate(pairs):
        count = len(first)
        if count:
            expected = affine.local_affine_maps(first, second, 20)
            # The compiled loop stops earlier at a few matches that are wrong themselves.
            away = np.abs(maps[i, :count].cpu().numpy() - expected).max(axis=(1, 2))
            assert (away < 2e-3).sum() >= 0.99 * count
        if count > 2:
            chosen = maps[i, [2, 0, 1]].cpu().numpy()
            np.testing.assert_allclose(some[i].cpu().numpy(), chosen, atol=1e-5)
        for aligned, support in zip((False, True), supports, strict=True):
            expected = affine.neighbour_support(first, second, 20, aligned)
            same = np.abs(support[i, :count].cpu().numpy() - expected) < 1e-6
            assert same.sum() >= 0.995 * count


@pytest.mark.parametrize("size", [(313, 471), (64, 96), (8, 8)])
def test_corners_are_those_of_single_photos(size: tuple[int, int], device: torch.device) -> None:
    noise = np.random.default_rng(1).random((3, *size)).astype(np.float32)
    grey = np.stack([cv2.GaussianBlur(image, (0, 0), 1.2) for image in noise])
    grey[1, :, size[1] // 2 :] = 0.5
    grey[2] = 0.5
    found = batched_corners.strongest_corners(torch.from_numpy(grey).to(device))
    for i, image in enumerate(grey):
        expected = corners.strongest_corners(torch.from_numpy(image)[None])
        away = np.abs(found.points[i].cpu().numpy() - expected.points).max(axis=2)
        assert (away < 0.01).mean() > 0.995
        assert (found.textured[i].cpu().numpy() == expected.textured).mean() > 0.995


def test_warped_photos_are_those_of_opencv(device: torch.device) -> None:
    noise = np.random.default_rng(2).random((3, 2, 201, 299)).astype(np.float32)
    photos = np.stack([[cv2.GaussianBlur(c, (0, 0), 3) for c in photo] for photo in noise])
    turns = [cv2.getRotationMatrix2D((60, 50), angle, 1.1) for angle in (0, 30, 80)]
    onto = np.stack([np.vstack([turn, [0, 0, 1]]) for turn in turns])
    sizes = [(299, 201), (150, 100), (131, 77)]
    found = warped_together(torch.from_numpy(photos).to(device), sizes, onto, (120, 90))
    assert found.shape == (3, 2, 90, 120)
    for i, photo in enumerate(photos):
        for channel, image in enumerate(photo):
            reduced = cv2.resize(image, sizes[i], interpolation=cv2.INTER_AREA)
            expected = cv2.warpAffine(reduced, onto[i][:2], (120, 90))
            # OpenCV rounds coordinates to 1/32 px.
            assert np.abs(found[i, channel].cpu().numpy() - expected).max() < 0.02


def test_the_consensus_is_that_of_the_true_map_and_the_same_each_time(
    device: torch.device,
) -> None:
    rng = np.random.default_rng(3)
    true = [
        np.array([[0.6, 0.5, 30], [-0.5, 0.6, 90]]),
        np.array([[0.6, 0.5, 30], [-0.2, 1.1, 90]]),
    ]
    sets, shares = [], []
    for rows in true:
        for count, share in ((20, 0.9), (60, 0.5), (400, 0.3)):
            points0 = rng.uniform(0, 600, (count, 2))
            points1 = points0 @ rows[:, :2].T + rows[:, 2] + rng.normal(0, 1, points0.shape)
            wrong = rng.random(count) > share
            points1[wrong] = rng.uniform(0, 600, (wrong.sum(), 2))
            sets.append(Correspondences(points0, points1, 8.0))
            shares.append(count - wrong.sum())
    found = robust_maps(sets, device)
    corners_of_photo = np.array([[0, 0], [600, 0], [0, 600], [600, 600]])
    for i, kinds in enumerate(found):
        for is_affine, (rows, inliers) in enumerate(kinds):
            if i >= 3 and not is_affine:
                continue  # no similarity
            rows_true = true[i // 3]
            moved, expected = (corners_of_photo @ r[:, :2].T + r[:, 2] for r in (rows, rows_true))
            assert np.abs(moved - expected).max() < 5
            # Counted for the map of two or three matches.
            assert 0.9 * shares[i] <= inliers <= shares[i] + 3
    assert robust_maps(sets, device)[2][1].rows.tolist() == found[2][1].rows.tolist()
    alone = robust_maps(sets[2:3], device)[0][1]
    np.testing.assert_allclose(alone.rows, found[2][1].rows, rtol=1e-4, atol=1e-3)
    line = np.stack([np.arange(30.0), np.arange(30.0)], axis=1)
    ((similarity, flat),) = robust_maps([Correspondences(line, line, 1.0)], device)
    assert similarity.inliers == 30
    assert flat.inliers == 0 or not np.isfinite(flat.rows).all()


class Given(Matcher):
    """Gives certain matches for each pair of photos, which are numbered as they are encoded."""

    provenance = {"matcher": "given"}  # noqa: RUF012

    def __init__(self, device: torch.device, found: dict[tuple[int, int], Matches]) -> None:
        self.info = MatcherInfo("given", Preprocessing(), device=device, confident=0.3)
        self.found = found
        self.count = 0

    def encode(self, image: NetworkImage) -> Features:
        self.count += 1
        return Features(self.count - 1, image.transform, 0)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self.found[first.data, second.data] for first, second in pairs]


def rendered(size0: tuple[int, int], size1: tuple[int, int]) -> tuple[list[np.ndarray], Matches]:
    """Two photos of a plane, and about as many matches as a network finds: true to a pixel on the
    grid of the first, a tenth of them wrong."""
    pair = PlanarPair(size0, size1)
    rng = np.random.default_rng(4)
    texture = rng.integers(-25, 25, (2, 400, 400))
    images = []
    for i, (width, height) in enumerate((size0, size1)):
        smooth = pair.image(i).astype(np.float32)
        y, x = np.mgrid[:height, :width]
        on_plane = pair.plane_points(i, np.stack([x, y], axis=-1).reshape(-1, 2))[:, :2]
        place = (40 * on_plane + 200).astype(np.float32).reshape(height, width, 2)
        fine = cv2.remap(texture[0].astype(np.float32), place, None, cv2.INTER_CUBIC)
        images.append((smooth + fine).clip(0, 255) / 255)
    y, x = np.mgrid[0 : size0[1] : 8, 0 : size0[0] : 8]
    points0 = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float64)
    points1 = pair.warp(0, points0) + rng.normal(0, 0.8, points0.shape)
    seen = ((points1 > 0) & (points1 < np.array(size1) - 1)).all(axis=1)
    points0, points1 = points0[seen], points1[seen]
    chosen = rng.permutation(len(points0))[: int(0.6 * len(points0))]
    points0, points1 = points0[chosen], points1[chosen]
    wrong = rng.random(len(points0)) < 0.1
    points1[wrong] = rng.uniform(0, size1, (wrong.sum(), 2))
    scores = rng.uniform(0.06, 1, len(points0)).astype(np.float32)
    return images, Matches(points0.astype(np.float32), points1.astype(np.float32), scores)


def batch(
    device: torch.device, size0: tuple[int, int], size1: tuple[int, int], batched: bool
) -> tuple[RefinedMatcher, list[tuple[Features, Features]]]:
    """A matcher, and pairs with 0, 1, 3, 60 and many matches, and with many that are all wrong."""
    images, matches = rendered(size0, size1)
    first = [matches[np.arange(count)] for count in (0, 1, 3, 60, len(matches))]
    shifted = replace(matches, keypoints1=matches.keypoints1[::-1].copy())
    given = [*first, shifted]
    network = Given(device, {(0, 1 + i): found for i, found in enumerate(given)})
    matcher = RefinedMatcher(network, CONFIG, batched=batched)
    shots = [images[0]] + [images[1]] * len(given)
    transform = PixelTransform((1.0, 1.0))
    encoded = matcher.encode_batch(
        [NetworkImage(torch.from_numpy(s)[None].float(), transform, s.shape[::-1]) for s in shots]
    )
    return matcher, [(encoded[0], second) for second in encoded[1:]]


def share_in_common(some: Matches, others: Matches, within: float) -> float:
    """The smaller of the shares of either that the other has as well, both points to `within`."""
    rows = [np.hstack([m.keypoints0, m.keypoints1]) for m in (some, others)]
    if not len(rows[0]) or not len(rows[1]):
        return float(len(rows[0]) == len(rows[1]))
    return min(
        float((KDTree(rows[1 - i]).query(rows[i], p=np.inf)[0] < within).mean()) for i in (0, 1)
    )


SIZES = [((313, 471), (313, 471)), ((320, 256), (217, 301))]


@pytest.mark.parametrize(("size0", "size1"), SIZES)
def test_a_batch_has_the_matches_of_its_pairs(
    size0: tuple[int, int], size1: tuple[int, int], device: torch.device
) -> None:
    single, pairs = batch(torch.device("cpu"), size0, size1, batched=False)
    expected = [single.match_pixels([pair])[0] for pair in pairs]
    together, same_pairs = batch(device, size0, size1, batched=True)
    found = together.match_pixels(same_pairs)
    assert [len(matches) for matches in expected[:1]] == [0]
    assert len(expected[4]) > 500
    assert len(expected[5]) < 100
    for some, others in zip(found, expected, strict=True):
        assert share_in_common(some, others, 0.02) >= 0.995
        assert some.keypoints0.dtype == some.scores.dtype == np.float32
        np.testing.assert_allclose(
            np.sort(some.scores)[-50:], np.sort(others.scores)[-50:], atol=2e-3
        )
    assert together.match_pixels([]) == []


def test_a_pair_has_the_same_matches_alone_and_in_a_batch(device: torch.device) -> None:
    matcher, pairs = batch(device, *SIZES[1], batched=True)
    together = matcher.match_pixels(pairs)
    for pair, matches in zip(pairs, together, strict=True):
        (alone,) = matcher.match_pixels([pair])
        assert share_in_common(alone, matches, 1e-3) >= 0.999


@pytest.mark.parametrize("batched", [False, True])
def test_wrong_matches_of_a_blank_wall_are_not_kept_for_their_correlation(batched: bool) -> None:
    size = (320, 256)
    images, matches = rendered(size, size)
    flat = [image.copy() for image in images]
    rng = np.random.default_rng(7)
    for image in flat:  # a wall, with noise of half a grey level
        image[:, :160] = 0.5 + rng.normal(0, 0.002, (size[1], 160))
    y, x = np.mgrid[16:240:8, 16:144:8]
    wall = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
    moved = wall + rng.uniform(-6, 6, wall.shape).astype(np.float32)
    right = (matches.keypoints0[:, 0] > 190) & (matches.keypoints1[:, 0] > 190)
    thing = matches[right.nonzero()[0]]
    given = Matches(
        np.vstack([thing.keypoints0, wall]),
        np.vstack([thing.keypoints1, moved]),
        np.concatenate([thing.scores, np.ones(len(wall), np.float32)]),
    )
    network = Given(torch.device("cpu"), {(0, 1): given})
    matcher = RefinedMatcher(network, CONFIG, batched=batched)
    transform = PixelTransform((1.0, 1.0))
    encoded = matcher.encode_batch(
        [NetworkImage(torch.from_numpy(i)[None].float(), transform, size) for i in flat]
    )
    (found,) = matcher.match_pixels([(encoded[0], encoded[1])])
    assert (found.keypoints0[:, 0] > 170).sum() > 100
    assert (found.keypoints0[:, 0] < 150).sum() < 0.5 * len(wall)  # of two for each match


@pytest.mark.parametrize("batched", [False, True])
def test_which_of_the_photos_is_nearer_makes_no_difference(batched: bool) -> None:
    """The far photo shows the near one in its middle, at a third of the size."""
    rng = np.random.default_rng(6)
    size = 480, 384
    near = sum(
        cv2.resize(rng.random((384 // cell, 480 // cell)), size, interpolation=cv2.INTER_CUBIC)
        for cell in (32, 12, 6)
    )
    far = cv2.resize(rng.random((32, 40)), size, interpolation=cv2.INTER_CUBIC)
    far[128:256, 160:320] = cv2.resize(near, (160, 128), interpolation=cv2.INTER_AREA) / 3
    # Matches as a second look finds them, in the frame of the near photo.
    y, x = np.mgrid[16:368:8, 16:464:8]
    points = np.stack([x, y], axis=-1).reshape(-1, 2)
    points = points[rng.permutation(len(points))[:1500]]
    partners = (points + 0.5) / 3 - 0.5 + (160, 128) + rng.normal(0, 0.3, points.shape)
    partners[:200] = rng.uniform(0, size, (200, 2))
    scores = rng.uniform(0.4, 1, 1500).astype(np.float32)
    matches = Matches(partners.astype(np.float32), points.astype(np.float32), scores)
    network = Given(torch.device("cpu"), {(0, 1): matches, (1, 0): matches.swapped()})
    matcher = RefinedMatcher(network, CONFIG, batched=batched)
    first, second = matcher.encode_batch(
        [
            NetworkImage(torch.from_numpy(i)[None].float(), PixelTransform((1.0, 1.0)), size)
            for i in (far, near / 3)
        ]
    )
    found, exchanged = matcher.match_pixels([(first, second), (second, first)])
    assert len(found) > 1500
    assert share_in_common(found, exchanged.swapped(), 1e-3) == 1
    true = (found.keypoints1 + 0.5) / 3 - 0.5 + (160, 128)
    errors = np.linalg.norm(found.keypoints0 - true, axis=1)
    assert np.median(errors) < 0.2
    assert np.mean(errors > 1) < 0.02


class Operations(TorchDispatchMode):
    """Notes the operations that PyTorch runs, and the types of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):  # type: ignore[no-untyped-def]
        result = function(*arguments, **(settings or {}))
        self.names.append(str(function.overloadpacket))
        for part in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(part, torch.Tensor):
                self.types.add(part.dtype)
        return result

    def waits(self) -> int:
        """How often the host waits for the device."""
        waiting = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select"}
        return sum(name in waiting for name in self.names)


class TwoDevices(TorchFunctionMode):
    """Pretends that tensors moved to or made on a device are elsewhere than all others, and
    notes functions that get tensors of both, which a GPU would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed: set[str] = set()
        self.used: set[str] = set()

    def __torch_function__(self, function, types, arguments=(), settings=None):  # type: ignore[no-untyped-def]
        settings = settings or {}
        result = function(*arguments, **settings)
        name = getattr(function, "__name__", str(function))
        given = [t for t in tree_leaves((arguments, settings)) if isinstance(t, torch.Tensor)]
        # Numbers on the host may go with tensors on a device.
        elsewhere = {getattr(t, "elsewhere", False) for t in given if t.ndim}
        if len(elsewhere) == 2:
            self.mixed.add(name)
        moved = name == "to" and any(isinstance(a, (str, torch.device)) for a in arguments[1:])
        there = name != "cpu" and (True in elsewhere or moved or "device" in settings)
        if there:
            self.used.add(name)
        for part in tree_leaves(result):
            if isinstance(part, torch.Tensor):
                part.elsewhere = there
        return result


def test_nothing_is_left_on_the_host() -> None:
    images, matches = rendered(*SIZES[1])
    # Enough of them for a rotation by the second look, and too few for a pair to need none.
    network = Given(torch.device("cpu"), {})
    found = {"whole": matches[np.arange(150)]}
    network.match_pixels = lambda pairs: [found["whole"] for _ in pairs]  # type: ignore[method-assign]
    # SIFT keypoints are compared, and thumbnails asked as well.
    looks = SecondLookConfig(
        min_confident_share=0.9, min_inlier_share=0.9, min_rotation=0, trusted_sift_share=1.01
    )
    matcher = RefinedMatcher(network, CONFIG, looks, batched=True)
    with TwoDevices() as devices:
        encoded = matcher.encode_batch(
            [
                NetworkImage(
                    torch.from_numpy(s)[None].float(), PixelTransform((1.0, 1.0)), s.shape[::-1]
                )
                for s in images
            ]
        )
        matcher.match_pixels([tuple(encoded)] * 2)
    # thumbnails, and for each pair a photo warped by the maps of first matches, thumbnails and SIFT
    assert network.count == 2 + 2 + 5 + 2 * 3
    assert {"topk", "sort", "gather", "scatter_reduce_", "lerp_", "cummax"} <= devices.used
    assert devices.mixed == set()


def test_the_host_waits_as_often_for_many_pairs_as_for_one() -> None:
    matcher, pairs = batch(torch.device("cpu"), *SIZES[1], batched=True)
    waits = []
    for count in (1, 3):
        with Operations() as operations:
            matcher.match_pixels([pairs[4]] * count)
        waits.append(operations.waits())
        assert torch.float64 not in operations.types
        assert not [name for name in operations.names if "linalg" in name or "grid_sam" in name]
    assert waits[0] == waits[1] < 60


@NO_GPU
def test_a_gpu_finds_what_a_cpu_finds() -> None:
    """The shipped weights, with the second look, photos of two sizes."""
    images, _ = rendered(*SIZES[1])
    shots = [
        cv2.resize(image, size)
        for image, size in zip(images, ((320, 256), (224, 288)), strict=True)
    ]
    found = []
    for name in ("cuda", "cpu"):
        matcher = load_matcher(weights="edm_s", device=name)
        encoded = matcher.encode_batch(
            [
                NetworkImage(
                    torch.from_numpy(s)[None].float(), PixelTransform((1.0, 1.0)), s.shape[::-1]
                )
                for s in shots
            ]
        )
        found.append(matcher.match_batch([tuple(encoded)] * 3))
    assert len(found[0][0]) > 100
    for some, others in zip(*found, strict=True):
        assert share_in_common(some, others, 0.1) > 0.95


def test_apple_s_gpus_leave_the_refinement_to_the_cpu() -> None:
    network = Given(torch.device("mps"), {})
    assert not RefinedMatcher(network, CONFIG).batched
    matcher = RefinedMatcher(network, CONFIG)
    image = NetworkImage(torch.rand(1, 64, 64), PixelTransform((1.0, 1.0)), (64, 64))
    assert matcher.encode(image).data.views.pixels.device.type == "cpu"
