"""Lenses that photos tell: known cameras around points, and models of them with simpler lenses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edm_hloc.base.colmap import take_intrinsics
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import ModelComparison, compare
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.tracks import refine
from edm_hloc.tracks.adjustment import Freedom
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Views
from edm_hloc.tracks.lens import fit_lenses, is_plausible, lens_difference
from edm_hloc.tracks.uncertainty import camera_covariances, camera_uncertainties
from tests.mapping.scenes import look_at

SIZE = (471, 313)
MIDDLE = [235.5, 156.5]
TRUE = [400.0, 243.5, 150.5, -0.12, 0.08]  # 8 and 6 px off the middle
THREADS = MappingOptions(threads=1)
SIMPLE = Freedom()


def camera(params: Sequence[float], camera_id: int = 1) -> pycolmap.Camera:
    """SIMPLE_RADIAL of four parameters, RADIAL of five."""
    return pycolmap.Camera(
        camera_id=camera_id,
        model={4: "SIMPLE_RADIAL", 5: "RADIAL"}[len(params)],
        width=SIZE[0],
        height=SIZE[1],
        params=list(params),
    )


def around(number: int) -> np.ndarray:
    """(N, 3) centres around the origin, from above and below."""
    turn = np.linspace(-0.9, 0.9, number)
    return 4 * np.stack([np.sin(turn), 0.3 * np.cos(3 * turn), -np.cos(turn)], axis=1)


def ahead(number: int) -> np.ndarray:
    """(N, 3) centres on a straight line towards the origin."""
    return np.linspace([0, 0, -6.0], [0, 0, -4.0], number)


def seen_by(
    lenses: Sequence[pycolmap.Camera],
    centres: np.ndarray,
    *,
    noise: float = 0.1,
    roll: float = 0.2,
    depth: float = 0.8,
) -> pycolmap.Reconstruction:
    """A model with the true poses and lenses, in which each photo k has lens k modulo their number.

    Args:
        lenses: with the ids 1, 2, ….
        centres: (N, 3) of the photos.
        noise: standard deviation of the keypoints, px.
        roll: of the photos, radians, to one side and the other.
        depth: of the points, to each side.
    """
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (400, 3)) * [1.6, 1.1, depth]
    model = pycolmap.Reconstruction()
    seen: list[list[tuple[int, int]]] = [[] for _ in points]
    for lens in {each.camera_id: each for each in lenses}.values():
        model.add_camera_with_trivial_rig(lens)
    for k, centre in enumerate(centres, start=1):
        lens = lenses[k % len(lenses)]
        turn = pycolmap.Rotation3d(np.array([0, 0, roll * (-1) ** (k // 2)]))
        pose = pycolmap.Rigid3d(turn, np.zeros(3)) * look_at(centre, np.array([0.01, 0, 0]))
        image = pycolmap.Image(name=f"{k:02d}.jpg", camera_id=lens.camera_id, image_id=k)
        xyz = points @ pose.rotation.matrix().T + pose.translation
        xy = np.array([lens.img_from_cam(p) for p in xyz])
        inside = np.flatnonzero(((xy > 0) & (xy < SIZE)).all(axis=1))
        xy = xy[inside] + rng.normal(0, noise, (len(inside), 2))
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(p) for p in xy])
        for n, i in enumerate(inside.tolist()):
            seen[i].append((k, n))
        model.add_image_with_trivial_frame(image, pose)
    for point, elements in zip(points, seen, strict=True):
        if len(elements) > 2:
            model.add_point3D(point, pycolmap.Track([pycolmap.TrackElement(*e) for e in elements]))
    return model


def mapped(
    truth: pycolmap.Reconstruction, ids: Sequence[int] = (1,), *, distortion: bool = True
) -> pycolmap.Reconstruction:
    """What a mapper that knows SIMPLE_RADIAL only makes of these keypoints."""
    model = pycolmap.Reconstruction(truth)
    for i in ids:
        f = model.cameras[i].params[0]
        take_intrinsics(model.cameras[i], camera([1.02 * f, *MIDDLE, 0.0]))
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_extra_params = distortion
    pycolmap.bundle_adjustment(model, options)
    return model


def compared(
    model: pycolmap.Reconstruction, truth: pycolmap.Reconstruction, folder: Path
) -> ModelComparison:
    for name, which in (("model", model), ("truth", truth)):
        (folder / name).mkdir(exist_ok=True)
        which.write_binary(folder / name)
    return compare(folder / "model", folder / "truth")


def test_a_lens_is_found_and_the_cameras_with_it(tmp_path: Path) -> None:
    truth = seen_by([camera(TRUE)], around(12))
    simple = mapped(truth)
    params = list(simple.cameras[1].params)
    model, freedom, (lens,) = fit_lenses(simple, SIMPLE, THREADS)
    assert (lens.photos, freedom.principal_point) == (12, True)
    assert 8 < lens.changed < 14
    assert lens.sigma < 1
    assert np.ptp(lens.without, axis=0)[1:3].max() < 4 * lens.sigma
    assert (lens.camera, len(lens.without)) == (1, 4)
    found = model.cameras[1]
    assert found.model_name == "RADIAL"
    np.testing.assert_allclose(found.params[:3], TRUE[:3], atol=1.0)
    assert lens_difference(found, camera(TRUE)) < 0.6
    errors = [compared(each, truth, tmp_path).position_median for each in (model, simple)]
    assert 4 * errors[0] < errors[1]
    assert list(simple.cameras[1].params) == params  # the given model stays as it is

    again, _, (lens,) = fit_lenses(model, SIMPLE, THREADS)  # photos were added meanwhile
    assert lens.changed > 8
    np.testing.assert_allclose(again.cameras[1].params, found.params, atol=0.3)


@pytest.mark.parametrize(
    ("photos", "freedom"),
    [
        (5, SIMPLE),
        (12, Freedom(constant=frozenset({1}))),
        (12, Freedom(poses=False)),
        (12, Freedom(focal=False)),
        (12, Freedom(lenses=False)),
    ],
)
def test_what_is_to_stay_is_not_asked(photos: int, freedom: Freedom) -> None:
    simple = mapped(seen_by([camera(TRUE)], around(photos)))
    assert fit_lenses(simple, freedom, THREADS) == (simple, freedom, [])


@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
def test_other_camera_models_stay(model: str) -> None:
    truth = seen_by([camera(TRUE)], around(8))
    truth.cameras[1].model = pycolmap.CameraModelId.__members__[model]
    truth.cameras[1].params = [400.0, 400.0, *MIDDLE, *[0.0] * (0 if model == "PINHOLE" else 4)]
    assert fit_lenses(truth, SIMPLE, THREADS) == (truth, SIMPLE, [])


def test_no_lens_is_made_up() -> None:
    """Neither of one that has a single coefficient, nor by a walk straight ahead."""
    plain = mapped(seen_by([camera([400.0, *MIDDLE, -0.05])], around(12)))
    model, freedom, found = fit_lenses(plain, SIMPLE, THREADS)
    assert (model is plain, freedom, found) == (True, SIMPLE, [])
    walk = mapped(seen_by([camera([400.0, *MIDDLE, -0.05])], ahead(8), noise=1.0, roll=0.0))
    assert fit_lenses(walk, SIMPLE, THREADS)[0] is walk


def test_distortion_that_was_left_at_zero_is_asked_for() -> None:
    """It is not made up where it was left at zero since a walk straight ahead does not tell it."""
    without = Freedom(distortion=False)
    flat = mapped(seen_by([camera(TRUE)], around(12)), distortion=False)
    assert flat.cameras[1].params[3] == 0
    model, freedom, (_,) = fit_lenses(flat, without, THREADS)
    assert freedom == replace(without, principal_point=True)
    assert lens_difference(model.cameras[1], camera(TRUE)) < 0.6
    truth = seen_by([camera([400.0, *MIDDLE, -0.05])], ahead(8), noise=1.0, roll=0.0)
    walk = mapped(truth, distortion=False)
    assert fit_lenses(walk, without, THREADS)[0] is walk


def test_a_camera_of_few_photos_stays_beside_another() -> None:
    lenses = [camera([400.0, *MIDDLE, -0.05], 1), *[camera(TRUE, 2)] * 4]
    truth = seen_by(lenses, around(16))
    model, freedom, (lens,) = fit_lenses(mapped(truth, (1, 2)), SIMPLE, THREADS)
    assert [model.cameras[i].model_name for i in (1, 2)] == ["SIMPLE_RADIAL", "RADIAL"]
    assert lens.photos == 13
    assert freedom.principal_point  # that in the middle is not certain
    np.testing.assert_allclose(model.cameras[1].params[1:3], MIDDLE)
    np.testing.assert_allclose(model.cameras[2].params[1:3], TRUE[1:3], atol=1.5)


@pytest.mark.parametrize("few", [TRUE, [520.0, 205.5, 170.0, -0.05, 0.02]], ids=["same", "other"])
def test_lenses_of_few_photos_are_found_beside_one_of_many(
    few: Sequence[float], tmp_path: Path
) -> None:
    """Photos without EXIF data have a camera each, whether the same one took them or they were
    cropped; a principal point in the middle would bend the points, and the lens of the others."""
    lenses = [camera(TRUE)] * 8
    lenses[2], lenses[5] = camera(few, 2), camera(few, 3)
    truth = seen_by(lenses, around(8))
    simple = mapped(truth, (1, 2, 3))
    model, freedom, found = fit_lenses(simple, SIMPLE, THREADS)
    assert [lens.photos for lens in found] == [6, 1, 1]
    for i, params in ((1, TRUE), (2, few), (3, few)):
        assert lens_difference(model.cameras[i], camera(params)) < 1.0
    errors = [compared(each, truth, tmp_path).position_median for each in (model, simple)]
    assert 10 * errors[0] < errors[1]

    covariances = camera_covariances(model, freedom, TrackConfig(), THREADS)
    cameras = camera_uncertainties(covariances, Views.of(model)).values()
    turned = float(np.median([np.linalg.norm(each.rotation) for each in cameras]))
    assert compared(model, truth, tmp_path).rotation_median < 2 * turned < 0.2


@pytest.mark.parametrize(("few", "same"), [(TRUE, True), ([440.0, *TRUE[1:]], False)])
def test_an_unsure_camera_gets_the_lens_of_another_that_explains_it_as_well(
    few: Sequence[float], same: bool, tmp_path: Path
) -> None:
    """Its own photo, of a wall, does not tell its lens."""
    lenses = [camera(TRUE)] * 8
    lenses[4] = camera(few, 2)
    truth = seen_by(lenses, around(8), noise=0.4, depth=0.03)
    simple = mapped(truth, (1, 2))
    models = []
    for unsure in (frozenset[int](), frozenset({2})):
        model, _, (lens,) = fit_lenses(simple, replace(SIMPLE, unsure=unsure), THREADS)
        assert (lens.photos, model.cameras[1].model_name) == (7, "RADIAL")
        models.append(model)
    own, shared = models
    assert own.cameras[2].params[1:3].tolist() == MIDDLE
    assert (shared.cameras[2].params.tolist() == shared.cameras[1].params.tolist()) == same
    if same:
        errors = [compared(each, truth, tmp_path).rotation_max for each in models]
        assert 3 * errors[1] < errors[0]


@pytest.mark.parametrize("options", [THREADS, replace(THREADS, one_camera=False), None])
def test_cameras_are_unsure_whose_photos_have_no_exif_data(
    options: MappingOptions | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A given model, or the user, says which photos share a camera."""
    model = seen_by([camera(TRUE, i) for i in (1, 2, 3)], around(3))
    (tmp_path / "model").mkdir()
    model.write_binary(tmp_path / "model")
    for k, maker in ((1, None), (2, "Maker"), (3, None)):
        exif = Image.Exif()
        if maker:
            exif[271] = maker
        Image.new("RGB", SIZE).save(tmp_path / f"{k:02d}.jpg", exif=exif)
    (tmp_path / "03.jpg").write_bytes(b"damaged")
    given = []

    def noted(model: pycolmap.Reconstruction, root: Path, freedom: Freedom, *_: object) -> None:
        given.append(freedom.unsure)
        raise EdmHlocError("that is all")

    monkeypatch.setattr(refine, "refine_tracks", noted)
    with pytest.raises(EdmHlocError, match="that is all"):
        refine.refine_model(tmp_path / "model", tmp_path, tmp_path / "out", options=options)
    of_first = model.images[1].camera_id
    assert given == [frozenset({of_first}) if options is THREADS else frozenset()]


