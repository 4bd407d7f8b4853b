"""Protocols of papers: sizes and padding of photos, thresholds, estimators; real index files."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.matches import Matches
from edm_hloc.cli import main
from edm_hloc.evaluation.input_sizes import FittedMatcher, InputSize
from edm_hloc.evaluation.pose import measure_pair
from edm_hloc.evaluation.pose_pairs import index_of, read_pose_pairs
from edm_hloc.evaluation.protocols import ours, pose_protocol
from edm_hloc.images.load import NetworkImage, load_image
from edm_hloc.matchers.base import Features, Matcher, MatcherInfo, Preprocessing
from edm_hloc.matchers.edm import EDMMatcher
from tests.planar import PlanarPair


class Recorder(Matcher):
    """Remembers the inputs and answers with the four corners of the photos and beyond them."""

    def __init__(self, divisor: int = 32) -> None:
        self.info = MatcherInfo("recorder", Preprocessing(640, divisor))
        self.seen: list[NetworkImage] = []

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        return {"matcher": "recorder"}

    def encode(self, image: NetworkImage) -> Features:
        self.seen.append(image)
        return Features(image.tensor.shape, image.transform, 1)

    def match_pixels(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        found = []
        for first, second in pairs:
            x0 = np.array([(0, 0), (first.data[2] - 1, first.data[1] - 1)], np.float32)
            x1 = np.array([(0, 0), (second.data[2] - 1, second.data[1] - 1)], np.float32)
            found.append(Matches(x0, x1, np.ones(2, np.float32)))
        return found


def photo(folder: Path, size: tuple[int, int]) -> Path:
    """A ramp: the red, green and blue values are x / 20, y / 20 and their sum."""
    x, y = np.meshgrid(np.arange(size[0]) / 20, np.arange(size[1]) / 20)
    path = folder / "ramp.png"
    assert cv2.imwrite(str(path), np.dstack([x + y, y, x]).round().astype(np.uint8))
    return path


@pytest.mark.parametrize(
    ("size", "photo_size", "inputs"),
    [
        # LoFTR's: down to a multiple of 8, then black to a square; smaller photos are enlarged
        (InputSize(longer=1152, padded=True, smooth=False), (1600, 1199), (1152, 856, 1152)),
        (InputSize(longer=832, padded=True, smooth=False), (300, 400), (624, 832, 832)),
        (InputSize(exact=(640, 480), smooth=False), (1296, 968), (640, 480, None)),
        (InputSize(shorter=480), (1000, 750), (640, 480, None)),
        (InputSize(shorter=480), (300, 240), (608, 480, None)),
    ],
)
def test_sizes_and_padding(
    tmp_path: Path,
    size: InputSize,
    photo_size: tuple[int, int],
    inputs: tuple[int, int, int | None],
) -> None:
    width, height, side = inputs
    recorder = Recorder()
    matcher = FittedMatcher(recorder, size)
    path = photo(tmp_path, photo_size)
    seen = matcher.info.preprocessing
    image = load_image(
        path, resize_max=seen.resize_max, divisor=seen.divisor, grayscale=seen.grayscale
    )
    features = matcher.encode(image)
    tensor = recorder.seen[0].tensor[0]
    assert tensor.shape == ((side, side) if side else (height, width))
    assert (tensor[height:] == 0).all()
    assert (tensor[:, width:] == 0).all()
    # the photo itself, seen through the transform: values grow with x and y
    x, y = np.meshgrid(np.arange(8, width - 8, 37), np.arange(8, height - 8, 41))
    points = np.column_stack([x.ravel(), y.ravel()]).astype(np.float64)
    there = features.transform.to_original(points)
    grey = (0.299 * there[:, 0] + 0.587 * there[:, 1] + 0.114 * there.sum(axis=1)) / 20
    np.testing.assert_allclose(255 * tensor[y.ravel(), x.ravel()].numpy(), grey, atol=1.2)
    found = matcher.match(features, features)  # the corner of the padding is no match
    assert len(found) == (1 if side else 2)
    given = size.shorter or size.longer or (size.exact or (0,))[0]
    assert given in size.of(*photo_size)
    assert str(size) in str(matcher.provenance["input_size"])


def test_padding_reaches_the_network(tmp_path: Path) -> None:
    """The matcher is told what of its input is the photo; photos of other shapes match as well."""
    matcher = FittedMatcher(EDMMatcher(), InputSize(longer=160, padded=True, smooth=False))
    (tmp_path / "wide").mkdir()
    paths = [photo(tmp_path, (300, 400)), photo(tmp_path / "wide", (640, 300))]
    images = [load_image(path, resize_max=None, divisor=1) for path in paths]
    features = matcher.encode_batch(images)
    assert [f.data.shown for f in features] == [(20, 15), (9, 20)]
    assert [tuple(f.data.f8.shape[-2:]) for f in features] == [(20, 20), (20, 20)]
    assert len(matcher.match_batch([(features[0], features[1]), (features[1], features[0])])) == 2
    assert matcher.provenance["padding"] == "masked"
    whole = EDMMatcher().encode(load_image(paths[0], resize_max=160))
    assert whole.data.shown is None


def test_protocols_by_name(tmp_path: Path) -> None:
    megadepth = PlanarPair((320, 240), (320, 240)).write_as_megadepth(tmp_path)
    assert index_of(megadepth) == "megadepth"
    loftr = pose_protocol("loftr", megadepth)
    assert (loftr.estimators, loftr.epipolar_squared) == ({"opencv": 0.5}, 1e-4)
    assert loftr.size == InputSize(longer=1152, padded=True, smooth=False)
    jamma = pose_protocol("jamma", megadepth)
    assert jamma.estimators == {"poselib": 0.5}
    assert jamma.size == InputSize(longer=832, padded=True, smooth=False)
    smaller = pose_protocol("loftr", megadepth, 640)
    assert smaller.size == InputSize(longer=640, padded=True, smooth=False)
    np.savez(megadepth / "intrinsics.npz", scene0707_00=np.eye(3))
    with pytest.raises(EdmHlocError, match=r"ScanNet's photos at 640 × 480 px: leave --resize out"):
        pose_protocol("loftr", megadepth, 640)
    scannet = pose_protocol("loftr", megadepth)
    assert (scannet.epipolar_squared, scannet.threshold) == (5e-4, 0.2)
    assert scannet.size == InputSize(exact=(640, 480), smooth=False)
    (tmp_path / "pairs.txt").touch()
    assert pose_protocol("ours", tmp_path / "pairs.txt") == ours()
    with pytest.raises(EdmHlocError, match="LoFTR's index files"):
        pose_protocol("loftr", tmp_path / "pairs.txt")
    assert "longer side 832 px, padded to a square" in str(jamma)


def test_half_a_pixel_of_the_photo_decides_at_the_threshold(tmp_path: Path) -> None:
    """The 0.5 px of PoseLib are of the photos as they are: 0.3 px of noise are inliers."""
    planar = PlanarPair((640, 480), (640, 480))
    (pair,) = read_pose_pairs(planar.write_as_megadepth(tmp_path), tmp_path, 640)
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0, 470, (400, 2))
    points = planar.plane_points(0, pixels) * rng.uniform(0.7, 1.4, (400, 1))
    x0, x1 = planar.project(0, points), planar.project(1, points)
    x1 += rng.normal(0, 0.2, x1.shape)
    x1[::4] = rng.uniform(0, 470, (100, 2))
    protocol = pose_protocol("jamma", tmp_path / "index")
    result = measure_pair(pair, x0, x1, protocol)
    assert set(result.errors) == {"poselib"}
    assert max(result.errors["poselib"]) < 0.5


def test_without_poselib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "poselib":
            raise ModuleNotFoundError("No module named 'poselib'", name="poselib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert set(ours().estimators) == {"colmap", "opencv"}
    index = PlanarPair((64, 64), (64, 64)).write_as_megadepth(tmp_path)
    with pytest.raises(EdmHlocError, match=r"pip install 'edm_hloc\[poselib\]'"):
        pose_protocol("jamma", index)


def test_command_with_a_real_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MegaDepth's index as published, photos padded, by the shipped network."""
    planar = PlanarPair((320, 240), (320, 240))
    index = planar.write_as_megadepth(tmp_path)
    out = tmp_path / "out"
    arguments = ["evaluate", "pose", str(index), str(tmp_path), str(out), "--beside", "none"]
    assert main([*arguments, "--protocol", "jamma", "--refine", "none"]) == 0
    said = capsys.readouterr().out
    assert "jamma: PoseLib's LO-RANSAC at 0.5 px; photos: longer side 832 px, padded" in said
    assert "| edm | 0–180 | 1 |" in said
    (tmp_path / "imgs" / "1.png").unlink()
    assert main([*arguments, "--protocol", "loftr"]) == 1
    assert "1.png" in capsys.readouterr().err
