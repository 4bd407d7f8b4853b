"""Uncertainties of cameras against the spread of their errors, under noise that is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from edm_hloc.base.colmap import ModelStatistics, quiet_colmap
from edm_hloc.cli.summaries import print_tracks
from edm_hloc.evaluation.models import align
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.plausible import OFF_CENTRE
from edm_hloc.tracks import lens_uncertainty, uncertainty
from edm_hloc.tracks.adjustment import Freedom, adjuster_of
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Views
from edm_hloc.tracks.lens import Lens
from edm_hloc.tracks.lens_uncertainty import counting_lenses, held_principal_points
from edm_hloc.tracks.refine import TrackSummary
from edm_hloc.tracks.uncertainty import (
    CameraUncertainty,
    camera_covariances,
    camera_uncertainties,
    most_uncertain,
)
from tests.mapping.scenes import look_at

NOISE, TRIALS = 0.3, 24
FIXED, THREADS = Freedom(constant=frozenset({1})), MappingOptions(threads=1)


@dataclass(frozen=True)
class Scene:
    """Photos along an arc, of points 40 px apart, farther than patches reach."""

    camera: str = "SIMPLE_PINHOLE"
    own: bool = False  # a camera of each photo
    photos: int = 6
    arc: float = 0.5  # radians to each side

    def model(self, rng: np.random.Generator, noise: float) -> pycolmap.Reconstruction:
        """With noise on the keypoints."""
        x, y = np.meshgrid(np.linspace(-1.5, 1.5, 12), np.linspace(-1.1, 1.1, 9))
        points = np.stack([x, y, 0.4 * np.sin(3 * x) * np.cos(2 * y)], axis=-1).reshape(-1, 3)
        model = pycolmap.Reconstruction()
        numbers = range(1, self.photos + 1)
        for k, angle in zip(numbers, np.linspace(-self.arc, self.arc, self.photos), strict=True):
            camera_id = k if self.own else 1
            if camera_id == k:
                camera = pycolmap.Camera.create_from_model_name(k, self.camera, 600.0, 640, 480)
                model.add_camera_with_trivial_rig(camera)
            centre = 4 * np.array([np.sin(angle), 0.3 * np.cos(4 * angle), -np.cos(angle)])
            pose = look_at(centre, np.zeros(3))
            image = pycolmap.Image(name=f"{k}", camera_id=camera_id, image_id=k)
            xyz = points @ pose.rotation.matrix().T + pose.translation
            xy = model.cameras[camera_id].img_from_cam(xyz)
            xy = xy + rng.normal(0, noise, xy.shape) if noise else xy
            image.points2D = pycolmap.Point2DList([pycolmap.Point2D(p) for p in xy])
            model.add_image_with_trivial_frame(image, pose)
        for i, point in enumerate(points):
            model.add_point3D(point, pycolmap.Track([pycolmap.TrackElement(k, i) for k in numbers]))
        return model


FREE = Freedom()
LENS = Freedom(principal_point=True)
ROW = Scene("SIMPLE_RADIAL", photos=3, arc=0.1)


def _poses(model: pycolmap.Reconstruction) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (V, 3, 3) and centres (V, 3), by name."""
    views = Views.of(model)
    return views.R, views.centres


@pytest.mark.parametrize(
    ("scene", "freedom"),
    [
        (Scene(), FIXED),
        (Scene("SIMPLE_RADIAL", own=True), FREE),
        (Scene("RADIAL"), LENS),
        (ROW, FREE),
    ],
    ids=["known", "unknown", "lens", "row"],
)
def test_uncertainties_are_the_spread_of_the_errors(scene: Scene, freedom: Freedom) -> None:
    """Independent of the photos: with the factor that stands for these alone taken out, the errors
    of adjusted cameras are as large as is told, whatever the adjustment changes."""
    rng = np.random.default_rng(0)
    true_R, true_centres = _poses(scene.model(rng, 0))
    extent = np.linalg.norm(true_centres[:, None] - true_centres, axis=2).max()
    of_position, of_rotation = [], []
    with quiet_colmap():
        for _ in range(TRIALS):
            model = scene.model(rng, NOISE)
            adjuster_of(model, NOISE, freedom, THREADS, iterations=60).solve()
            covariances = camera_covariances(model, freedom, TrackConfig(), THREADS)
            told = camera_uncertainties(covariances, Views.of(model))
            R, centres = _poses(model)
            frame = align(R, centres, true_R, true_centres)
            off = np.einsum("vij,vj->vi", true_R, frame(centres) - true_centres)
            turn = Rotation.from_matrix(R @ frame.R.T @ true_R.transpose(0, 2, 1)).as_rotvec()
            for v, camera in enumerate(told.values()):
                of_position.append(100 * off[v] / extent / camera.position)
                of_rotation.append(np.degrees(turn[v]) / camera.rotation)
    for ratio in (np.array(of_position), np.array(of_rotation)):
        own = ratio * uncertainty.UNSEEN
        print(np.sqrt(np.mean(own**2)), np.mean(np.abs(own) < 1), np.mean(np.abs(own) < 2))
        assert 0.85 < np.sqrt(np.mean(own**2)) < 1.25
        assert 0.60 < np.mean(np.abs(own) < 1) < 0.78  # 68 %
        assert 0.92 < np.mean(np.abs(own) < 2) < 0.98  # 95 %


