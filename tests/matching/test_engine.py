"""Lists of pairs: images encoded once, cached and batched; interrupted runs, unreadable photos."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial import KDTree

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.base.text import format_duration
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.matchers.base import Features
from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig
from edm_hloc.matching import engine
from edm_hloc.matching.engine import MatchingConfig, MatchingSummary, match_pairs
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.matching.writer import RawMatchWriter
from edm_hloc.models.edm import EDM
from tests.fakes import FakeMatcher


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight grey photos; the level of photo i is 10 + i."""
    root = tmp_path / "photos"
    (root / "a b").mkdir(parents=True)
    for i in range(8):
        Image.new("L", (40 + i, 50), 10 + i).save(root / "a b" / f"é {i}.png")
    return root


def names(count: int = 8) -> list[str]:
    return [f"a b/é {i}.png" for i in range(count)]


def all_pairs(count: int = 8) -> list[tuple[str, str]]:
    return list(itertools.combinations(names(count), 2))


def assert_same(got: Matches, expected: Matches) -> None:
    for field, array in got.arrays().items():
        np.testing.assert_array_equal(array, expected.arrays()[field], err_msg=field)


def test_each_image_is_encoded_once(photos: Path, tmp_path: Path) -> None:
    matcher = FakeMatcher()
    summary = match_pairs(photos, all_pairs(), matcher, tmp_path / "raw")
    assert sorted(matcher.encoded) == [10 + i for i in range(8)]
    assert (summary.encoded, summary.images, summary.matched, summary.matches) == (8, 8, 28, 84)
    assert max(matcher.matched.values()) == 1
    with RawMatchReader(tmp_path / "raw") as raw:
        assert sorted(raw.pairs()) == sorted(all_pairs())
        for i, j in itertools.combinations(range(8), 2):
            found = raw.read(names()[i], names()[j])
            points = np.arange(6, dtype=np.float32).reshape(3, 2)
            np.testing.assert_array_equal(found.keypoints0, points + 10 + i)
            np.testing.assert_array_equal(found.keypoints1, points + 10 + j)


