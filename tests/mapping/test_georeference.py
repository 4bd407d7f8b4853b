"""Models brought onto the Earth: the right frame whatever some positions say, or none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.gps import Fix, Mark
from edm_hloc.mapping.georeference import (
    CAMERAS,
    Georeference,
    camera_centres,
    camera_features,
    control_points_in,
    is_on_earth,
    keep_place,
    locate,
    place_of,
    to_earth,
    to_local,
    write_placed,
)
from edm_hloc.mapping.similarity import fit_similarity, moved, uncertainty_of

ORIGIN = (47.37, 8.54, 410.0)
EMPTY = pycolmap.Reconstruction()
SCALE, TURN = 0.037, Rotation.from_euler("xyz", [100, 20, -50], degrees=True).as_matrix()


def survey(enu: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Fix]]:
    """Positions (N, 3) in a frame of their own, and on Earth."""
    names = [f"{i:03d}.jpg" for i in range(len(enu))]
    own = SCALE * (enu - [5, 6, 7]) @ TURN.T
    fixes = [Fix(*place) for place in to_earth(enu, ORIGIN).tolist()]
    return dict(zip(names, own, strict=True)), dict(zip(names, fixes, strict=True))


def flight(number: int = 40) -> np.ndarray:
    """Lines over 300 m × 150 m, 80 m above the ground."""
    rng = np.random.default_rng(1)
    return rng.uniform([-150, -75, 75], [150, 75, 85], (number, 3))


def moved_fix(fix: Fix, east_north_up: np.ndarray) -> Fix:
    place = to_local([fix], ORIGIN) + east_north_up
    return Fix(*to_earth(place, ORIGIN)[0].tolist())


def test_the_local_frame_is_east_north_up() -> None:
    steps = [Fix(47.37, 8.54, 411.0), Fix(47.371, 8.54, 410.0), Fix(47.37, 8.541, 410.0)]
    up, north, east = to_local(steps, ORIGIN)
    np.testing.assert_allclose(up, [0, 0, 1], atol=1e-6)
    # of the WGS 84 ellipsoid: 111.18 km a degree of latitude there, 75.50 km of longitude
    np.testing.assert_allclose(north, [0, 111.18, 0], atol=0.02)
    np.testing.assert_allclose(east, [75.50, 0, 0], atol=0.05)
    np.testing.assert_allclose(to_earth(np.array([up]), ORIGIN)[0], [47.37, 8.54, 411.0], atol=1e-9)


def test_the_origin_is_among_positions_on_both_sides_of_the_180th_meridian() -> None:
    truth, there = flight(), (-16.8, 180.0, 20.0)
    fixes = {f"{i:03d}.jpg": Fix(*place) for i, place in enumerate(to_earth(truth, there).tolist())}
    assert {fix.longitude > 0 for fix in fixes.values()} == {True, False}
    found, placed = locate(dict(zip(sorted(fixes), truth, strict=True)), fixes, "GPS")
    assert placed.used
    assert np.abs(to_local([Fix(*placed.origin)], there)).max() < 150
    assert abs(found.rotation.matrix()[2, 2] - 1) < 1e-6  # up stays up


@pytest.mark.parametrize(("noise", "wrong_by"), [(0.02, 2.0), (2.0, 400.0)])
def test_wrong_fixes_do_not_move_the_frame(noise: float, wrong_by: float) -> None:
    rng = np.random.default_rng(0)
    truth = flight()
    points, fixes = survey(truth)
    wrong = set(sorted(fixes)[::4])  # a quarter of them
    for name, fix in fixes.items():
        off = rng.normal(0, noise, 3)
        if name in wrong:
            direction = rng.normal(0, 1, 3)
            off += wrong_by * direction / np.linalg.norm(direction)
        fixes[name] = moved_fix(fix, off)
    found, placed = locate(points, fixes, "GPS")
    assert placed.used
    assert set(placed.wrong) == wrong
    assert abs(placed.scale * SCALE - 1) < 3 * noise / 300
    back = np.array([found * points[name] for name in sorted(points)])
    assert np.abs(back).max() < 400  # metres from an origin among them, not from the Earth's centre
    offset = to_local([Fix(*placed.origin)], ORIGIN)
    np.testing.assert_allclose(back + offset, truth, atol=2 * noise)
    assert 0.5 * noise < placed.median < 2.5 * noise
    assert placed.largest < 5 * noise
    residual = np.linalg.norm(placed.residuals[min(wrong)])
    assert residual == pytest.approx(wrong_by, abs=6 * noise)


def test_long_tails_are_no_wrong_fixes() -> None:
    """GPS errs by Student's t: its tails count little, but what no error explains is left out."""
    rng = np.random.default_rng(3)
    truth = flight(160)
    points, fixes = survey(truth)
    off = 1.5 * rng.normal(0, 1, (160, 3)) / np.sqrt(rng.chisquare(4, (160, 1)) / 4)
    off[7] = [60, -40, 10]
    for name, error in zip(sorted(fixes), off, strict=True):
        fixes[name] = moved_fix(fixes[name], error)
    lengths = np.linalg.norm(np.delete(off, 7, axis=0), axis=1)
    assert lengths.max() > 3 * np.sqrt(3) * np.median(lengths) / 1.54  # beyond a normal's three
    _, placed = locate(points, fixes, "GPS")
    assert placed.wrong == ("007.jpg",)
    assert placed.largest == pytest.approx(lengths.max(), abs=1)
    assert abs(placed.scale * SCALE - 1) < 0.003


