"""Synthetic scenes of random points with known cameras, as files of keypoints and matches."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from edm_hloc.evaluation.models import compare
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.keypoints.h5 import FeatureReader, FeatureWriter, MatchReader, MatchWriter
from edm_hloc.mapping.database import ImportSummary, MatchedImages, build_database
from edm_hloc.mapping.options import MappingOptions

SIZE = (640, 480)


CAMERA = pycolmap.Camera(
    camera_id=1, model="SIMPLE_RADIAL", width=640, height=480, params=[550.0, 320.0, 240.0, 0.02]
)


THREADS = MappingOptions(threads=1)


NAMES = ["sub dir/a 1.jpg", "sub dir/b.jpg", "é ü/с.jpg", "é ü/d-e.png", "f.jpg", "g.jpg"]


@dataclass(frozen=True)
class Scene:
    """Files of a scene and the truth behind its keypoints."""

    images: Path
    truth: Path
    features: Path
    matches: Path
    pairs: list[tuple[str, str]]
    points: np.ndarray  # (P, 3)
    ids: dict[str, np.ndarray]  # which point each keypoint shows, -1 for clutter

    @property
    def matched(self) -> MatchedImages:
        return MatchedImages(self.images, self.features, self.matches, self.pairs)


def look_at(centre: np.ndarray, target: np.ndarray) -> pycolmap.Rigid3d:
    z = (target - centre) / np.linalg.norm(target - centre)
    x = np.cross([0.0, -1.0, 0.0], z)
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z])
    return pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)


def make_scene(
    folder: Path,
    names: Sequence[str],
    *,
    noise: float = 0.5,
    outliers: float = 0.05,
    photos: bool = True,
    seed: int = 0,
    centres: np.ndarray | None = None,
    split: int | None = None,
    uncertainty: float | None = None,
    street: bool = False,
    exif: Image.Exif | None = None,
    number: int = 600,
    cameras: Sequence[pycolmap.Camera] = (),
    parallel: bool = False,
) -> Scene:
    """`number` random points seen from an arc of cameras; matches by shared points, some wrong.

    With `split`, images before it share no matches with those from it on. With `street` the
    cameras walk straight on between two rows of houses instead. `cameras` take turns, if given.
    Those that are `parallel` look along z.
    """
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (number, 3)) * [2.0, 1.5, 1.0]
    targets = np.zeros((len(names), 3))
    if street:
        forward = np.arange(len(names))
        centres = np.stack([0.3 * np.sin(forward), 0.05 * np.cos(forward), 5.0 * forward], axis=1)
        targets = np.add(centres, [0.0, 0.0, 1.0])
        length = centres[-1, 2] + 20
        points = rng.uniform([-2.6, -2.5, 0], [-2.4, 1.2, length], (60 * len(names) + 200, 3))
        points[::2, 0] *= -1
    if centres is None:
        angles = np.linspace(-0.5, 0.5, len(names))
        centres = 6 * np.stack([np.sin(angles), 0.15 * np.cos(5 * angles), -np.cos(angles)], axis=1)
    if parallel:
        targets = centres * [1, 1, 0]
    images, truth = folder / "images", folder / "truth"
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA)
    ids: dict[str, np.ndarray] = {}
    with FeatureWriter(folder / "features.h5", {}) as features:
        for i, (name, centre) in enumerate(zip(names, centres, strict=True), start=1):
            path = images / name
            path.parent.mkdir(parents=True, exist_ok=True)
            camera = cameras[(i - 1) % len(cameras)] if cameras else CAMERA
            size = camera.width, camera.height
            if photos:
                with_exif = {"exif": exif} if exif else {}
                Image.new("RGB", size, (200, 100, 50)).save(path, **with_exif)
            pose = look_at(centre, targets[i - 1])
            image = pycolmap.Image(name=name, camera_id=1, image_id=i)
            model.add_image_with_trivial_frame(image, pose)
            # in COLMAP's frame; features hold hloc's, half a pixel less
            there = points @ pose.rotation.matrix().T + pose.translation
            seen = camera.img_from_cam(there) + rng.normal(0, noise, (len(there), 2))
            near = (there[:, 2] > 1) & (there[:, 2] < 25)
            inside = np.flatnonzero(near & np.all((seen > 0) & (seen < size), axis=1))
            clutter = rng.uniform(0, size, (50, 2))
            keypoints = np.concatenate([seen[inside], clutter]) - 0.5
            order = rng.permutation(len(keypoints))
            ids[name] = np.concatenate([inside, np.full(50, -1)])[order]
            scores = np.ones(len(order))
            features.add(name, keypoints[order], scores, uncertainty)
    truth.mkdir()
    model.write_text(truth)
    pairs = list(itertools.combinations(names, 2))
    with MatchWriter(folder / "matches.h5", {}) as writer:
        for a, b in pairs:
            if split is not None and (names.index(a) < split) != (names.index(b) < split):
                continue
            place = {point: k for k, point in enumerate(ids[b]) if point >= 0}
            matches = np.array([place.get(point, -1) for point in ids[a]])
            wrong = rng.random(len(matches)) < outliers
            matches[wrong] = rng.integers(0, len(ids[b]), wrong.sum())
            writer.add(a, b, matches, (matches >= 0).astype(np.float32))
    return Scene(images, truth, folder / "features.h5", folder / "matches.h5", pairs, points, ids)


def with_twins(scene: Scene, folder: Path) -> Scene:
    """The same with two keypoints of each point in each photo, 0.8 px apart, of which one is
    matched with the next photo and one with the others."""
    features, matches = folder / "twin-features.h5", folder / "twin-matches.h5"
    names = list(scene.ids)
    with FeatureReader(scene.features) as reader, FeatureWriter(features, {}) as writer:
        for name in names:
            keypoints = reader.keypoints(name)
            twins = np.concatenate([keypoints, keypoints + np.array([0.8, 0.0])])
            writer.add(name, twins, np.ones(len(twins)))
    with MatchReader(scene.matches) as reader, MatchWriter(matches, {}) as writer:
        for a, b in scene.pairs:
            indices = reader.indices(a, b)
            found = np.full(2 * len(scene.ids[a]), -1)
            second = names.index(b) == names.index(a) + 1
            found[indices[:, 0] + second * len(scene.ids[a])] = indices[:, 1]
            writer.add(a, b, found, (found >= 0).astype(np.float32))
    return replace(scene, features=features, matches=matches)


def repeats(model: pycolmap.Reconstruction) -> int:
    """Number of observations of points that their photos observe by another keypoint too."""
    tracks = [[e.image_id for e in p.track.elements] for p in model.points3D.values()]
    return sum(len(images) - len(set(images)) for images in tracks)


def exif(focal_35mm: int | None, model: str | None = "Model 5") -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = 6
    if model is not None:
        data[0x010F], data[0x0110] = "Make", model
    if focal_35mm is not None:
        data.get_ifd(0x8769)[0xA405] = focal_35mm
    return data


def build(
    scene: Scene, path: Path, cameras: CameraOptions | None = None, **changes: object
) -> ImportSummary:
    matched = replace(scene.matched, **changes)  # type: ignore[arg-type]
    return build_database(path, matched, cameras, THREADS)[0]


def same(camera: pycolmap.Camera) -> bool:
    return camera.model == CAMERA.model and camera.params.tolist() == CAMERA.params.tolist()


def assert_near_truth(scene: Scene, model: Path, rotation: float, position: float) -> None:
    """Largest errors: degrees, and % of the extent."""
    comparison = compare(model, scene.truth)
    assert comparison.registered == comparison.images
    assert comparison.rotation_max < rotation
    assert comparison.position_max < position


def rows(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything that a database holds."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = [name for (name,) in tables]
        return {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
