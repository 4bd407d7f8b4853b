"""The second look: turned, nearer and tilted photos, thumbnails, and when it is not taken."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from edm_hloc.base.frames import PixelTransform
from edm_hloc.base.matches import Matches
from edm_hloc.images.load import NetworkImage
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.matchers.registry import make_matcher
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.refinement.second_look import SecondLookConfig
from edm_hloc.refinement.views import ThumbnailName, WarpedPhoto, WarpedView
from edm_hloc.synthetic.textures import TextureBank

WIDTH, HEIGHT = 320, 256


def photo(seed: int = 0) -> np.ndarray:
    """(H, W) float32 in [0, 1], textured at all scales."""
    bank = TextureBank.procedural(1, size=512, seed=seed)
    return bank.textures[0, :HEIGHT, :WIDTH].numpy().astype(np.float32) / 255


def turned(degrees: float, scale: float = 1.0) -> np.ndarray:
    """(3, 3): about the middle of the photo."""
    middle = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
    return np.vstack([cv2.getRotationMatrix2D(middle, degrees, scale), [0, 0, 1]])


def warped(image: np.ndarray, warp: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, warp[:2], (WIDTH, HEIGHT), flags=cv2.INTER_AREA)


def network_image(pixels: np.ndarray, scale: float = 1.0) -> NetworkImage:
    height, width = pixels.shape
    size = round(width * scale), round(height * scale)
    return NetworkImage(torch.from_numpy(pixels)[None], PixelTransform((scale, scale)), size)


@pytest.fixture(scope="module")
def edm() -> Matcher:
    return make_matcher("edm", weights="edm_s", device="cpu")


def second_look(
    network: Matcher, config: SecondLookConfig | None = None, batched: bool = False
) -> RefinedMatcher:
    return RefinedMatcher(network, second_look=config or SecondLookConfig(), batched=batched)


def right(found: Matches, warp: np.ndarray, scale: float = 1.0, within: float = 3.0) -> int:
    """Matches that obey a warp of the network's pixels to so many of them."""
    points0, points1 = (
        (points + 0.5) / scale - 0.5 for points in (found.keypoints0, found.keypoints1)
    )
    away = np.linalg.norm(points0 @ warp[:2, :2].T + warp[:2, 2] - points1, axis=1)
    return int((away < within).sum())


WARPS = {
    "a quarter turn": turned(90),
    "upside down": turned(180),
    "three quarters": turned(-90),
    "50 degrees": turned(50),
    "twice as near": turned(0, 2.0),
    "twice as far": turned(5, 0.5),
}


@pytest.mark.parametrize("name", WARPS)
def test_it_finds_what_the_first_look_misses(name: str, edm: Matcher) -> None:
    image0, image1 = photo(), warped(photo(), WARPS[name])
    matcher = second_look(edm)
    images = [network_image(image, 1.5) for image in (image0, image1)]
    first = edm.match(*(edm.encode(image) for image in images))
    found = matcher.match(*(matcher.encode(image) for image in images))
    assert right(found, WARPS[name], 1.5) > 1.5 * right(first, WARPS[name], 1.5)
    # 40 × 32 cells; of twice as far, a quarter is seen
    assert right(found, WARPS[name], 1.5) > 150
    assert right(found, WARPS[name], 1.5) > 0.9 * len(found.scores)
    for points in (found.keypoints0, found.keypoints1):
        assert (points >= 0).all()
        assert (points <= np.array([1.5 * WIDTH, 1.5 * HEIGHT]) - 1).all()


def test_a_batch_is_looked_at_again_together(edm: Matcher) -> None:
    """As on a GPU: all photos are warped, and all maps are fitted, at a time."""
    matcher = second_look(edm, batched=True)
    shots = [photo(), *(warped(photo(), warp) for warp in WARPS.values())]
    first, *others = matcher.encode_batch([network_image(shot, 1.5) for shot in shots])
    found = matcher.match_batch([(first, other) for other in others])
    for matches, warp in zip(found, WARPS.values(), strict=True):
        assert right(matches, warp, 1.5) > 150
        assert right(matches, warp, 1.5) > 0.9 * len(matches)