def test_told_accuracies_weight_the_fit() -> None:
    """Ten fixes to 2 cm decide, whatever 60 to 3 m say, those that tell nothing among them."""
    rng = np.random.default_rng(1)
    truth = flight(70)
    points, fixes = survey(truth)
    plain = dict(fixes)
    for k, name in enumerate(sorted(fixes)):
        accuracy = 0.02 if k % 7 == 0 else 3.0
        fix = moved_fix(fixes[name], rng.normal(0, accuracy, 3))
        plain[name] = fix
        told = accuracy if k % 7 == 0 or k % 2 else None
        fixes[name] = Fix(fix.latitude, fix.longitude, fix.altitude, told)

    def error(given: dict[str, Fix]) -> float:
        found, placed = locate(points, given, "GPS")
        assert placed.used
        assert placed.wrong == ()
        offset = to_local([Fix(*placed.origin)], ORIGIN)
        back = np.array([found * points[name] for name in sorted(points)]) + offset
        return float(np.abs(back - truth).max())

    assert error(fixes) < 0.08
    assert error(plain) > 0.3


@pytest.mark.parametrize(
    ("enu", "noise", "why"),
    [
        (flight(4), 0.1, "there are 4 positions .* 5 are needed"),
        (np.outer(np.arange(20.0), [10, 3, 0]), 1.0, "they lie on a line"),
        (np.outer(np.arange(20.0), [10, 3, 0]) + flight(20) * 0.01, 1.0, "do not determine"),
        (flight(20) * 0.01, 3.0, "do not determine the frame|agree with the model"),
        (flight(20) * 0, 0.0, "the 20 positions of what .* are in 1 place only, and 5 are needed"),
        (flight(20), 90.0, "agree with the model|do not determine"),
    ],
)
def test_positions_that_give_no_frame(enu: np.ndarray, noise: float, why: str) -> None:
    import re

    rng = np.random.default_rng(0)
    points, fixes = survey(enu)
    fixes = {name: moved_fix(fix, rng.normal(0, noise, 3)) for name, fix in fixes.items()}
    found, placed = locate(points, fixes, "GPS")
    assert not placed.used
    assert re.search(why, placed.why)
    np.testing.assert_array_equal(found.matrix(), pycolmap.Sim3d().matrix())
    assert placed.origin is None