def test_backbone_runs_once_per_image(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with the real network and its backbone counted."""
    from safetensors.torch import save_file

    from tests.models.test_edm_golden import reference_state

    save_file(reference_state("edm_s"), tmp_path / "w.safetensors")
    matcher = EDMMatcher(EDMMatcherConfig(weights=tmp_path / "w.safetensors", device="cpu"))
    calls = []
    matcher.model.backbone.register_forward_hook(lambda *args: calls.append(args[1][0].shape[0]))
    match_pairs(photos, all_pairs(5), matcher, tmp_path / "raw")
    assert isinstance(matcher.model, EDM)
    assert calls == [1] * 5


class Timed(FakeMatcher):
    """Takes 2 s to encode a photo and 5 s for a pair, by a clock of its own."""

    now = 0.0

    def encode(self, image: NetworkImage) -> Features:
        self.now += 2
        return super().encode(image)

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        self.now += 5 * len(pairs)
        return super().match_batch(pairs)


@pytest.mark.parametrize(("count", "expected"), [(8, "28 pairs of 8 photos"), (4, None)])
def test_how_long_it_takes_is_said_once_after_the_first_pairs(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    expected: str | None,
) -> None:
    """The time left is right to the second, though the first pairs need the most photos."""
    matcher, said = Timed(), list[tuple[str, float]]()
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: matcher.now))
    monkeypatch.setattr(engine, "say", lambda line: said.append((line, matcher.now)))
    match_pairs(photos, all_pairs(count), matcher, tmp_path / "raw")
    if expected is None:  # six pairs: what is left takes less than half a minute
        assert said == []
        return
    [(line, at)] = said
    assert at < 30
    left = format_duration(matcher.now - at)
    assert line.startswith(f"Matching {expected} is going to take about {left} at the pace of")


def test_a_small_cache_costs_encodes_but_not_matches(photos: Path, tmp_path: Path) -> None:
    roomy, tight = FakeMatcher(), FakeMatcher()
    match_pairs(photos, all_pairs(), roomy, tmp_path / "a")
    match_pairs(photos, all_pairs(), tight, tmp_path / "b", MatchingConfig(cache_bytes=450))
    assert roomy.matched == tight.matched
    # 28 pairs, 4 images at a time: each encode can serve at most 3 new pairs
    assert 10 <= len(tight.encoded) <= 18
    # even with room for one image a pair has both
    match_pairs(
        photos, all_pairs(3), FakeMatcher(), tmp_path / "c", MatchingConfig(cache_bytes=100)
    )
    assert len(RawMatchReader(tmp_path / "c").pairs()) == 3


class BatchMatcher(FakeMatcher):
    """Likes three pairs at a time, and refuses pairs of several shapes together."""

    info = replace(FakeMatcher.info, batch_size=3)

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode(self, image: NetworkImage) -> Features:
        features = super().encode(image)
        return Features((features.data, image.tensor.shape), features.transform, features.nbytes)

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        assert len({(f0.data[1], f1.data[1]) for f0, f1 in pairs}) == 1
        self.batches.append(len(pairs))
        plain = [
            (replace(first, data=first.data[0]), replace(second, data=second.data[0]))
            for first, second in pairs
        ]
        return super().match_batch(plain)


def test_batches_hold_pairs_of_equal_shape(photos: Path, tmp_path: Path) -> None:
    for i in (2, 5):
        Image.new("L", (90, 30), 10 + i).save(photos / names()[i])
    plain, batched = FakeMatcher(), BatchMatcher()
    match_pairs(photos, all_pairs(), plain, tmp_path / "plain")
    summary = match_pairs(
        photos, all_pairs(), batched, tmp_path / "raw", MatchingConfig(cache_bytes=450)
    )
    assert summary.matched == sum(batched.batches) == 28
    assert batched.matched == plain.matched
    # 15 pairs of upright photos, 1 of wide ones, 12 mixed in two orders: few are left over
    assert batched.batches.count(3) >= 7
    with RawMatchReader(tmp_path / "plain") as a, RawMatchReader(tmp_path / "raw") as b:
        for pair in all_pairs():
            assert_same(a.read(*pair), b.read(*pair))


class ThreadedMatcher(FakeMatcher):
    """Notes how many calls there are at the same time, and takes longest for the first pairs."""

    info = replace(FakeMatcher.info, threads=3)

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.lock = threading.Lock()

    def match_batch(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            wait = 0.05 / (1 + sum(self.matched.values()))
        time.sleep(wait)
        with self.lock:
            found = super().match_batch(pairs)
            self.now -= 1
        return found


def test_pairs_side_by_side_give_the_same_store(photos: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    plain, threaded = FakeMatcher(), ThreadedMatcher()
    match_pairs(photos, all_pairs(), plain, tmp_path / "plain")
    summary = match_pairs(photos, all_pairs(), threaded, tmp_path / "raw")
    assert summary.matched == 28
    assert 1 < threaded.most <= 3
    assert torch.get_num_threads() == before
    with RawMatchReader(tmp_path / "plain") as a, RawMatchReader(tmp_path / "raw") as b:
        assert a.pairs() == b.pairs()
        for pair in all_pairs():
            assert_same(a.read(*pair), b.read(*pair))


def test_threads_started_afterwards_use_as_many_cores_as_before(
    photos: Path, tmp_path: Path
) -> None:
    class Noting(ThreadedMatcher):
        def find(self, features0: Features, features1: Features) -> Matches:
            torch.ones(1).exp()
            cores.add(torch.get_num_threads())
            return super().find(features0, features1)

    cores: set[int] = set()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        match_pairs(photos, all_pairs(), Noting(), tmp_path / "raw")
        with ThreadPoolExecutor(1) as new_thread:
            assert new_thread.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert cores == {1}


def test_an_error_in_a_thread_keeps_what_was_matched(photos: Path, tmp_path: Path) -> None:
    class Failing(ThreadedMatcher):
        def find(self, features0: Features, features1: Features) -> Matches:
            if sum(self.matched.values()) == 15:
                raise RuntimeError("no more")
            return super().find(features0, features1)

    with pytest.raises(RuntimeError, match="no more"):
        match_pairs(photos, all_pairs(), Failing(), tmp_path / "raw")
    summary = match_pairs(photos, all_pairs(), FakeMatcher(), tmp_path / "raw")
    assert summary.resumed >= 10
    assert summary.resumed + summary.matched == 28


def test_batches_give_the_same_matches(tmp_path: Path) -> None:
    """With the real network: three pairs at once."""
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    scene = cv2.resize(rng.integers(0, 256, (40, 60), np.uint8), (480, 320))
    for i in range(4):
        Image.fromarray(scene[10 * i : 10 * i + 160, 20 * i : 20 * i + 224]).save(root / f"{i}.png")
    pairs = [(f"{i}.png", f"{j}.png") for i, j in itertools.combinations(range(4), 2)]
    settings = {"weights": "edm_s", "device": "cpu"}
    matchers = {
        "one": EDMMatcher(EDMMatcherConfig(**settings)),
        "three": EDMMatcher(EDMMatcherConfig(**settings, batch_size=3)),
    }
    for name, matcher in matchers.items():
        match_pairs(root, pairs, matcher, tmp_path / name)
    stored = {name: RawMatchReader(tmp_path / name) for name in matchers}
    for pair in pairs:
        one, three = (stored[name].read(*pair) for name in matchers)
        assert len(one.scores) > 50
        np.testing.assert_allclose(three.scores, one.scores, atol=1e-4)
        rows = [np.hstack([m.keypoints0, m.keypoints1]) for m in (one, three)]
        away, nearest = KDTree(rows[0]).query(rows[1])  # of nearly equal scores any may come first
        assert away.max() < 1e-3
        assert len(np.unique(nearest)) == len(rows[0]) == len(rows[1])
    for reader in stored.values():
        reader.close()
    one = matchers["one"].encode(load_image(root / "0.png"))
    assert one.nbytes == one.data.nbytes


def test_resume(photos: Path, tmp_path: Path) -> None:
    class Interrupted(FakeMatcher):
        def find(self, features0, features1):  # type: ignore[no-untyped-def]
            if sum(self.matched.values()) == 11:
                raise KeyboardInterrupt
            return super().find(features0, features1)

    with pytest.raises(KeyboardInterrupt):
        match_pairs(photos, all_pairs(), Interrupted(), tmp_path / "raw")
    matcher = FakeMatcher()
    summary = match_pairs(photos, all_pairs(), matcher, tmp_path / "raw")
    assert (summary.resumed, summary.matched) == (11, 17)
    assert len(RawMatchReader(tmp_path / "raw").pairs()) == 28

    again = FakeMatcher()
    assert match_pairs(photos, all_pairs(), again, tmp_path / "raw").resumed == 28
    assert again.encoded == []

    with pytest.raises(EdmHlocError, match=r"setting: 1\.0 there, 2\.0 now"):
        match_pairs(photos, all_pairs(), FakeMatcher(setting=2.0), tmp_path / "raw")
    other = FakeMatcher(setting=2.0)
    match_pairs(photos, all_pairs(), other, tmp_path / "raw", overwrite=True)
    assert sum(other.matched.values()) == 28


def test_pairs_listed_both_ways_are_matched_once(photos: Path, tmp_path: Path) -> None:
    a, b, c = names(3)
    matcher = FakeMatcher()
    listed = [(a, b), (b, a), (c, c), (a, b), (b, c)]
    summary = match_pairs(photos, listed, matcher, tmp_path / "raw")
    assert (summary.matched, summary.resumed) == (2, 0)
    assert matcher.matched == {(10, 11): 1, (11, 12): 1}
    assert sorted(RawMatchReader(tmp_path / "raw").pairs()) == [(a, b), (b, c)]


def test_a_changed_photo_is_matched_again(photos: Path, tmp_path: Path) -> None:
    match_pairs(photos, all_pairs(), FakeMatcher(), tmp_path / "raw")
    Image.new("L", (41, 50), 77).save(photos / names()[3])
    matcher = FakeMatcher()
    summary = match_pairs(photos, all_pairs(), matcher, tmp_path / "raw")
    assert (summary.matched, summary.resumed) == (7, 21)
    found = RawMatchReader(tmp_path / "raw").read(names()[0], names()[3])
    assert found.keypoints1[0, 0] == 77


def test_unreadable_photos_are_skipped(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = (photos / names()[0]).read_bytes()
    (photos / names()[0]).write_bytes(good[: len(good) // 2])
    (photos / names()[5]).write_bytes(b"")
    (photos / names()[6]).write_text("not a photo")
    pairs = [*all_pairs(), (names()[1], "gone.jpg")]
    with caplog.at_level(logging.WARNING):
        summary = match_pairs(photos, pairs, FakeMatcher(), tmp_path / "raw")
    log = caplog.text
    assert sorted(summary.skipped) == sorted([names()[0], names()[5], names()[6], "gone.jpg"])
    assert all(name in summary.skipped[name] for name in summary.skipped)
    assert summary.matched == 10
    assert summary.skipped_pairs == len(pairs) - 10
    assert summary.encoded == 5
    again = match_pairs(photos, pairs, FakeMatcher(), tmp_path / "raw")
    # nothing is encoded for the sake of a partner that cannot be read
    assert (again.encoded, again.resumed, len(again.skipped)) == (0, 10, 4)
    for name in summary.skipped:
        assert log.count(str(photos / name)) == 1


def test_unreadable_photos_are_all_named_whatever_their_partners(
    photos: Path, tmp_path: Path
) -> None:
    for name in ("bad.png", "worse.png", "worst.png"):
        (photos / name).write_bytes(b"")
    pairs = [("bad.png", "worse.png"), ("bad.png", "worst.png"), (names()[0], names()[1])]
    for _ in range(2):  # also by a call that finds the others matched
        summary = match_pairs(photos, pairs, FakeMatcher(), tmp_path / "raw")
        assert sorted(summary.skipped) == ["bad.png", "worse.png", "worst.png"]
        assert summary.skipped_pairs == 2


def test_partners_of_an_unreadable_photo_are_not_decoded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path, **options: Any) -> NetworkImage:
        decoded.append(path.name)
        return load_image(path, **options)

    decoded: list[str] = []
    monkeypatch.setattr("edm_hloc.matching.loading.load_photo", load)
    (photos / "bad.png").write_bytes(b"")
    good = [(names()[i], names()[i + 1]) for i in range(7)]
    pairs = [(name, "bad.png") for name in names()]
    match_pairs(photos, good[:-1], FakeMatcher(), tmp_path / "raw")
    decoded.clear()
    pairs += good
    summary = match_pairs(photos, pairs, FakeMatcher(), tmp_path / "raw")
    assert (summary.matched, summary.skipped_pairs, list(summary.skipped)) == (1, 8, ["bad.png"])
    # the first one, before it is known, and those of the good pair
    assert sorted(decoded) == ["bad.png", *(Path(names()[i]).name for i in (0, 6, 7))]


@pytest.mark.parametrize("one_is_good", [False, True])
def test_no_pair_of_readable_photos(tmp_path: Path, one_is_good: bool) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"")
    if one_is_good:
        Image.new("L", (64, 64)).save(tmp_path / "b.jpg")
    with pytest.raises(EdmHlocError, match=r"No pair is left to match.* the first, a\.jpg"):
        match_pairs(tmp_path, [("a.jpg", "b.jpg")], FakeMatcher(), tmp_path / "raw")


def test_rotated_photos_are_named_once(photos: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (40, 50), 99).save(photos / "turned.jpg", exif=exif)
    pairs = [("turned.jpg", name) for name in names()]
    summary = match_pairs(photos, pairs, FakeMatcher(), tmp_path / "raw")
    assert summary.rotated == ("turned.jpg",)


def test_nothing_to_do(photos: Path, tmp_path: Path) -> None:
    summary = match_pairs(photos, [], FakeMatcher(), tmp_path / "raw")
    assert (summary.matched, summary.resumed, summary.encoded) == (0, 0, 0)


def test_store_errors_reach_the_caller(photos: Path, tmp_path: Path) -> None:
    with RawMatchWriter(tmp_path / "raw", {}) as busy:
        with pytest.raises(EdmHlocError, match="Another process"):
            match_pairs(photos, all_pairs(), FakeMatcher(), tmp_path / "raw")
        busy.add("a", "b", Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)))


class FakeGpuMatcher(FakeMatcher):
    """Keeps features on a pretended device, and counts what goes to the host and back."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: Counter[str] = Counter()

    def to_host(self, features: Features) -> Features:
        assert not isinstance(features.data, str)
        self.moves["to host"] += 1
        return Features(str(features.data), features.transform, features.nbytes)

    def from_host(self, features: Features) -> Features:
        assert isinstance(features.data, str)
        self.moves["back"] += 1
        return Features(int(features.data), features.transform, features.nbytes)


def test_features_spill_to_the_host(photos: Path, tmp_path: Path) -> None:
    """With 4 images on the device and room for the others on the host nothing is made twice."""
    plain, roomy, tight = FakeMatcher(), FakeGpuMatcher(), FakeGpuMatcher()
    match_pairs(photos, all_pairs(), plain, tmp_path / "plain")
    for name, matcher, host in (("roomy", roomy, 1000), ("tight", tight, 200)):
        config = MatchingConfig(cache_bytes=450, host_cache_bytes=host)
        match_pairs(photos, all_pairs(), matcher, tmp_path / name, config)
        assert matcher.matched == plain.matched
    assert len(roomy.encoded) == 8
    assert roomy.moves["back"] >= 4
    assert 8 < len(tight.encoded) < 18


class BatchedMatcher(FakeMatcher):
    """Encodes several photos at a time, and notes how many."""

    info = replace(FakeMatcher.info, batch_size=3)

    def __init__(self) -> None:
        super().__init__(nbytes=100)
        self.batches: list[int] = []

    def encode_batch(self, images: Sequence[NetworkImage]) -> list[Features]:
        time.sleep(0.1)  # so that the next photos are loaded meanwhile
        self.batches.append(len(images))
        return super().encode_batch(images)


@pytest.mark.parametrize(
    ("room", "largest"),
    [
        (1200, 3),
        pytest.param(800, 2, marks=pytest.mark.slow),
        pytest.param(300, 2, marks=pytest.mark.slow),
    ],
)
def test_a_gpu_encodes_photos_in_batches(
    photos: Path, tmp_path: Path, room: int, largest: int
) -> None:
    plain, batched = FakeMatcher(), BatchedMatcher()
    config = MatchingConfig(cache_bytes=room)
    match_pairs(photos, all_pairs(), plain, tmp_path / "plain", config)
    match_pairs(photos, all_pairs(), batched, tmp_path / "batched", config)
    assert batched.matched == plain.matched
    assert max(batched.batches) == largest
    assert sum(batched.batches) == len(batched.encoded) == len(plain.encoded)


def test_names_that_collide_are_found_before_matching(tmp_path: Path) -> None:
    for name in ("a/b.png", "a-b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 50), 9).save(tmp_path / name)
    matcher = FakeMatcher()
    pairs = list(itertools.combinations(["a-b.png", "a/b.png", "c.png"], 2))
    with pytest.raises(EdmHlocError, match=r"a-b\.png and a/b\.png have the same name in H5"):
        match_pairs(tmp_path, pairs, matcher, tmp_path / "raw")
    assert not matcher.encoded
    assert match_pairs(tmp_path, pairs[1:2], matcher, tmp_path / "raw").matched == 1


def test_what_two_calls_did_together() -> None:
    first = MatchingSummary(3, 0, 4, 4, {"x": "cut"}, 1, ("b",), 30, 1.0, {"F uint16": None})
    second = MatchingSummary(2, 3, 1, 5, {}, 0, ("a",), 20, 2.0, {"G uint16": [1.0, 9.0]})
    both = first.followed_by(second)
    levels = {"F uint16": None, "G uint16": [1.0, 9.0]}
    assert both == MatchingSummary(5, 3, 5, 5, {"x": "cut"}, 1, ("a", "b"), 50, 3.0, levels)