def test_pairs_of_a_batch_are_looked_at_each_for_itself(edm: Matcher) -> None:
    matcher = second_look(edm)
    shots = [photo(), *(warped(photo(), warp) for warp in WARPS.values()), photo(5)]
    first, *others = (matcher.encode(network_image(shot)) for shot in shots)
    alone = [matcher.match(first, other) for other in others]
    together = matcher.match_batch([(first, other) for other in others])
    for one, same in zip(alone, together, strict=True):
        rows = [np.hstack([found.keypoints0, found.keypoints1]) for found in (one, same)]
        away, nearest = KDTree(rows[0]).query(rows[1])
        # but for the last of equals, where there are more matches than are taken
        assert len(rows[0]) == len(rows[1])
        assert (away < 1e-2).mean() > 0.95
        assert len(np.unique(nearest)) > 0.95 * len(rows[0])


class Counting(Matcher):
    """Gives the same matches for all pairs, and counts its work.

    Args:
        matches: of whole photos.
        on_thumbnails: what it finds on thumbnails, call by call, the last one ever after.

    Attributes:
        distinct: what `distinctness` says of each photo.
    """

    provenance = {"matcher": "counting"}  # noqa: RUF012

    def __init__(
        self,
        matches: Matches,
        on_thumbnails: Sequence[Matches] = (),
        confident: float = 0.0,
        topk: int | None = None,
    ) -> None:
        self.matches = matches
        self.on_thumbnails = on_thumbnails or (matches,)
        self.info = MatcherInfo("counting", Preprocessing(), confident=confident, topk=topk)
        self.encoded: list[tuple[int, ...]] = []
        self.matched = self.matched_thumbnails = 0
        self.distinct: np.ndarray | None = None

    def distinctness(self, features: Features) -> np.ndarray | None:
        return self.distinct

    def encode(self, image: NetworkImage) -> Features:
        self.encoded.append(tuple(image.tensor.shape))
        return Features("given", image.transform, 1000)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        return [self.found() for _ in pairs]

    def match_cells(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        start = self.matched_thumbnails
        self.matched_thumbnails += len(pairs)
        last = len(self.on_thumbnails) - 1
        return [self.on_thumbnails[min(start + k, last)] for k in range(len(pairs))]

    def found(self) -> Matches:
        self.matched += 1
        return self.matches

    def to_host(self, features: Features) -> Features | None:
        return Features("host", features.transform, features.nbytes)

    def from_host(self, features: Features) -> Features:
        return Features("device", features.transform, features.nbytes)


def given(warp: np.ndarray, count: int, wrong: int = 0, score: float = 0.5) -> Matches:
    rng = np.random.default_rng(count)
    points0 = rng.uniform([0, 0], [WIDTH - 1, HEIGHT - 1], (count, 2))
    points1 = points0 @ warp[:2, :2].T + warp[:2, 2]
    points1[:wrong] = rng.uniform([0, 0], [WIDTH - 1, HEIGHT - 1], (wrong, 2))
    return Matches(
        points0.astype(np.float32), points1.astype(np.float32), np.full(count, score, np.float32)
    )


NONE = given(np.eye(3), 0)
SOME = given(turned(40), 260)  # of 40 × 32 cells: more than a fifth
FEW = given(turned(40), 50)
CASES = {
    # matches, those of thumbnails, then how often whole photos and thumbnails are matched, and how
    # many views are encoded
    # 40 × 32 cells: 320 are a quarter
    "there are enough": (given(turned(40), 320), [NONE], (1, 0, 0)),
    "one fewer is not enough": (given(turned(40), 319), [NONE], (2, 0, 1)),
    "the images lie alike": (given(turned(5), 260), [NONE], (1, 0, 0)),
    "a turned photo": (SOME, [NONE], (2, 0, 1)),
    "with outliers": (given(turned(40), 310, wrong=50), [NONE], (2, 0, 1)),
    "a nearer photo": (given(turned(0, 1.4), 260), [NONE], (2, 0, 1)),
    "a turned photo, less than sure": (given(turned(40), 200), [NONE], (2, 6, 8)),
    # two thumbnails as they are, three that are turned, two that are twice as large
    "thumbnails may know better": (FEW, [NONE], (2, 6, 8)),
    "turned thumbnails know better": (FEW, [NONE, NONE, NONE, SOME, NONE], (2, 4, 6)),
    "so do enlarged ones": (FEW, [NONE, NONE, NONE, NONE, SOME, NONE], (2, 6, 8)),
    "too few": (given(turned(40), 10), [NONE], (1, 0, 0)),
    "too few agree": (given(turned(40), 100, wrong=95), [NONE], (1, 6, 7)),
    "a third agrees, perhaps by chance": (given(turned(40), 60, wrong=40), [NONE], (1, 6, 7)),
    "none that counts": (given(turned(40), 100, score=0.1), [NONE], (1, 0, 0)),
    "thumbnails as they are know better": (FEW, [given(np.eye(3), 300)], (1, 1, 2)),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_when_a_pair_is_looked_at_again(case: str, batched: bool) -> None:
    matches, on_thumbnails, asked = CASES[case]
    inner = Counting(matches, on_thumbnails, confident=0.2)
    matcher = second_look(inner, batched=batched)
    features = [matcher.encode(network_image(photo(seed))) for seed in (0, 1)]
    (found,) = matcher.match_pixels([tuple(features)])
    assert np.array_equal(found.keypoints0, matches.keypoints0)  # the second found no more
    assert np.array_equal(found.keypoints1, matches.keypoints1)
    assert (inner.matched, inner.matched_thumbnails, len(inner.encoded) - 2) == asked


def tried(
    matcher: RefinedMatcher, features: Sequence[Features], aligned: Callable[[float], Matches]
) -> tuple[Matches, list[float]]:
    """What a pair gives if the second look finds matches by a map's angle, and the angles of the
    maps that it tries, degrees."""
    angles: list[float] = []

    def found(pairs: Sequence[tuple[object, np.ndarray]]) -> list[Matches]:
        new = [math.degrees(math.atan2(-warp[1, 0], warp[0, 0])) for _, warp in pairs]
        angles.extend(new)
        return [aligned(angle) for angle in new]

    with mock.patch.object(matcher.second_look, "_match_aligned", side_effect=found):
        (matches,) = matcher.match_pixels([(features[0], features[1])])
    return matches, angles


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("trusted", "thumbnails"), [(0.5, 0), (1.01, 6)])
def test_sift_tells_how_photos_lie_to_each_other(
    trusted: float, thumbnails: int, batched: bool
) -> None:
    """Without thumbnails where most of its points agree."""
    inner = Counting(NONE, [NONE])
    matcher = second_look(inner, SecondLookConfig(trusted_sift_share=trusted), batched)
    warp = turned(50, 0.8)
    features = [matcher.encode(network_image(shot)) for shot in (photo(), warped(photo(), warp))]
    found, angles = tried(matcher, features, lambda angle: given(warp, 40))
    assert len(found) == 40
    assert inner.matched_thumbnails == thumbnails
    assert angles == pytest.approx([50], abs=2)


@pytest.mark.parametrize(
    ("first", "inliers", "trusted", "thumbnails", "angles"),
    [  # 64 inliers are a twentieth of 40 × 32 cells
        (45, 40, 1.01, 0, [45]),  # SIFT confirms the map
        (45, 40, 0.5, 0, [50]),  # and knows it better
        (45, 70, 0.5, 0, [45]),
        (-30, 70, 0.5, 0, [50]),  # most of its points contradict
        (-30, 40, 1.01, 6, [-30, 50]),  # no one knows
        (-30, 70, 1.01, 6, [-30, 50]),
    ],
)
def test_sift_confirms_and_contradicts_the_first_matches(
    first: float, inliers: int, trusted: float, thumbnails: int, angles: list[float]
) -> None:
    inner = Counting(given(turned(first), inliers), [NONE])
    matcher = second_look(inner, SecondLookConfig(trusted_sift_share=trusted))
    shots = photo(), warped(photo(), turned(50))
    features = [matcher.encode(network_image(shot)) for shot in shots]
    asked = tried(matcher, features, lambda angle: NONE)[1]
    assert asked == pytest.approx(angles, abs=2)
    assert inner.matched_thumbnails == thumbnails


@pytest.mark.parametrize("told_by", ["scores", "distinctness"])
@pytest.mark.parametrize("right_angle", [-30, 50])
def test_of_maps_that_differ_the_one_with_the_most_expected_matches_is_taken(
    right_angle: float, told_by: str
) -> None:
    """On repeated structure as many are found by wrong maps, but of lower scores, or of places that
    are less distinct."""
    inner = Counting(NONE, [given(turned(-30), 100), NONE])
    matcher = second_look(inner, SecondLookConfig(trusted_sift_share=1.01))
    shots = photo(), warped(photo(), turned(50))
    features = [matcher.encode(network_image(shot)) for shot in shots]
    right, wrong = given(turned(right_angle), 200), given(np.eye(3), 210, score=0.3)
    if told_by == "distinctness":
        half = WIDTH / 2
        inner.distinct = np.full((HEIGHT // 16, WIDTH // 16), 4.0, np.float32)
        inner.distinct[:, : WIDTH // 32] = 9.0
        features = [matcher.encode(network_image(shot)) for shot in shots]
        everywhere = given(turned(right_angle), 450)
        seen_once = (everywhere.keypoints0[:, 0] < half) & (everywhere.keypoints1[:, 0] < half)
        right = everywhere[seen_once]
        repeated = given(np.eye(3), 450)
        wrong = repeated[repeated.keypoints0[:, 0] > half]
        assert len(right) < len(wrong)
    found, angles = tried(
        matcher, features, lambda angle: right if abs(angle - right_angle) < 2 else wrong
    )
    assert angles == pytest.approx([-30, 50], abs=2)
    assert np.array_equal(found.keypoints1, right.keypoints1)


@pytest.mark.parametrize(("matches", "many", "thumbnails"), [(19, 1, 0), (20, 1, 6), (19, 9999, 6)])
def test_photos_full_of_keypoints_without_a_match_have_nothing_in_common(
    matches: int, many: int, thumbnails: int
) -> None:
    inner = Counting(given(turned(0), matches, wrong=matches), [NONE])
    matcher = second_look(inner, SecondLookConfig(many_keypoints=many))
    features = [matcher.encode(network_image(photo(seed))) for seed in (0, 1)]
    matcher.match_pixels([tuple(features)])
    assert (inner.matched, inner.matched_thumbnails) == (1, thumbnails)


def test_keypoints_of_sift_go_to_the_host_and_back() -> None:
    matcher = second_look(Counting(NONE))
    features = matcher.encode(network_image(photo()))
    keypoints = features.data.views.keypoints()
    moved = matcher.from_host(matcher.to_host(features))
    assert moved.data.views.keypoints() is keypoints
    assert moved.nbytes == features.nbytes == 1000 + 2 * WIDTH * HEIGHT + keypoints.nbytes


def test_a_pair_with_as_many_matches_as_there_can_be_is_not_looked_at_again() -> None:
    inner = Counting(given(turned(40), 60), topk=60)
    matcher = second_look(inner)
    features = [matcher.encode(network_image(photo(seed))) for seed in (0, 1)]
    matcher.match_pixels([tuple(features)])
    assert (inner.matched, inner.matched_thumbnails) == (1, 0)
    assert matcher.info.topk == 60


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_nearer_image_keeps_its_frame(scale: float) -> None:
    inner = Counting(given(turned(0, scale), 60), [NONE])
    matcher = second_look(inner)
    pair = [photo(), cv2.resize(photo(1), (160, 128))]
    features = [matcher.encode(network_image(image)) for image in pair]
    matcher.match(*features)
    # either the left upper half of the first photo's frame, or the second's; the other way round
    # 96 columns would show something
    assert inner.encoded[-1] == (1, 128, 160)


def test_only_the_part_of_a_view_that_shows_the_photo_is_encoded() -> None:
    pixels = torch.zeros(1, 96, 128)
    move = np.array([[1.0, 0, 70], [0, 1, -40], [0, 0, 1]])  # shows columns 70 to 159, rows to 55
    view = WarpedPhoto(pixels, move, (160, 128)).cropped(32)
    assert view.size == (96, 64)
    np.testing.assert_array_equal(view.warp, move - np.array([[0, 0, 64], [0, 0, 0], [0, 0, 0]]))
    whole = WarpedPhoto(pixels, np.diag([2.0, 2.0, 1.0]), (160, 128))
    assert whole.cropped(32).size == whole.size
    beside = WarpedPhoto(pixels, np.array([[1.0, 0, 500], [0, 1, 0], [0, 0, 1]]), (160, 128))
    assert beside.cropped(32).size == (32, 96)


NAMES = ("upright", "turned_90", "turned_180", "turned_270", "upright_double")


def thumbnail(matcher: RefinedMatcher, features: Features, name: ThumbnailName) -> WarpedView:
    (view,) = matcher.second_look.views.thumbnails([features.data.views], name)
    return view


def test_what_an_image_holds() -> None:
    inner = Counting(given(np.eye(3), 4))
    matcher = second_look(inner, SecondLookConfig(thumbnail_size=96))
    image = np.random.default_rng(0).random((192, 384)).astype(np.float32)
    features = matcher.encode(network_image(image))
    assert inner.encoded == [(1, 192, 384)]
    assert features.nbytes == 1000 + 2 * image.size
    thumbnails = {name: thumbnail(matcher, features, name) for name in NAMES}
    small, double, across = (1, 64, 96), (1, 96, 192), (1, 96, 64)
    assert inner.encoded == [(1, 192, 384), small, across, small, across, double]
    assert features.nbytes == 6 * 1000 + 2 * image.size
    moved = matcher.from_host(matcher.to_host(features))
    views = moved.data.views
    again = [thumbnail(matcher, moved, name) for name in NAMES]
    assert len(inner.encoded) == 6
    assert {view.features.data for view in (views.whole, *again)} == {"device"}
    assert moved.nbytes == features.nbytes
    assert moved.transform == features.transform
    for quarters, name in enumerate(NAMES[:4]):
        view = thumbnails[name]
        ends = np.array([[0, 0], [383, 191]], np.float32)
        inside = view.features.transform.to_original(ends @ view.warp[:2, :2].T + view.warp[:2, 2])
        assert inside.min() == pytest.approx(0, abs=1e-4)
        angle = math.atan2(view.warp[1, 0], view.warp[0, 0])
        assert math.degrees(angle) % 360 == pytest.approx(90 * quarters)
        np.testing.assert_allclose(view.unwarp(inside), ends, atol=1e-3)


def test_only_thumbnails_that_were_asked_for_go_to_the_host() -> None:
    inner = Counting(given(np.eye(3), 4))
    matcher = second_look(inner)
    features = matcher.encode(network_image(photo()))
    thumbnail(matcher, features, "turned_90")
    on_host = matcher.to_host(features)
    assert thumbnail(matcher, on_host, "turned_90").features.data == "host"
    assert on_host.nbytes == features.nbytes == 2 * 1000 + 2 * WIDTH * HEIGHT
    back = matcher.from_host(on_host)
    for name in NAMES:
        thumbnail(matcher, back, name)
    assert len(inner.encoded) == 2 + 4
    assert back.nbytes == 6 * 1000 + 2 * WIDTH * HEIGHT
    assert on_host.nbytes == features.nbytes == 2 * 1000 + 2 * WIDTH * HEIGHT


def test_pairs_that_ask_at_once_for_a_thumbnail_share_it() -> None:
    class Slow(Counting):
        def encode(self, image: NetworkImage) -> Features:
            time.sleep(0.01)
            return super().encode(image)

    inner = Slow(given(turned(40), 100, wrong=95), [NONE])  # so few agree that thumbnails are asked
    matcher = second_look(inner)
    photos = [matcher.encode(network_image(photo(seed))) for seed in range(3)]
    pairs = [(a, b) for a in photos for b in photos if a is not b]
    with ThreadPoolExecutor(len(pairs)) as pool:
        found = list(pool.map(lambda pair: matcher.match_pixels([pair]), pairs))
    assert len(found) == 6
    assert (inner.matched, inner.matched_thumbnails) == (6, 6 * 6)
    assert len(inner.encoded) == 3 * (1 + 5)
    for features in photos:
        keypoints = features.data.views.keypoints()
        assert features.nbytes == 6 * 1000 + 2 * WIDTH * HEIGHT + keypoints.nbytes


def test_matches_of_the_first_look_stay_where_the_second_has_none() -> None:
    """But for those that contradict the map by which the second found more."""
    warp = turned(40)
    mixed, second = given(warp, 180, wrong=40), given(np.eye(3), 300)
    mapped = mixed.keypoints0 @ warp[:2, :2].T + warp[:2, 2]
    off = np.linalg.norm(mapped - mixed.keypoints1, axis=1)
    near = off < 2 * SecondLookConfig().inlier_tolerance * WIDTH
    first = mixed[near]
    assert 140 <= len(first) < 150

    class Twice(Counting):
        def found(self) -> Matches:
            self.matched += 1
            return mixed if self.matched == 1 else second

    matcher = second_look(Twice(mixed))
    features = [matcher.encode(network_image(photo(seed))) for seed in (0, 1)]
    (found,) = matcher.match_pixels([tuple(features)])
    assert len(found.scores) > 140
    kept = found.keypoints0[:, None] == first.keypoints0
    kept = kept.all(axis=2).any(axis=1)
    new = found.keypoints0[~kept]

    def cells(points: np.ndarray) -> set[tuple[int, ...]]:
        return {tuple(cell) for cell in np.rint(points / 8).astype(int)}

    assert cells(found.keypoints0[kept]).isdisjoint(cells(new))
    assert cells(found.keypoints0) == cells(first.keypoints0) | cells(new)
    assert right(found, warp, within=26) == len(found)
    assert right(found, warp) > 0.95 * len(found)


def test_thumbnails_that_agree_all_over_know_better_than_a_first_look_that_is_unsure() -> None:
    wrong, true = given(turned(40), 60), given(np.eye(3), 55)
    # 6 × 8 cells, of which the third pair of other thumbnails agrees in all
    on_thumbnails = [NONE, NONE, NONE, true, NONE]
    for clear, angles in ((0.2, [-90]), (9.0, [40, -90])):
        inner = Counting(wrong, on_thumbnails)
        matcher = second_look(
            inner, SecondLookConfig(thumbnail_size=64, trusted_inlier_share=clear)
        )
        features = [matcher.encode(network_image(photo(seed))) for seed in (0, 1)]
        assert tried(matcher, features, lambda angle: true)[1] == pytest.approx(angles, abs=1)


def test_settings_are_part_of_the_provenance() -> None:
    inner = Counting(given(np.eye(3), 4))
    changed = SecondLookConfig(min_confident_share=0.1)
    provenances = [second_look(inner, config).provenance for config in (None, changed)]
    assert provenances[0] != provenances[1]
    assert all(p["matcher"] == "counting" for p in provenances)


def test_no_pairs(edm: Matcher) -> None:
    none: Sequence[tuple[Features, Features]] = []
    assert second_look(edm).match_batch(none) == []