def test_positions_without_heights_count_as_level() -> None:
    level = flight() * [1, 1, 0]
    points, fixes = survey(level)
    fixes = {name: Fix(fix.latitude, fix.longitude) for name, fix in fixes.items()}
    found, placed = locate(points, fixes, "GPS")
    assert placed.used
    assert not placed.heights
    assert placed.wrong == ()
    back = np.array([found * points[name] for name in sorted(points)])
    assert np.abs(back[:, 2]).max() < 0.05
    np.testing.assert_allclose(back - back.mean(0), level - level.mean(0), atol=0.05)


def test_cameras_on_a_slope_whose_heights_are_not_told() -> None:
    """They are laid level, so neither direction nor scale is certain, and no altitude is known."""
    truth = flight() * [1, 1, 0]
    truth[:, 2] = np.tan(np.radians(20)) * truth[:, 1]
    points, fixes = survey(truth)
    fixes = {name: Fix(fix.latitude, fix.longitude) for name, fix in fixes.items()}
    _, placed = locate(points, fixes, "GPS")
    assert placed.used
    assert placed.tilt_uncertainty is None
    assert placed.scale_uncertainty is None
    assert {residual[2] for residual in placed.residuals.values()} == {0}
    assert placed.largest == pytest.approx(
        max(np.hypot(east, north) for east, north, _ in placed.residuals.values()), abs=1e-3
    )
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", width=9, height=9, params=[9, 4, 4])
    )
    image = pycolmap.Image(name="000.jpg", image_id=1, camera_id=1)
    model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    (feature,) = camera_features(model, placed)
    assert len(feature["geometry"]["coordinates"]) == 2


def test_photos_that_share_a_position_count_as_one() -> None:
    """As the views of panoramas do: copies make no frame where there was none, nor a surer one."""
    rng = np.random.default_rng(2)
    truth = flight(12)
    points, fixes = survey(truth)
    fixes = {name: moved_fix(fix, rng.normal(0, 1.5, 3)) for name, fix in fixes.items()}
    views = {f"yaw_{yaw}/{name}": name for name in points for yaw in range(6)}
    # the views' centres are where the panorama's is, in the mean
    spread = rng.normal(0, 0.01 * SCALE, (12, 6, 3))
    spread -= spread.mean(axis=1, keepdims=True)
    centres = {
        view: points[name] + shift
        for (view, name), shift in zip(views.items(), spread.reshape(-1, 3), strict=True)
    }
    alone, placed = locate(points, fixes, "GPS")
    found, copied = locate(centres, {view: fixes[name] for view, name in views.items()}, "GPS")
    assert placed.used
    np.testing.assert_allclose(found.matrix(), alone.matrix(), atol=1e-6)
    assert copied.positions == 72
    assert copied.residuals.keys() == views.keys()
    for view, name in views.items():
        np.testing.assert_allclose(copied.residuals[view], placed.residuals[name], atol=0.1)
    assert copied.scale_uncertainty == pytest.approx(placed.scale_uncertainty)
    assert copied.tilt_uncertainty == pytest.approx(placed.tilt_uncertainty)
    few = {view: fixes[name] for view, name in views.items() if name < "004.jpg"}
    _, refused = locate(centres, few, "GPS")
    assert refused.why == (
        "the 24 positions of what is in the model are in 4 places only, and 5 are needed"
    )


def test_a_receiver_that_stood_still_is_one_wrong_position() -> None:
    """Most photos have its last position, whatever their number."""
    truth = flight(60)
    points, fixes = survey(truth)
    stale = sorted(fixes)[20:]
    fixes |= dict.fromkeys(stale, fixes[stale[0]])
    _, placed = locate(points, fixes, "GPS")
    assert placed.used
    assert set(placed.wrong) == set(stale)
    assert abs(placed.scale * SCALE - 1) < 1e-4


