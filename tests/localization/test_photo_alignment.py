"""Which points a query is aligned at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from edm_hloc.localization import photo_alignment
from edm_hloc.localization.photo_alignment import PhotoAligner
from edm_hloc.localization.points import ModelPoints
from edm_hloc.tracks.alignment import Alignment
from edm_hloc.tracks.geometry import Tracks

CAMERA = pycolmap.Camera(
    camera_id=1, model="SIMPLE_PINHOLE", width=320, height=240, params=[300.0, 160.0, 120.0]
)


@pytest.fixture
def as_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alignment that finds every point where it is projected."""

    def align(tracks: Tracks, *more: Any) -> Alignment:
        assert not more[-1].shown  # beside the progress of the queries
        n, t = len(tracks.view), len(tracks.ids)
        return Alignment(tracks.xy, np.full(n, 0.1), np.ones(n), np.ones(t))

    monkeypatch.setattr(photo_alignment, "align", align)


def _model(points: np.ndarray, seen: Sequence[Sequence[int]]) -> pycolmap.Reconstruction:
    """Of points (N, 3) and three photos; `seen` has the photos of each, 1 to 3, some repeatedly."""
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    for k in range(3):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0.2 * k, 0, 0]))
        xy = np.tile(CAMERA.img_from_cam(pose * points), (2, 1))
        image = pycolmap.Image(name=f"{k}.jpg", camera_id=1, image_id=k + 1)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(p) for p in xy])
        model.add_image_with_trivial_frame(image, pose)
    for n, photos in enumerate(seen):
        track = pycolmap.Track()
        for place, k in enumerate(photos):
            track.add_element(k, n + photos[:place].count(k) * len(points))
        model.add_point3D(points[n], track)
    return model


@pytest.mark.usefixtures("as_projected")
def test_points_are_spread_over_the_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three photos see 600 points in the middle of a wall, and two of them 100 around these."""
    rng = np.random.default_rng(0)
    middle, around = rng.uniform(-0.5, 0.5, (600, 3)), rng.uniform(-1.8, 1.8, (1000, 3))
    around = around[np.abs(around[:, :2]).max(axis=1) > 1.2][:100]
    points = np.concatenate([middle, around]) * [1, 0.75, 0.1] + [0, 0, 4]
    seen = [(1, 2, 3) if n < len(middle) else (1, 2) for n in range(len(points))]
    _model(points, seen).write_binary(tmp_path)
    monkeypatch.setattr(photo_alignment, "_POINTS", 300)
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0.1, 0, 0]))
    inliers = {f"{k}.jpg": 9 for k in range(3)}
    aligner = PhotoAligner(ModelPoints(tmp_path))
    xy, found = aligner.align(tmp_path / "q.jpg", 0, CAMERA, pose, inliers)
    assert len(found) == 300
    assert np.abs(xy - CAMERA.img_from_cam(pose * found)).max() < 1e-6
    # Of those in the middle each place has its share, of the few around hardly any is left out.
    outer = np.abs(found[:, 0]) > 0.6
    assert np.count_nonzero(outer) > 0.9 * np.count_nonzero(np.abs(around[:, 0]) > 0.6)
    inner = found[~outer]
    assert np.abs(np.median(inner[:, :2], axis=0)).max() < 0.1


@pytest.mark.usefixtures("as_projected")
def test_two_observations_of_one_photo_are_not_two_photos(tmp_path: Path) -> None:
    """Of the model of another program, whose points a photo may observe several times."""
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (60, 3)) + np.array([0, 0, 4])
    _model(points, [(1, 2) if n < 20 else (1, 1, 3) for n in range(60)]).write_binary(tmp_path)
    aligner = PhotoAligner(ModelPoints(tmp_path))
    inliers = {"0.jpg": 9, "1.jpg": 9}
    _, found = aligner.align(tmp_path / "q.jpg", 0, CAMERA, pycolmap.Rigid3d(), inliers)
    assert len(found) == 20
