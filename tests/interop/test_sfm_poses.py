"""Poses of Bundler, Meshroom, OpenSfM and LLFF: points land where the files' formulas put them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.interop.poses.bundler import read_bundler
from edm_hloc.interop.poses.files import format_of, read_given_poses, read_poses_alone
from edm_hloc.interop.poses.given import PhotosAtHand

NAMES = ["left/a.jpg", "left/b.jpg", "right/c.jpg", "right/d.jpg"]
SIZE = 120, 80
Project = Callable[[np.ndarray], np.ndarray]  # (N, 3) in the file's camera to (N, 2) pixels


@pytest.fixture
def photos(tmp_path: Path) -> PhotosAtHand:
    return make_photos(tmp_path / "photos")


def make_photos(folder: Path, size: tuple[int, int] = SIZE) -> PhotosAtHand:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / name)
    return PhotosAtHand(folder, NAMES)


def poses() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """R and t of the world in a camera that looks along z with y down, by the photo's name."""
    rng = np.random.default_rng(3)
    return {
        name: (Rotation.random(random_state=rng).as_matrix(), rng.normal(size=3)) for name in NAMES
    }


def points() -> np.ndarray:
    """(N, 3) points in front of a camera that looks along z with y down."""
    x, y = np.meshgrid(np.linspace(-0.6, 0.6, 5), np.linspace(-0.4, 0.4, 5))
    return np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3) * 3


def check(
    path: Path, photos: PhotosAtHand, project: Project, model: str | None = None
) -> pycolmap.Camera:
    """Points of the world are where `project` has them, in each photo; gives the only camera."""
    given = read_given_poses(path, photos)
    images = posed_images(given.model)
    assert list(images) == NAMES
    for name, (R, t) in poses().items():
        world = (points() - t) @ R
        found = images[name].cam_from_world() * world
        np.testing.assert_allclose(found, points(), atol=1e-8)
        camera = given.model.cameras[images[name].camera_id]
        expected = project(points())
        assert np.ptp(expected, axis=0).min() > 20  # px: the photo is filled
        np.testing.assert_allclose(camera.img_from_cam(found), expected, atol=1e-6)
    (camera,) = given.model.cameras.values()
    if model is not None:
        assert camera.model_name == model
    return camera


def refused(path: Path, photos: PhotosAtHand, message: str) -> None:
    with pytest.raises(EdmHlocError, match=message) as error:
        read_given_poses(path, photos)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------- Bundler

FLIP = np.diag([1.0, -1.0, -1.0])  # to a camera that looks along −z with y up


def bundler(folder: Path, names: list[str] | None = None, unregistered: int = 0) -> Path:
    """`bundle.out` with further cameras of focal length 0 in front, and list.txt beside it."""
    lines = ["# Bundle file v0.3", f"{len(NAMES) + unregistered} 1"]
    lines += ["0 0 0", "0 0 0", "0 0 0", "0 0 0", "0 0 0"] * unregistered
    for R, t in poses().values():
        lines.append("100 0.1 -0.05")
        lines += [" ".join(f"{x:.12e}" for x in row) for row in [*(FLIP @ R), FLIP @ t]]
    lines += ["1 2 3", "255 0 0", "2 0 17 -3.5 4 1 18 3.5 4"]
    folder.mkdir(exist_ok=True)
    (folder / "bundle.out").write_text("\n".join(lines) + "\n")
    if names is not None:
        (folder / "list.txt").write_text("\n".join(names) + "\n")
    return folder / "bundle.out"


def bundler_pixels(X: np.ndarray) -> np.ndarray:
    """As Bundler's manual has it, then from the middle of the photo with y up to its corner."""
    X = X @ FLIP
    p = -X[:, :2] / X[:, 2:]
    r2 = (p**2).sum(axis=1, keepdims=True)
    q = 100 * (1 + 0.1 * r2 - 0.05 * r2**2) * p
    return np.column_stack([60 + q[:, 0], 40 - q[:, 1]])


@pytest.mark.parametrize("more", ["", " 0 1234.5", " 1234.5"])
def test_bundler(more: str, photos: PhotosAtHand, tmp_path: Path) -> None:
    check(bundler(tmp_path, [name + more for name in NAMES]), photos, bundler_pixels, "RADIAL")