def _found(camera: pycolmap.Camera, sigma: float) -> Lens:
    """A lens whose principal point is uncertain by sigma along each axis, by four groups."""
    f, cx, cy, k1, k2 = map(float, camera.params)
    way = sigma / np.sqrt(1.5)
    ways = [(f, cx + x * way, cy + y * way, k1, k2) for x, y in [(1, 0), (-1, 0), (0, 1), (0, -1)]]
    return Lens(6, 1.0, 1.0, camera.camera_id, tuple(ways))


@pytest.mark.parametrize("how", ["one camera", "own cameras", "lens is told"])
def test_how_far_principal_points_may_be_off_counts(how: str) -> None:
    """In the middle real ones are off by 0.7 % of the longer side, which the residuals hardly
    show; and where the photos tell them, by as much as they differ without some of the photos."""
    own, told_lens = how == "own cameras", how == "lens is told"
    scene = Scene("RADIAL" if told_lens else "SIMPLE_RADIAL", own=own)
    rng = np.random.default_rng(0)
    true_R, true_centres = _poses(scene.model(rng, 0))
    extent = np.linalg.norm(true_centres[:, None] - true_centres, axis=2).max()
    ratios: list[float] = []
    with quiet_colmap():
        for _ in range(8):
            model = scene.model(rng, 0.05)
            off = {i: rng.normal(0, OFF_CENTRE * 640, 2) for i in sorted(model.cameras)}
            for image in model.images.values():
                for keypoint in image.points2D:
                    keypoint.xy = keypoint.xy + off[image.camera_id]
            adjuster_of(model, 1.0, FREE, THREADS, iterations=60).solve()
            held = held_principal_points(model, FREE)
            assert held == sorted(model.cameras)
            known = camera_covariances(model, FREE, TrackConfig(), THREADS)
            assert known is not None
            before = model.cameras[1].principal_point_x
            if told_lens:
                lens = _found(model.cameras[1], OFF_CENTRE * 640)
                covariances = counting_lenses(known, model, [lens], LENS, THREADS)
            else:
                covariances = counting_lenses(known, model, [], FREE, THREADS)
            assert model.cameras[1].principal_point_x == before
            told = camera_uncertainties(covariances, Views.of(model))
            R, centres = _poses(model)
            frame = align(R, centres, true_R, true_centres)
            way = 100 / extent * np.linalg.norm(frame(centres) - true_centres, axis=1)
            turn = Rotation.from_matrix(R @ frame.R.T @ true_R.transpose(0, 2, 1)).magnitude()
            sure = camera_uncertainties(known, Views.of(model))
            for v, (name, camera) in enumerate(told.items()):
                ratios.append(way[v] / np.linalg.norm(camera.position))
                ratios.append(np.degrees(turn[v]) / np.linalg.norm(camera.rotation))
                assert np.linalg.norm(camera.rotation) > 3 * np.linalg.norm(sure[name].rotation)
    assert 0.5 < np.sqrt(np.mean(np.square(ratios))) < 1.6


def test_lenses_that_come_to_nothing_leave_cameras_unknown(monkeypatch) -> None:
    model = Scene("RADIAL").model(np.random.default_rng(0), 0.05)
    known = camera_covariances(model, LENS, TrackConfig(), THREADS)
    lens = _found(model.cameras[1], 1.0)
    monkeypatch.setattr(lens_uncertainty, "_change", lambda *_: np.full(36, np.nan))
    assert counting_lenses(known, model, [lens], LENS, THREADS) is None
    assert counting_lenses(None, model, [lens], LENS, THREADS) is None
    simple = Scene("SIMPLE_RADIAL").model(np.random.default_rng(0), 0.05)
    assert counting_lenses(known, simple, [lens], LENS, THREADS) is known  # it is another one now


@pytest.mark.parametrize(
    ("freedom", "off"),
    [(FIXED, 0.0), (LENS, 0.0), (FREE, 9.0), (Freedom(poses=False), 0.0)],
    ids=["known", "found", "not in the middle", "poses stay"],
)
def test_principal_points_that_are_not_held_do_not_count(freedom: Freedom, off: float) -> None:
    model = Scene("SIMPLE_RADIAL").model(np.random.default_rng(0), 0)
    model.cameras[1].principal_point_x += off
    assert held_principal_points(model, freedom) == []