@pytest.mark.parametrize("tails", [False, True])
def test_uncertainties_are_those_of_the_frames(tails: bool) -> None:
    """Over many flights the errors of scale and vertical are as large as they are said to be."""
    rng = np.random.default_rng(0)
    errors, told = [], []
    for _ in range(60):
        truth = rng.uniform([-100, -100, -5], [100, 100, 5], (12, 3))
        off = rng.normal(0, 1, (12, 3))
        if tails:
            off /= np.sqrt(rng.chisquare(4, (12, 1)) / 4)
        found, weights = fit_similarity(truth, truth + off, np.ones(12))
        vertical = np.degrees(np.arccos(found.rotation.matrix()[2, 2]))
        errors.append([found.scale - 1, vertical])
        told.append(uncertainty_of(moved(found, truth), weights, fitted=True))
    ratios = np.sqrt(np.mean(np.square(errors), axis=0) / np.mean(np.square(told), axis=0))
    assert (ratios > 0.8).all()
    assert (ratios < 1.3).all(), ratios


def test_a_frame_that_is_held_is_measured_only() -> None:
    truth = flight()
    _, fixes = survey(truth)
    points = {
        name: xyz + np.array([0.3, 0, 0]) for name, xyz in zip(sorted(fixes), truth, strict=True)
    }
    found, placed = locate(points, fixes, "GPS", held=ORIGIN)
    np.testing.assert_array_equal(found.matrix(), pycolmap.Sim3d().matrix())
    assert placed.origin == ORIGIN
    np.testing.assert_allclose(list(placed.residuals.values()), [[0.3, 0, 0]] * 40, atol=1e-4)


def test_control_points_and_the_map() -> None:
    """Marks in three photos give the points; a camera that looks north has the heading 0.

    The list has the file names alone, and one of the photos is in a folder.
    """
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(
            camera_id=1, model="SIMPLE_RADIAL", width=640, height=480, params=[500, 320, 240, 0.05]
        )
    )
    truth = {"p1": [0, 20, 1], "p2": [4, 22, -1], "p3": [-4, 19, 2.0], "p4": [3, 25, 3.0]}
    marks = []
    for i, centre in enumerate(([-3.0, 0, 0], [0, 1.0, 1.0], [4.0, 0, 2.0])):
        pose = _upright(np.array(centre), np.array([0, 21, 0.5]))
        name = "folder/2.jpg" if i == 2 else f"{i}.jpg"
        image = pycolmap.Image(name=name, image_id=i + 1, camera_id=1)
        model.add_image_with_trivial_frame(image, pose)
        for point, xyz in truth.items():
            if (i, point) == (0, "p4"):
                continue
            pixel = model.cameras[1].img_from_cam(pose * np.array(xyz, float))
            marks.append(Mark(point, f"{i}.jpg", tuple(pixel)))
    marks.append(Mark("p5", "0.jpg", (10, 10)))
    marks.append(Mark("p1", "not there.jpg", (10, 10)))
    gcp = Path("gcp_list.txt")
    with pytest.raises(EdmHlocError, match=r"in none of the 3 photos .* it names else.jpg"):
        control_points_in(model, [Mark("p1", "else.jpg", (1, 1))], gcp)
    with pytest.raises(EdmHlocError, match=r"pixel \(699.5, 1\) of p1 is outside of 1.jpg"):
        control_points_in(model, [Mark("p1", "1.jpg", (700, 1.5))], gcp)
    found, failed = control_points_in(model, marks, gcp)
    assert failed == ["p5"]
    for point, xyz in truth.items():
        np.testing.assert_allclose(found[point], xyz, atol=1e-6)
    places = to_earth(np.array(list(truth.values())), ORIGIN).tolist()
    fixes = {point: Fix(*place) for point, place in zip(truth, places, strict=True)}
    local, placed = locate(found, fixes, "control points", 3)
    assert placed.used
    assert placed.largest < 1e-3
    model.transform(local)
    centres = camera_centres(model)
    offset = to_local([Fix(*placed.origin)], ORIGIN)[0]
    np.testing.assert_allclose(centres["1.jpg"] + offset, [0, 1, 1], atol=1e-3)
    features = camera_features(model, placed)
    by_name = {f["properties"]["name"]: f for f in features}
    heading = by_name["1.jpg"]["properties"]["heading"]
    assert min(heading, 360 - heading) < 0.1
    longitude, latitude, altitude = by_name["1.jpg"]["geometry"]["coordinates"]
    expected = to_earth(np.array([[0, 1.0, 1.0]]), ORIGIN)[0]
    np.testing.assert_allclose([latitude, longitude, altitude], expected, atol=2e-3)