def test_cameras_without_a_focal_length_are_not_registered(
    photos: PhotosAtHand, tmp_path: Path
) -> None:
    path = bundler(tmp_path, ["0.jpg", "1.jpg", *NAMES], unregistered=2)
    check(path, photos, bundler_pixels)
    assert read_given_poses(path, photos, listed=NAMES[:3]).unposed == ()
    lines = path.read_text().replace("100 0.1 -0.05", "0 0 0")
    path.write_text(lines)
    refused(path, photos, "none of its 6 cameras has a focal length")


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("scene.bundle.out", "scene.list.txt"),  # COLMAP
        ("bundle.rd.out", "list.rd.txt"),
        ("bundle_r000.out", "list_r000.txt"),
        ("gt_bundle.out", "list.txt"),  # 1DSfM
        ("bundler.out", "bundler_list.txt"),
        ("cameras.out", "cameras.out.list.txt"),
        ("cameras.out", "cameras-list.txt"),
        ("cameras.out", "ordered_filenames.txt"),
    ],
)
def test_the_list_of_photos_is_found_beside_the_file(
    out: str, names: str, photos: PhotosAtHand, tmp_path: Path
) -> None:
    path = bundler(tmp_path / "b").rename(tmp_path / "b" / out)
    # lists of others lie there too: as many lines of something else, and fewer names
    for other, text in (("notes.txt", "1\n2\n3\n4\n"), ("some.txt", "\n".join(NAMES[1:]))):
        (path.parent / other).write_text(text)
    poses_of = "".join(f"{name} 1 0 0 0 0 0 0\n" for name in sorted(NAMES, reverse=True))
    (path.parent / "poses.txt").write_text(poses_of)
    images = "".join(f"1 1 0 0 0 0 0 0 1 photos/{name}\n" for name in sorted(NAMES, reverse=True))
    (path.parent / "images.txt").write_text(images)
    (path.parent / names).write_text("\n".join(["4", *NAMES]) + "\n")
    check(path, photos, bundler_pixels)


def test_the_list_that_belongs_to_a_file_counts_before_others(
    photos: PhotosAtHand, tmp_path: Path
) -> None:
    path = bundler(tmp_path / "b", NAMES)
    (path.parent / "backwards.txt").write_text("\n".join(NAMES[::-1]))
    check(path, photos, bundler_pixels)
    (path.parent / "list.txt").rename(path.parent / "forwards.txt")
    refused(path, photos, "backwards.txt and forwards.txt beside it name 4 photos each, in another")


def test_names_in_a_list_may_hold_spaces(tmp_path: Path) -> None:
    names = ["1 (1).jpg", "my photo 2", "photo 3 4"]
    path = bundler(tmp_path, ["1 (1).jpg 0 100", "my photo 2", "photo 3 4", "elsewhere.jpg"])
    for name in names:
        Image.new("RGB", SIZE).save(tmp_path / name, "JPEG")
    given = read_bundler(path, PhotosAtHand(tmp_path, names))
    assert [pose.name for pose in given] == names