@given(
    st.floats(0.5, 2.0),
    st.floats(-30, 30),
    st.floats(-30, 30),
)
def test_difference_of_lenses(factor: float, x: float, y: float) -> None:
    """A shift of the principal point is its length; another focal length is none."""
    a = camera([400.0, *MIDDLE, 0.0])
    shifted = camera([400.0, MIDDLE[0] + x, MIDDLE[1] + y, 0.0])
    longer = camera([400.0 * factor, *MIDDLE, 0.0])
    assert lens_difference(a, longer) == pytest.approx(0, abs=1e-6)
    # A shift along the rows of a photo can be taken for a little of a factor only.
    assert lens_difference(a, shifted) == pytest.approx(np.hypot(x, y), rel=0.05, abs=1e-6)


def test_a_lens_that_has_gone_astray_is_none() -> None:
    astray = lens_difference(camera([400.0, *MIDDLE, 0.0]), camera([1e-3, *MIDDLE, 1e9, 1e150]))
    assert not astray < np.inf


@pytest.mark.parametrize(
    ("params", "plausible"),
    [
        (TRUE, True),
        ([400.0, 235.5 + 96, 156.5, 0.0, 0.0], False),  # 20 % of 471 are 94.2
        ([400.0, 235.5 + 92, 156.5, 0.0, 0.0], True),
        ([400.0, *MIDDLE, -0.9, 0.0], False),  # folds the corners: 1 − 2.7·0.5 < 0
        ([400.0, *MIDDLE, 0.1, 1.5], False),
        ([285.0, *MIDDLE, -0.25, 0.0], False),  # does not see its corners
    ],
)
def test_plausible_lenses(params: list[float], plausible: bool) -> None:
    assert is_plausible(camera(params)) == plausible