def _upright(centre: np.ndarray, target: np.ndarray) -> pycolmap.Rigid3d:
    """A camera in a frame whose z points up."""
    z = (target - centre) / np.linalg.norm(target - centre)
    x = np.cross(z, [0, 0, 1.0])
    x /= np.linalg.norm(x)
    R = np.stack([x, np.cross(z, x), z])
    return pycolmap.Rigid3d(pycolmap.Rotation3d(R), -R @ centre)


def test_the_record_of_a_run_tells_which_of_its_models_are_on_earth(tmp_path: Path) -> None:
    record = {"used": True, "parts": {"2": {"used": False}, "3": {"used": True}}}
    assert not is_on_earth(tmp_path / "model")
    (tmp_path / "model").mkdir()
    (tmp_path / "georeference.json").write_text(json.dumps(record))
    told = {part: is_on_earth(tmp_path / "model_parts" / part) for part in "234"}
    assert is_on_earth(tmp_path / "model")
    assert told == {"2": False, "3": True, "4": False}
    (tmp_path / "georeference.json").write_text("no JSON")
    assert not is_on_earth(tmp_path / "model")


def test_a_model_in_the_frame_of_another_is_where_that_is(tmp_path: Path) -> None:
    placed = Georeference(
        True, source="their GPS", origin=(47.0, 8.0, 0.0), heights=False, residuals={"a": [1, 2, 0]}
    )
    write_placed(replace(placed, parts={"2": placed}), {"": EMPTY, "2": EMPTY}, tmp_path)
    given, other = tmp_path / "model", tmp_path / "other" / "refined"
    given.mkdir()
    other.parent.mkdir()
    for source in (given, tmp_path / "model_parts" / "2", given):
        keep_place(other, source)
        assert place_of(other) == replace(placed, residuals={})
        assert json.loads((tmp_path / "other/refined_georeference.json").read_text())["used"]
    keep_place(tmp_path / "beside", given)  # of which the record of the run tells already
    assert [path.name for path in tmp_path.glob("*_georeference.json")] == []
    keep_place(other, tmp_path / "other" / "nowhere")
    assert not is_on_earth(other)
    assert not list((tmp_path / "other").iterdir())


def test_an_origin_without_heights_has_no_altitude(tmp_path: Path) -> None:
    placed = Georeference(True, origin=(47.0, 8.0, 0.0), heights=False)
    write_placed(replace(placed, parts={"2": placed}), {"": EMPTY, "2": EMPTY}, tmp_path)
    record = json.loads((tmp_path / "georeference.json").read_text())
    assert record["origin"] == record["parts"]["2"]["origin"] == [47.0, 8.0, None]
    record.pop("frame")
    assert Georeference.of(record).origin == Georeference.of(record).parts["2"].origin
    assert place_of(tmp_path / "model") == placed
    write_placed(Georeference(True, origin=(47.0, 8.0, 400.5)), {"": EMPTY}, tmp_path)
    record = json.loads((tmp_path / "georeference.json").read_text())
    assert record["origin"] == [47.0, 8.0, 400.5]


def test_a_map_of_other_positions_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / CAMERAS).write_text("of an earlier run")
    write_placed(Georeference(False, "there are 0 positions"), {}, tmp_path)
    assert not (tmp_path / CAMERAS).exists()