def test_without_a_list_the_photos_are_taken_in_their_only_order(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = bundler(tmp_path / "b")
    check(path, photos, bundler_pixels)
    assert "no list of its photos beside it: its 4 cameras are taken for the 4 photos" in (
        caplog.text
    )
    fewer = PhotosAtHand(photos.root, NAMES[:3])
    refused(path, fewer, "4 cameras without names, .* has 3 photos: put it there as list.txt")
    # frame_10 comes after frame_9 for people and before it for most programs
    ambiguous = PhotosAtHand(photos.root, ["1.jpg", "2.jpg", "9.jpg", "10.jpg"])
    refused(path, ambiguous, "several orders of their names are possible")
    (path.parent / "list.txt").write_text("\n".join(NAMES[:3]))
    refused(path, photos, "4 cameras, but list.txt beside it names 3 photos: it is another's")


def test_wrong_files_of_bundler(photos: PhotosAtHand, tmp_path: Path) -> None:
    path = bundler(tmp_path / "b", NAMES)
    text = path.read_text()
    for wrong, message in (
        ("", "its first line is '', not '# Bundle file v0.3'"),
        (text.replace("v0.3", "v0.7"), "of version 0.7 of Bundler's format"),
        (text.replace("4 1\n", "4\n", 1), "line 2: expected the numbers of cameras and of points"),
        (text.replace("4 1\n", "-4 1\n", 1), "line 2: expected the numbers of cameras"),
        (text.replace("100 0.1", "long 0.1", 1), "line 3: expected numbers of a camera; found"),
        (text[:900], r"cut off: it ends in camera [123] of the 4"),
        (
            text.replace("100 0.1", "nan 0.1", 1),
            r"camera 0 \(left/a.jpg\): it holds a number that is not",
        ),
        (text.replace("100 0.1", "100 inf", 1), "holds a number that is not finite"),
        (text.replace("100 0.1", "-100 0.1", 1), "its focal length is -100; it must be positive"),
        (text.replace("\n", "\n2 2 2\n", 3).replace("2 2 2\n", "", 2), "no rotation and place"),
    ):
        path.write_text(wrong)
        refused(path, photos, message)
    path.write_bytes(b"\xff\xfe\xfd" * 9)
    refused(path, photos, "it is no text")


# ------------------------------------------------------------------------------------- Meshroom


def meshroom(
    folder: Path, version: str, intrinsics: Mapping[str, Any], size: tuple[int, int] = SIZE
) -> Path:
    """`cameras.sfm` with all numbers as text, and a view without a pose."""
    views = [
        {"viewId": str(i), "poseId": str(7 + i), "intrinsicId": "5", "path": f"C:/photos/{name}"}
        for i, name in enumerate([*NAMES, "left/none.jpg"])
    ]
    posed = [
        {"poseId": str(7 + i), "pose": {"transform": transform(R, t), "locked": "0"}}
        for i, (R, t) in enumerate(poses().values())
    ]
    own = {"intrinsicId": "5", "width": str(size[0]), "height": str(size[1]), **intrinsics}
    record = {"version": version.split("."), "views": views, "intrinsics": [own], "poses": posed}
    path = folder / "cameras.sfm"
    path.write_text(json.dumps(record))
    return path


def transform(R: np.ndarray, t: np.ndarray) -> dict[str, list[str]]:
    """A pose's rotation column by column, and the camera's centre."""
    return {
        "rotation": [repr(float(x)) for x in R.ravel(order="F")],
        "center": [repr(float(x)) for x in -R.T @ t],
    }


def distorted(kind: str, k: list[float]) -> Callable[[np.ndarray], np.ndarray]:
    """AliceVision's formulas for (N, 2) normalized coordinates."""

    def distort(p: np.ndarray) -> np.ndarray:
        x, y = p.T
        r2 = x**2 + y**2
        r = np.sqrt(np.maximum(r2, 1e-30))
        if kind == "radialk1":
            return p * (1 + k[0] * r2)[:, None]
        if kind == "radialk3":
            return p * (1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3)[:, None]
        if kind == "brown":
            radial = 1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3
            dx = k[4] * (r2 + 2 * x**2) + 2 * k[3] * x * y
            dy = k[3] * (r2 + 2 * y**2) + 2 * k[4] * x * y
            return np.column_stack([x * radial + dx, y * radial + dy])
        if kind == "fisheye":
            a = np.arctan(r)
            bent = a * (1 + k[0] * a**2 + k[1] * a**4 + k[2] * a**6 + k[3] * a**8)
            return p * (bent / r)[:, None]
        if kind == "fisheye1":
            return p * (np.arctan(2 * r * np.tan(k[0] / 2)) / k[0] / r)[:, None]
        return p

    return distort


def pinhole(
    fx: float, fy: float, cx: float, cy: float, distort: Callable[[np.ndarray], np.ndarray]
) -> Project:
    return lambda X: distort(X[:, :2] / X[:, 2:]) * [fx, fy] + [cx, cy]


LENSES = [
    ("none", "pinhole", [], "PINHOLE"),
    ("radialk1", "radial1", [0.1], "OPENCV"),
    ("radialk3", "radial3", [0.1, -0.05, 0.02], "FULL_OPENCV"),
    ("radialk3", "radial3", [0.1, -0.05, 0.0], "OPENCV"),
    ("radialk3", "radial3", [0.0, 0.0, 0.0], "PINHOLE"),
    ("brown", "brown", [0.1, -0.05, 0.02, 0.01, -0.02], "FULL_OPENCV"),
    ("brown", "brown", [0.1, -0.05, 0.0, 0.01, -0.02], "OPENCV"),
    ("fisheye", "fisheye4", [0.1, -0.05, 0.02, 0.01], "OPENCV_FISHEYE"),
    ("fisheye1", "fisheye1", [0.8], "FOV"),
]


@pytest.mark.parametrize(("kind", "old", "k", "model"), LENSES)
def test_every_distortion_of_meshroom(
    kind: str, old: str, k: list[float], model: str, photos: PhotosAtHand, tmp_path: Path
) -> None:
    own = {
        **{"sensorWidth": "36", "focalLength": "30", "pixelRatio": "1.1"},
        **{"principalPoint": ["1.5", "-2.5"], "distortionParams": list(map(str, k)) or ""},
    }
    project = pinhole(100, 110, 61.5, 37.5, distorted(kind, k))
    check(meshroom(tmp_path, "1.2.7", own | {"type": old}), photos, project, model)
    named = {"type": "pinhole", "distortionType": kind, "undistortionType": "none"}
    check(meshroom(tmp_path, "1.2.8", own | named), photos, project, model)


@pytest.mark.parametrize(
    ("version", "own", "lens"),
    [
        ("1.1.0", {"pxFocalLength": "100", "principalPoint": ["61", "38"]}, (100, 100, 61, 38)),
        (
            "1.2.0",
            {"pxFocalLength": ["99", "97"], "principalPoint": ["61", "38"]},
            (99, 97, 61, 38),
        ),
        ("1.2.1", {"pxFocalLength": ["99", "97"]}, (99, 97, 62, 37)),
        ("1.2.2", {"focalLength": "30", "pixelRatio": "0.8"}, (100, 125, 62, 37)),
        ("1.2.4", {"focalLength": 30, "pixelRatio": 0.8}, (100, 125, 62, 37)),
        ("1.2.5", {"focalLength": "30", "pixelRatio": "0.8"}, (100, 80, 62, 37)),
        ("1.2.10", {"focalLength": "30", "pixelRatio": "0.8"}, (100, 80, 62, 37)),
        ("1.2.11", {"focalLength": "30", "pixelRatio": "0.8"}, (125, 100, 62, 37)),
        ("1.2.11", {"focalLength": "30"}, (100, 100, 62, 37)),
    ],
)
def test_focal_lengths_and_principal_points_of_each_version(
    version: str, own: dict[str, Any], lens: tuple[float, ...], photos: PhotosAtHand, tmp_path: Path
) -> None:
    own = {"principalPoint": ["2", "-3"], "sensorWidth": "36", "type": "pinhole", **own}
    project = pinhole(*lens, distort=distorted("none", []))
    camera = check(meshroom(tmp_path, version, own), photos, project, "PINHOLE")
    assert camera.params.tolist() == pytest.approx(lens)


@pytest.mark.parametrize(("version", "focal"), [("1.2.10", 80), ("1.2.11", 120)])
def test_the_sensor_of_a_portrait_photo(version: str, focal: float, tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", (80, 120))
    own = {"type": "pinhole", "focalLength": "36", "principalPoint": ["0", "0"]}
    path = meshroom(tmp_path, version, own, (80, 120))
    project = pinhole(focal, focal, 40, 60, distorted("none", []))
    check(path, photos, project)


def test_meshrooms_file_under_another_name(photos: PhotosAtHand, tmp_path: Path) -> None:
    own = {"type": "pinhole", "focalLength": "30", "principalPoint": ["0", "0"]}
    path = meshroom(tmp_path, "1.2.7", own).rename(tmp_path / "sfm.json")
    assert format_of(path)[0].name == "Meshroom's cameras.sfm"
    check(path, photos, pinhole(100, 100, 60, 40, distorted("none", [])))


@pytest.mark.parametrize("said", [True, False])
def test_rigs_of_meshroom(said: bool, photos: PhotosAtHand, tmp_path: Path) -> None:
    """Views of a rig have the rig's pose and their place in it; older files do not say so."""
    own = {"type": "pinhole", "focalLength": "30", "principalPoint": ["0", "0"]}
    path = meshroom(tmp_path, "1.2.7", own)
    record = json.loads(path.read_text())
    (R0, t0), (R1, t1), (R2, t2), _ = poses().values()
    place = R1 @ R0.T, t1 - R1 @ R0.T @ t0  # of the second camera in the first
    uninitialized = {"status": "uninitialized", "pose": transform(R2, t2)}
    places = [{"status": "constant", "pose": transform(np.eye(3), np.zeros(3))}]
    places += [{"status": "estimated", "pose": transform(*place)}, uninitialized]
    record["rigs"] = [{"rigId": "3", "subPoses": places}]
    for index, view in enumerate(record["views"][:2]):
        view |= {"rigId": "3", "subPoseId": str(index), "poseId": "7"}
        if said:
            view["isPoseIndependant"] = "false"
    path.write_text(json.dumps(record))
    check(path, photos, pinhole(100, 100, 60, 40, distorted("none", [])))
    record["views"][1]["subPoseId"] = "2"
    path.write_text(json.dumps(record))
    assert read_given_poses(path, photos).unposed == (NAMES[1],)
    record["views"][1]["subPoseId"] = "3"
    path.write_text(json.dumps(record))
    refused(path, photos, "left/b.jpg: its rig 3 has no camera 3")


@pytest.mark.parametrize(
    ("version", "own", "kind"),
    [
        ("1.2.7", {"type": "3deanamorphic4"}, "3deanamorphic4"),
        ("1.2.7", {"type": "equidistant_r3"}, "equidistant_r3"),
        ("1.2.8", {"type": "equidistant", "distortionType": "radialk3pt"}, "equidistant"),
        (
            "1.2.8",
            {"type": "pinhole", "distortionType": "none", "undistortionType": "3declassicld"},
            "3declassicld",
        ),
        ("1.2.8", {"type": "pinhole", "distortionType": "wavy"}, "wavy"),
    ],
)
def test_lenses_of_meshroom_that_colmap_has_not(
    version: str,
    own: dict[str, Any],
    kind: str,
    photos: PhotosAtHand,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lens = {"focalLength": "30", "principalPoint": ["0", "0"]}
    path = meshroom(tmp_path, version, lens | own)
    refused(path, photos, f"no model for cameras of the kind {kind}, which took 4 .* undistort")
    record = json.loads(path.read_text())
    plain = {"type": "pinhole", "distortionType": "none", "intrinsicId": "6"}
    record["intrinsics"].append({**record["intrinsics"][0], **plain, "undistortionType": "none"})
    for view in record["views"][1:]:
        view["intrinsicId"] = "6"
    path.write_text(json.dumps(record))
    assert read_given_poses(path, photos).unposed == (NAMES[0],)
    assert caplog.text.count(f"of the kind {kind}, which took 1 of the photos. They are left") == 1


def test_wrong_files_of_meshroom(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"type": "radial1", "focalLength": "30", "principalPoint": ["0", "0"]}
    path = meshroom(tmp_path, "1.2.7", own | {"distortionParams": ["0.1"]})
    text = path.read_text()

    def changed(part: str, **values: object) -> str:
        record = json.loads(text)
        target = record if part == "" else record[part][0]
        target |= values
        return json.dumps(record)

    no_pose = {"rotation": ["1"] * 9, "center": ["0"] * 3}
    scaled = {"rotation": ["2", 0, 0, 0, "2", 0, 0, 0, "2"], "center": ["0"] * 3}
    for wrong, message in (
        (text[: len(text) // 2], "is not JSON"),
        ("[1, 2]", "must hold an object"),
        (changed("", version=None), "version is missing; it must be 3 numbers"),
        (changed("", poses=""), "has no poses: take the cameras.sfm of Meshroom's node Structure"),
        (changed("", views=[]), "has no views"),
        (changed("", views=[1]), "views is no list of objects"),
        (changed("views", path=None), "the view 0 has no path"),
        (changed("poses", pose=None), "pose 7: there is no transform"),
        (changed("poses", pose={"transform": {}}), "pose 7: rotation is missing"),
        (changed("poses", pose={"transform": no_pose}), "pose 7: the pose is no rotation"),
        (changed("poses", pose={"transform": scaled}), "export it anew without scaling"),
        (changed("intrinsics", focalLength="nan"), "intrinsics 5: focalLength is 'nan'; it must"),
        (changed("intrinsics", focalLength="wide"), "focalLength is 'wide'"),
        (changed("intrinsics", focalLength="-1"), "focalLength is -1; it must be a positive"),
        (changed("intrinsics", focalLength=None), "focalLength is missing"),
        (changed("intrinsics", sensorWidth="0"), "sensorWidth is 0; it must be a positive"),
        (changed("intrinsics", width=True), "width is 'True'"),
        (changed("intrinsics", width="1e30"), "width is .* no photo's size in pixels"),
        (changed("intrinsics", width="0.2"), "width is 0, which is no photo's size in pixels"),
        (changed("intrinsics", focalLength="1e308"), "its values are no possible camera"),
        (changed("intrinsics", principalPoint=["1"]), "principalPoint is .* it must be 2 numbers"),
        (changed("intrinsics", distortionParams=[1, 2]), "distortionParams is .* be a number"),
    ):
        path.write_text(wrong)
        refused(path, photos, message)
    assert "of Meshroom's format" not in caplog.text
    path.write_text(changed("", version=["1", "3", "0"]))
    read_given_poses(path, photos)
    assert "of version 1.3.0 of Meshroom's format, and is read as one of 1.2.11" in caplog.text


# ------------------------------------------------------------------------------------- OpenSfM


def opensfm(folder: Path, own: Mapping[str, Any], names: list[str] = NAMES) -> Path:
    shots = {
        name: {
            "rotation": Rotation.from_matrix(R).as_rotvec().tolist(),
            "translation": t.tolist(),
            "camera": "v2 some camera",
            "gps_position": [1.0, 2.0, 3.0],
        }
        for name, (R, t) in poses().items()
        if name in names
    }
    part = {"cameras": {"v2 some camera": {**own}}, "shots": shots, "points": {}}
    path = folder / "reconstruction.json"
    path.write_text(json.dumps([part]))
    return path


def opensfm_pixels(kind: str, values: Mapping[str, float], size: tuple[int, int]) -> Project:
    """OpenSfM's formulas, then from the middle of the photo to its corner."""

    def v(key: str) -> float:
        return values.get(key, 0.0)

    def project(X: np.ndarray) -> np.ndarray:
        x, y, z = X.T
        if "fisheye" in kind:
            r = np.sqrt(np.maximum(x**2 + y**2, 1e-30))
            x, y = np.arctan2(r, z) / r * np.stack([x, y])
        else:
            x, y = x / z, y / z
        r2 = x**2 + y**2
        radial = 1 + sum(v(f"k{i}") * r2**i for i in range(1, 7))
        dx = 2 * v("p1") * x * y + v("p2") * (r2 + 2 * x**2) + v("s0") * r2 + v("s1") * r2**2
        dy = 2 * v("p2") * x * y + v("p1") * (r2 + 2 * y**2) + v("s2") * r2 + v("s3") * r2**2
        fx, fy = v("focal") or v("focal_x"), v("focal") or v("focal_y")
        uv = np.stack(
            [fx * (x * radial + dx) + v("c_x"), fy * (y * radial + dy) + v("c_y")], axis=1
        )
        return uv * max(size) + np.array(size) / 2

    return project


FOCAL = {"focal": 0.8}
BOTH = {"focal_x": 0.8, "focal_y": 0.9, "c_x": 0.02, "c_y": -0.03}
K = {"k1": 0.1, "k2": -0.05, "k3": 0.02, "k4": 0.01, "k5": -0.01, "k6": 0.02}
P = {"p1": 0.01, "p2": -0.02}
S = {"s0": 0.01, "s1": 0.02, "s2": -0.01, "s3": 0.015}


def some(values: Mapping[str, float], *keys: str) -> dict[str, float]:
    return {key: values[key] for key in keys}


@pytest.mark.parametrize(
    ("kind", "values", "model"),
    [
        ("perspective", FOCAL | some(K, "k1", "k2"), "RADIAL"),
        ("simple_radial", BOTH | some(K, "k1"), "OPENCV"),
        ("radial", BOTH | some(K, "k1", "k2"), "OPENCV"),
        ("brown", BOTH | P | some(K, "k1", "k2", "k3"), "FULL_OPENCV"),
        ("brown", BOTH | P | some(K, "k1", "k2"), "OPENCV"),
        ("fisheye", FOCAL | some(K, "k1", "k2"), "RADIAL_FISHEYE"),
        ("fisheye_opencv", BOTH | some(K, "k1", "k2", "k3", "k4"), "OPENCV_FISHEYE"),
        ("fisheye62", BOTH | some(K, "k1", "k2", "k3", "k4"), "OPENCV_FISHEYE"),
        ("fisheye62", BOTH | some(K, "k1", "k2", "k3", "k4") | P, "THIN_PRISM_FISHEYE"),
        ("fisheye62", BOTH | K, "RAD_TAN_THIN_PRISM_FISHEYE"),
        ("fisheye624", BOTH | some(K, "k1", "k4") | P | some(S, "s0", "s2"), "THIN_PRISM_FISHEYE"),
        ("fisheye624", BOTH | P | S, "RAD_TAN_THIN_PRISM_FISHEYE"),
    ],
)
@pytest.mark.parametrize("size", [SIZE, SIZE[::-1]])
def test_every_projection_of_opensfm(
    kind: str, values: dict[str, float], model: str, size: tuple[int, int], tmp_path: Path
) -> None:
    photos = make_photos(tmp_path / "photos", size)
    own = {"projection_type": kind, "width": size[0], "height": size[1], **values}
    project = opensfm_pixels(kind, values, size)
    check(opensfm(tmp_path, own), photos, project, model)
    for size_unknown in ({"width": 0, "height": 0}, {"width": None, "height": None}):
        check(opensfm(tmp_path, own | size_unknown), photos, project, model)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("spherical", {}),
        ("equirectangular", {}),
        ("dual", FOCAL | {"transition": 0.5}),
        ("fisheye62", BOTH | K | P),
        ("fisheye624", BOTH | some(K, "k1") | S),
    ],
)
def test_projections_of_opensfm_that_colmap_has_not(
    kind: str,
    values: dict[str, float],
    photos: PhotosAtHand,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = opensfm(tmp_path, {"projection_type": kind, "width": 120, "height": 80, **values})
    refused(path, photos, f"no model for cameras of the kind {kind}.*, which took 4 of the photos")
    parts = json.loads(path.read_text())
    parts[0]["cameras"]["plain"] = {"projection_type": "perspective", **FOCAL}
    for name in NAMES[1:]:
        parts[0]["shots"][name]["camera"] = "plain"
    path.write_text(json.dumps(parts))
    assert read_given_poses(path, photos).unposed == (NAMES[0],)
    assert caplog.text.count("which took 1 of the photos. They are left out") == 1


def test_the_largest_reconstruction_is_taken(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = json.loads(opensfm(tmp_path, {"focal": 0.5}, NAMES[:2]).read_text())
    path = opensfm(tmp_path, FOCAL)
    alone = check(path, photos, opensfm_pixels("perspective", FOCAL, SIZE))
    assert "reconstructions" not in caplog.text
    path.write_text(json.dumps([*small, *json.loads(path.read_text()), *small]))
    assert (
        check(path, photos, opensfm_pixels("perspective", FOCAL, SIZE)).params[0]
        == (alone.params[0])
    )
    assert "3 reconstructions, which have no common frame: only the largest is read, with 4 of" in (
        caplog.text
    )


def test_wrong_files_of_opensfm(photos: PhotosAtHand, tmp_path: Path) -> None:
    path = opensfm(tmp_path, FOCAL)
    text = path.read_text()

    def changed(part: str, name: str, **values: object) -> str:
        parts = json.loads(text)
        parts[0][part][name] |= values
        return json.dumps(parts)

    shot = NAMES[0]
    for wrong, message in (
        (text[: len(text) // 2], "is not OpenSfM's reconstruction.json, .*: it is not JSON"),
        ("[1]", "an entry lacks cameras or shots"),
        ('[{"shots": {}}]', "an entry lacks cameras or shots"),
        ("[]", "has a pose for no photo"),
        ('[{"cameras": {}, "shots": {}}]', "has a pose for no photo"),
        ('[{"cameras": {}, "shots": {"a": 1}}]', "the shot a is no object"),
        (changed("shots", shot, rotation=None), "shot left/a.jpg: rotation is missing; it must"),
        (changed("shots", shot, rotation=[1, 2]), "rotation is .* it must be 3 numbers"),
        (changed("shots", shot, translation=[1, 2, float("nan")]), "translation is .*nan"),
        (changed("shots", shot, translation=[1, 2, "far"]), "translation is .*far"),
        (changed("shots", shot, translation=[1, 2, [3]]), "translation is"),
        (changed("shots", shot, camera="other"), "shot left/a.jpg: the file has no camera 'other'"),
        (changed("cameras", "v2 some camera", focal=0), "focal is 0; it must be a positive"),
        (changed("cameras", "v2 some camera", focal=None), "camera v2 some camera: focal is miss"),
        (changed("cameras", "v2 some camera", k1="x"), "k1 is 'x'"),
        (changed("cameras", "v2 some camera", k1=10**400), "k1 is '1000"),
        (changed("cameras", "v2 some camera", width=-3, height=2), "width is -3"),
    ):
        path.write_text(wrong)
        refused(path, photos, message)


# --------------------------------------------------------------------------------------- LLFF


def llff(folder: Path, size: tuple[int, int] = SIZE) -> Path:
    """The file as LLFF writes it: axes down, right, backwards; a row for each photo."""
    rows = []
    for R, t in poses().values():
        right, down, forward = R  # the camera's axes in the world
        matrix = np.column_stack([down, right, -forward, -R.T @ t, [size[1], size[0], size[0]]])
        rows.append([*matrix.ravel(), 1.0, 9.0])
    np.save(folder / "poses_bounds.npy", rows)
    return folder / "poses_bounds.npy"


@pytest.mark.parametrize("enlarged", [1, 4])
def test_llff(enlarged: int, photos: PhotosAtHand, tmp_path: Path) -> None:
    """Its photos may lie reduced beside it, as in images_4."""

    def project(at: np.ndarray) -> np.ndarray:
        return at[:, :2] / at[:, 2:] * SIZE[0] + np.array(SIZE) / 2

    path = llff(tmp_path, (SIZE[0] * enlarged, SIZE[1] * enlarged))
    check(path, photos, project, "SIMPLE_PINHOLE")


def test_llff_has_the_plain_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = ["8.jpg", "9.jpg", "10.jpg", "11.jpg"]
    for name in names:
        Image.new("RGB", SIZE).save(folder / name)
    found = read_poses_alone(llff(tmp_path), PhotosAtHand(folder, names))
    for name, (R, t) in zip(["10.jpg", "11.jpg", "8.jpg", "9.jpg"], poses().values(), strict=True):
        np.testing.assert_allclose(found[name].matrix(), np.column_stack([R, t]), atol=1e-9)


def test_wrong_files_of_llff(photos: PhotosAtHand, tmp_path: Path) -> None:
    path = llff(tmp_path)
    rows = np.load(path)
    for wrong, message in (
        (rows[:3], "poses for 3 photos, and .* has 4"),
        (rows[:, :15], r"an array with 17 numbers .* shape \(4, 15\)"),
        (rows * np.nan, "not finite"),
        (rows.astype(str), "holds no numbers"),
        (rows * np.where(np.arange(17) == 4, 0, 1), "height is 0; it must be a positive"),
        (
            rows * np.where(np.arange(17) == 14, -1, 1),
            "focal length is -120; it must be a positive",
        ),
        (rows * np.where(np.arange(17) == 4, 1e300, 1), "height is 8e.301, which is no photo"),
        (
            rows * np.where(np.arange(17) % 5 == 0, -1, 1),
            "row 0 .left/a.jpg.: the pose is mirrored",
        ),
        (rows * 2, "no rotation and place"),
    ):
        np.save(path, wrong)
        refused(path, photos, message)
    for damaged in (b"", b"\x93NUMPY", llff(tmp_path).read_bytes()[:200], b"1 2 3"):
        path.write_bytes(damaged)
        refused(path, photos, "is not LLFF's poses_bounds.npy")


# ---------------------------------------------------------------------------------------- all


def written(kind: str, folder: Path) -> Path:
    if kind == "Bundler":
        return bundler(folder, [*NAMES[:3], "elsewhere/e.jpg"])
    if kind == "OpenSfM":
        path = opensfm(folder, FOCAL)
    else:
        own = {"type": "pinhole", "focalLength": "30", "principalPoint": ["0", "0"]}
        path = meshroom(folder, "1.2.7", own)
    path.write_text(path.read_text().replace(NAMES[3], "elsewhere/e.jpg"))
    return path


@pytest.mark.parametrize("kind", ["Bundler", "OpenSfM", "Meshroom"])
def test_photos_that_are_missing_or_cannot_be_read_are_left_out(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = make_photos(tmp_path / "photos")
    path = written(kind, tmp_path)
    assert read_given_poses(path, photos).unposed == (NAMES[3],)
    assert "names 1 photos that are not in" in caplog.text
    assert "elsewhere/e.jpg" in caplog.text
    assert "Skipping" not in caplog.text
    (photos.root / NAMES[1]).write_bytes(b"")
    with pytest.raises(EdmHlocError, match="and 3 are needed"):
        read_given_poses(path, photos)
    assert caplog.text.count("Skipping a photo: ") == 1


@pytest.mark.parametrize("kind", ["Bundler", "OpenSfM", "Meshroom"])
def test_compare_reads_them_too(kind: str, photos: PhotosAtHand, tmp_path: Path) -> None:
    found = read_poses_alone(written(kind, tmp_path), photos)
    assert list(found) == NAMES[:3]
    R, t = poses()[NAMES[2]]
    np.testing.assert_allclose(found[NAMES[2]].matrix(), np.column_stack([R, t]), atol=1e-9)


def test_json_is_told_by_its_content(photos: PhotosAtHand, tmp_path: Path) -> None:
    path = opensfm(tmp_path, FOCAL).rename(tmp_path / "transforms.json")
    path.write_text("\ufeff \n" + path.read_text())
    assert format_of(path)[0].name == "OpenSfM's reconstruction.json"
    assert set(posed_images(read_given_poses(path, photos).model)) == set(NAMES)
    for text in ("", "{", '{"w": 3}', '"a"', '{"frames": []}'):
        path.write_text(text)
        assert format_of(path)[0].name == "nerfstudio's transforms.json"


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path) -> None:
    for kind, name in (("OpenSfM", "reconstruction.json"), ("Meshroom", "cameras.sfm")):
        folder = tmp_path / kind
        folder.mkdir()
        path = written(kind, folder)
        if path.name != name:
            path = path.rename(folder / name)
        assert format_of(folder)[1] == path
    llff(tmp_path)
    assert format_of(tmp_path)[0].name == "LLFF's poses_bounds.npy"