@pytest.mark.parametrize(("scale", "shift"), [(1e3, 0.0), (1e-3, 0.0), (1.0, 5e6)])
def test_uncertainties_do_not_depend_on_the_unit_or_the_origin(scale: float, shift: float) -> None:
    """Of the weakest model, as its cameras tell least of its lens: metres, millimetres, UTM."""
    model = ROW.model(np.random.default_rng(0), NOISE)
    found = []
    with quiet_colmap():
        adjuster_of(model, NOISE, FREE, THREADS).solve()
        for change in (pycolmap.Sim3d(), pycolmap.Sim3d(scale, pycolmap.Rotation3d(), [shift] * 3)):
            model.transform(change)
            covariances = camera_covariances(model, FREE, TrackConfig(), THREADS)
            told = camera_uncertainties(covariances, Views.of(model))
            found.append([[*camera.position, *camera.rotation] for camera in told.values()])
    assert found[1] == pytest.approx(np.array(found[0]), rel=1e-3)


def test_uncertainties_of_photos_of_any_size_are_known() -> None:
    """Rounding hides a frame that the least damping holds where many pixels tell of a rotation."""
    model = Scene().model(np.random.default_rng(0), NOISE)
    found = []
    for size in (1, 300):
        camera = model.cameras[1]
        camera.params = size * camera.params
        for image in model.images.values():
            for keypoint in image.points2D:
                keypoint.xy = size * keypoint.xy
        with quiet_colmap():
            covariances = camera_covariances(model, FIXED, TrackConfig(), THREADS)
        told = camera_uncertainties(covariances, Views.of(model))
        found.append([[*camera.position, *camera.rotation] for camera in told.values()])
    assert found[1] == pytest.approx(np.array(found[0]), rel=0.01)


def test_a_model_that_has_collapsed_has_no_uncertainties() -> None:
    """Two photos at one place, with all their points within a billionth of the others' depth."""
    model = Scene().model(np.random.default_rng(0), NOISE)
    for k in (1, 2):
        image = model.images[k]
        far = image.cam_from_world()
        near = pycolmap.Rigid3d(far.rotation, 1e-9 * far.translation)
        image.frame.rig_from_world = near
    seen = [(k, i) for k in (1, 2) for i in range(len(model.images[1].points2D))]
    for k, i in seen:
        if model.images[k].points2D[i].has_point3D():
            model.delete_observation(k, i)
    for i in range(len(model.images[1].points2D)):
        elements = [pycolmap.TrackElement(k, i) for k in (1, 2)]
        model.add_point3D(1e-9 * np.array([i % 12 - 6, i // 12 - 4, 0.0]), pycolmap.Track(elements))
    with quiet_colmap():
        found = camera_covariances(model, FIXED, TrackConfig(), THREADS)
    assert found is None or np.isfinite(found).all()
    assert camera_uncertainties(None, Views.of(model)) == {}


def test_cameras_of_a_rig_have_no_uncertainties_and_the_summary_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """COLMAP knows the covariances of poses, and photos of a rig share one."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 2, 3
    options.num_points3D = 60
    pycolmap.set_random_seed(0)
    with quiet_colmap():
        model = pycolmap.synthesize_dataset(options)
        assert camera_covariances(model, Freedom(), TrackConfig(), THREADS) is None
    statistics = ModelStatistics.of(model)
    summary = TrackSummary(statistics, statistics, 2, 0, 0, 0, (), (), 1.0, None, {})
    print_tracks(asdict(summary))
    assert "Uncertain   of the cameras it is not known" in capsys.readouterr().out


def test_one_camera_far_away_does_not_make_the_others_sure() -> None:
    model = Scene().model(np.random.default_rng(0), NOISE)
    covariances = np.eye(6 * model.num_images())
    before = camera_uncertainties(covariances, Views.of(model))
    last = max(model.images)
    image = model.images[last]
    pose = image.cam_from_world()
    image.frame.rig_from_world = pycolmap.Rigid3d(pose.rotation, 1e6 + pose.translation)
    after = camera_uncertainties(covariances, Views.of(model))
    for name in set(before) - {image.name}:
        assert after[name].position[0] > 0.5 * before[name].position[0]


def test_the_most_uncertain_cameras_are_named() -> None:
    sure = CameraUncertainty((0.001, 0.001, 0.001), (0.002, 0.002, 0.002))
    bad = CameraUncertainty((0.01, 0.0, 0.0), (0.002, 0.002, 0.002))
    cameras = {"a": sure, "b": sure, "c": bad}
    assert most_uncertain(cameras) == {"c": 0.01}
    assert most_uncertain({}) == {}
