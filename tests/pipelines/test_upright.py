"""Photos stored on their side match, reconstruct and are drawn as if they were stored upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

import edm_hloc
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import upright_axes
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.decode import photo_size
from edm_hloc.pairs.retrieval import RetrievalOptions, SimilarPhotos
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
from tests.images.pixels import STORED_AT, store_turned


@pytest.mark.parametrize("orientation", [2, 3, 6, 7, 8])
def test_matches_are_those_of_the_upright_photo(
    tmp_path: Path, scene: Path, orientation: int
) -> None:
    first, second = sorted((scene / "images").iterdir())[:2]
    for path, name in ((first, "first"), (second, "second")):
        with Image.open(path) as opened:
            opened.convert("RGB").save(tmp_path / f"{name}.png")
            store_turned(opened.convert("RGB"), tmp_path / f"{name}_turned.png", orientation)
    width, height = photo_size(tmp_path / "first_turned.png")
    matcher = edm_hloc.load_matcher(weights="edm_s", resize=320, device="cpu")
    upright = edm_hloc.match(tmp_path / "first.png", tmp_path / "second.png", matcher)
    turned = edm_hloc.match(tmp_path / "first_turned.png", tmp_path / "second_turned.png", matcher)
    assert len(turned) == len(upright) > 100
    np.testing.assert_array_equal(turned.scores, upright.scores)
    for points, expected in (
        (turned.keypoints0, upright.keypoints0),
        (turned.keypoints1, upright.keypoints1),
    ):
        there = STORED_AT[orientation](expected[:, 0], expected[:, 1], width, height)
        np.testing.assert_allclose(points, np.stack(there, axis=1), atol=1e-4)
    # the picture is the upright photos', with the points where they are on them
    pictures = [np.array(matches.draw()) for matches in (turned, upright)]
    differ = (pictures[0] != pictures[1]).any(
        axis=2
    )  # where the end of a line is rounded otherwise
    assert differ.mean() < 0.02


@pytest.mark.parametrize("how", ["listed", "similar"])
def test_mirrored_photos_are_left_out_of_a_model(tmp_path: Path, scene: Path, how: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((scene / "images").iterdir())[:4]:
        with Image.open(path) as opened:
            turn = 2 if path.name == "view_01.jpg" else 1
            store_turned(opened.convert("RGB"), images / path.name, turn, quality=97)
    names = tuple(sorted(path.name for path in images.iterdir()))
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    chosen = SimilarPhotos(names, RetrievalOptions("sift", 2))
    matcher = edm_hloc.load_matcher(weights="edm_s", resize=320, device="cpu", refine="none")
    cameras = CameraOptions(mode="single", model="SIMPLE_PINHOLE")
    config = ReconstructionConfig(cameras=cameras, refine_tracks=False)
    given = pairs if how == "listed" else chosen
    run = reconstruct(images, tmp_path / "out", given, matcher, config)
    assert "mirrors it" in run.results["matching"]["skipped"]["view_01.jpg"]
    assert run.results["matching"]["encoded"] == 3
    assert run.results["mapped"]["statistics"]["registered"] == 3

    for path in images.iterdir():
        with Image.open(path) as opened:
            store_turned(opened.convert("RGB"), path, 2)
    with pytest.raises(EdmHlocError, match="its EXIF orientation"):
        reconstruct(images, tmp_path / "none", given, matcher, config)


def test_portrait_and_landscape_photos_match_without_a_second_look(
    tmp_path: Path, scene: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    orientation = {"view_01.jpg": 6, "view_03.jpg": 8, "view_05.jpg": 3}
    for path in sorted((scene / "images").iterdir()):
        with Image.open(path) as opened:
            turn = orientation.get(path.name, 1)
            store_turned(opened.convert("RGB"), images / path.name, turn, quality=97)
    names = sorted(path.name for path in images.iterdir())
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    matcher = edm_hloc.load_matcher(weights="edm_s", resize=320, device="cpu", refine="none")
    cameras = CameraOptions(mode="single", model="SIMPLE_PINHOLE")
    run = reconstruct(
        images, tmp_path / "out", pairs, matcher, ReconstructionConfig(cameras=cameras)
    )
    assert list(run.results["matching"]["rotated"]) == sorted(orientation)
    assert run.results["mapped"]["statistics"]["registered"] == 7
    poses, truth = (
        {
            image.name: image.cam_from_world()
            for image in pycolmap.Reconstruction(path).images.values()
        }
        for path in (tmp_path / "out" / "model", scene / "truth")
    )
    for a, b in pairs:
        turned = [upright_axes(orientation.get(name, 1)) for name in (a, b)]
        true = truth[a].rotation.matrix() @ truth[b].rotation.matrix().T
        found = poses[a].rotation.matrix() @ poses[b].rotation.matrix().T
        between = turned[0] @ true @ turned[1].T
        angle = np.degrees(np.arccos(np.clip((np.trace(found.T @ between) - 1) / 2, -1, 1)))
        assert angle < 1.5, (a, b)
