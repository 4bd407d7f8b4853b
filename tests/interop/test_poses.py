"""Poses of other programs: every format gives the true cameras, wrong files one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.intrinsics import load_intrinsics
from edm_hloc.interop.poses.files import GivenPoses, format_of, read_given_poses
from edm_hloc.interop.poses.given import PhotosAtHand
from edm_hloc.interop.poses.realitycapture import read_realitycapture
from edm_hloc.interop.poses.trajectory import read_trajectory
from edm_hloc.localization.poses import write_poses

NAMES = ["left/0000.10.jpg", "left/0000.20.jpg", "right/0000.30.jpg", "right/0000.40.jpg"]
SIZE = 120, 80
OPENGL = np.diag([1.0, -1, -1, 1])


@pytest.fixture
def photos(tmp_path: Path) -> PhotosAtHand:
    for name in NAMES:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(path)
    return PhotosAtHand(tmp_path / "photos", NAMES)


def poses() -> dict[str, np.ndarray]:
    """World from camera, (4, 4), of a camera that looks along z with y down."""
    rng = np.random.default_rng(5)
    found = {}
    for name in NAMES:
        T = np.eye(4)
        T[:3, :3] = Rotation.random(random_state=rng).as_matrix()
        T[:3, 3] = rng.normal(size=3)
        found[name] = T
    return found


def camera(model: str = "OPENCV", size: tuple[int, int] = SIZE) -> pycolmap.Camera:
    params = [100.0, 101, 61, 39, 0.01, -0.02, 0.001, 0.002][: 4 if model == "PINHOLE" else 8]
    made = pycolmap.Camera(model=model, width=SIZE[0], height=SIZE[1], params=params)
    made.rescale(*size)
    return made


def nerfstudio(folder: Path, size: tuple[int, int] = SIZE) -> Path:
    names = ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")
    values = dict(zip(names, map(float, camera(size=size).params), strict=True))
    frames = [
        {"file_path": f"./images/{name}", "transform_matrix": (T @ OPENGL).tolist(), "own": name}
        for name, T in poses().items()
    ]
    record = {"camera_model": "OPENCV", "w": size[0], "h": size[1], **values, "frames": frames}
    path = folder / "transforms.json"
    path.write_text(json.dumps({**record, "ply_file_path": "points.ply"}))
    return path


def metashape(folder: Path) -> Path:
    fx, fy, cx, cy, k1, k2, p1, p2 = camera().params
    numbers = {"f": fy, "b1": fx - fy, "cx": cx - 60, "cy": cy - 40, "k1": k1, "k2": k2}
    numbers |= {"p1": p2, "p2": p1}
    inside = "".join(f"<{key}>{float(value)!r}</{key}>" for key, value in numbers.items())
    cameras = "".join(
        f'<camera id="{i}" sensor_id="0" label="{name.removesuffix(".jpg")}"><transform>'
        f"{' '.join(map(repr, T.ravel().tolist()))}</transform></camera>"
        for i, (name, T) in enumerate(poses().items())
    )
    path = folder / "cameras.xml"
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?><document version="2.0.0"><chunk label="Chunk 1">'
        '<sensors><sensor id="0" label="unknown" type="frame"><resolution width="120" height="80"/>'
        '<calibration type="frame" class="initial"><f>7</f></calibration>'
        '<calibration type="frame" class="adjusted"><resolution width="120" height="80"/>'
        f"{inside}</calibration></sensor></sensors><cameras>{cameras}"
        '<camera id="9" sensor_id="0" label="not_aligned"/></cameras></chunk></document>'
    )
    return path


def realitycapture(folder: Path) -> Path:
    fx, _, cx, cy, k1, k2, p1, p2 = camera().params
    lines = ["#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"]
    for name, T in poses().items():
        z, x, y = Rotation.from_matrix((T @ OPENGL)[:3, :3]).as_euler("ZXY", degrees=True)
        lens = [fx * 36 / 120, (cx - 60) * 36 / 120, (cy - 40) * 36 / 120, k1, k2, 0, 0, p1, p2]
        row = [*T[:3, 3].tolist(), -z, x, y, *lens]
        lines.append(",".join([name.rpartition("/")[2], *map(repr, map(float, row))]))
    path = folder / "cameras.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def trajectory(folder: Path) -> Path:
    lines = ["# timestamp tx ty tz qx qy qz qw"]
    for name, T in poses().items():
        stamp = float(Path(name).stem) + 0.004
        quaternion = Rotation.from_matrix(T[:3, :3]).as_quat()
        lines.append(" ".join(map(repr, [stamp, *T[:3, 3].tolist(), *quaternion.tolist()])))
    path = folder / "trajectory.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def colmap(folder: Path, binary: bool = False) -> Path:
    model = pycolmap.Reconstruction()
    own = camera()
    own.camera_id = 1
    model.add_camera_with_trivial_rig(own)
    for i, (name, T) in enumerate(poses().items(), 1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=i)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.linalg.inv(T)[:3]))
    path = folder / "sparse"
    path.mkdir(parents=True)
    model.write_binary(path) if binary else model.write_text(path)
    for points in path.glob("points3D.*"):
        points.unlink()
    return path


def check(given: GivenPoses, tolerance: float = 1e-9) -> None:
    images = posed_images(given.model)
    assert list(images) == NAMES
    for name, T in poses().items():
        matrix = images[name].cam_from_world().matrix()
        np.testing.assert_allclose(matrix, np.linalg.inv(T)[:3], atol=tolerance)


@pytest.mark.parametrize(
    "write",
    [nerfstudio, metashape, realitycapture, colmap, lambda folder: colmap(folder, binary=True)],
)
def test_every_format_gives_the_true_cameras(write, photos: PhotosAtHand, tmp_path: Path) -> None:
    given = read_given_poses(write(tmp_path), photos)
    check(given)
    assert given.unposed == ()
    (own,) = given.model.cameras.values()
    x = np.array([[0.3, -0.2, 1.0], [-0.5, 0.3, 1.0]])
    expected = camera().img_from_cam(x)
    if write is realitycapture:  # one focal length
        expected = pycolmap.Camera(
            model="OPENCV",
            width=120,
            height=80,
            params=[camera().params[0], *camera().params[[0]], *camera().params[2:]],
        ).img_from_cam(x)
    np.testing.assert_allclose(own.img_from_cam(x), expected, atol=1e-6)


def test_a_realitycapture_camera_looks_where_its_angles_say(
    photos: PhotosAtHand, tmp_path: Path
) -> None:
    rows = ["#name,x,y,alt,heading,pitch,roll,f"]
    numbered = enumerate(zip(NAMES, ANGLES, strict=True))
    rows += [f"{name.rpartition('/')[2]},1,2,{k},{angles},20" for k, (name, angles) in numbered]
    (tmp_path / "c.csv").write_text("\n".join(rows))
    images = posed_images(read_given_poses(tmp_path / "c.csv", photos).model)
    for k, (name, view, up) in enumerate(zip(NAMES, VIEWS, UPS, strict=True)):
        R = images[name].cam_from_world().rotation.matrix()
        np.testing.assert_allclose(R[2], view, atol=1e-12)
        np.testing.assert_allclose(-R[1], up, atol=1e-12)
        np.testing.assert_allclose(images[name].projection_center(), [1, 2, k], atol=1e-12)


ANGLES = ["0,0,0", "0,90,0", "90,90,0", "90,0,0"]  # heading, pitch, roll
VIEWS = [[0, 0, -1], [0, 1, 0], [1, 0, 0], [0, 0, -1]]  # east, north, up
UPS = [[0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]]


def test_trajectories_take_intrinsics_from_elsewhere(photos: PhotosAtHand, tmp_path: Path) -> None:
    path = trajectory(tmp_path)
    with pytest.raises(EdmHlocError, match=r"has no intrinsics, .* give them by --known"):
        read_given_poses(path, photos)
    check(read_given_poses(path, photos, dict.fromkeys(NAMES, camera())))


def test_trajectories_without_times_are_in_the_order_of_the_photos(tmp_path: Path) -> None:
    names = ["frame_10.jpg", "frame_2.jpg", "frame_9.jpg"]
    for name in names:
        Image.new("RGB", SIZE).save(tmp_path / name)
    stamps = ["1403636579.763", "1403636579.813", "1403636579.863"]
    lines = [f"{stamp} {i} 0 0 0 0 0 1" for i, stamp in enumerate(stamps)]
    (tmp_path / "poses.txt").write_text("\n".join(lines))
    given = read_given_poses(
        tmp_path / "poses.txt", PhotosAtHand(tmp_path, names), dict.fromkeys(names, camera())
    )
    places = {n: i.projection_center()[0] for n, i in posed_images(given.model).items()}
    assert places == {"frame_2.jpg": 0, "frame_9.jpg": 1, "frame_10.jpg": 2}


def test_numbers_of_frames_are_no_times(tmp_path: Path) -> None:
    """Some are within 0.02 s of a pose, as frame 1 of the pose after 30 frames of a second."""
    (tmp_path / "poses.txt").write_text(
        "".join(f"{i / 30:.6f} {i} 0 0 0 0 0 1\n" for i in range(120))
    )
    names = [f"frame_{i:05d}.jpg" for i in range(1, 121)]
    given = read_trajectory(tmp_path / "poses.txt", PhotosAtHand(tmp_path, names))
    places = {pose.name: pose.cam_from_world.inverse().translation[0] for pose in given}
    assert places == {name: i for i, name in enumerate(names)}
    with pytest.raises(EdmHlocError, match=r"3 of 119 photos in .* there are 120 poses"):
        read_trajectory(tmp_path / "poses.txt", PhotosAtHand(tmp_path, names[:-1]))
    # but few poses of many photos, or few photos of many poses, are found by their times
    few = PhotosAtHand(tmp_path, ["0.10.jpg", "1.jpg", "2.00.jpg"])
    given = read_trajectory(tmp_path / "poses.txt", few)
    assert {pose.name: pose.cam_from_world.inverse().translation[0] for pose in given} == {
        "0.10.jpg": 3,
        "1.jpg": 30,
        "2.00.jpg": 60,
    }


@pytest.mark.parametrize("unit", [1, 1e9])
def test_timestamps_in_nanoseconds(unit: float, tmp_path: Path) -> None:
    """As ORB-SLAM3 writes them for EuRoC, some after a key frame."""
    stamps = [1403636579763555584 + 50_000_000 * i for i in range(5)]
    (tmp_path / "poses.txt").write_text(
        "".join(f"{stamp:.6f} {i} 0 0 0 0 0 1\n" for i, stamp in enumerate(stamps))
    )
    times = [stamps[3], stamps[1] + 12_000_000, stamps[4] + 30_000_000]
    names = [f"{time}.png" if unit == 1 else f"{time / unit:.6f}.png" for time in times]
    given = read_trajectory(tmp_path / "poses.txt", PhotosAtHand(tmp_path, names))
    places = {pose.name: pose.cam_from_world.inverse().translation[0] for pose in given}
    assert places == {names[0]: 3, names[1]: 1}


def test_matrices_of_kitti_belong_to_photos_by_order_or_number(tmp_path: Path) -> None:
    turn = Rotation.from_euler("y", 30, degrees=True).as_matrix()
    rows = [np.column_stack([turn, [i, 0.5, 0]]).ravel() for i in range(12)]
    path = tmp_path / "07.txt"
    path.write_text("\n".join(" ".join(f"{x:.9e}" for x in row) for row in rows) + "\n")

    def places(names: list[str]) -> dict[str, float]:
        given = read_trajectory(path, PhotosAtHand(tmp_path, names))
        for pose in given:
            assert pose.cam_from_world.rotation.matrix() == pytest.approx(turn.T)
        return {pose.name: float(pose.cam_from_world.inverse().translation[0]) for pose in given}

    ordered = [f"frame_{i}.png" for i in range(100, 112)]
    assert places(ordered) == {name: pytest.approx(i) for i, name in enumerate(ordered)}
    some = ["image_0/000011.png", "image_0/000003.png"]
    assert places(some) == {some[0]: pytest.approx(11), some[1]: pytest.approx(3)}
    for names in (["000003.png", "000012.png"], ["a.png"], ["left/000003.png", "right/000003.png"]):
        with pytest.raises(EdmHlocError, match=r"12 poses for \d photos? .* by their numbers"):
            places(names)
    path.write_text("0 0 0 0 0 0 0 1\n" + " ".join("0" * 12))
    with pytest.raises(EdmHlocError, match="different numbers of columns"):
        places(ordered)
    path.write_text("1 2 3 4 5 6 7 8 9 10\n")
    with pytest.raises(EdmHlocError, match="twelve numbers of a matrix as KITTI"):
        places(ordered)


def test_poses_by_names_that_begin_like_a_comment(tmp_path: Path) -> None:
    names = ["#1.jpg", "#2.jpg", "#3.jpg"]
    for name in names:
        Image.new("RGB", SIZE).save(tmp_path / name)
    lines = [f"{name} 1 0 0 0 0 0 {-i}" for i, name in enumerate(names)]
    (tmp_path / "poses.txt").write_text("\n".join(["# name qw qx qy qz tx ty tz", *lines]))
    photos = PhotosAtHand(tmp_path, names)
    given = read_given_poses(tmp_path / "poses.txt", photos, {name: camera() for name in names})
    places = {n: i.projection_center()[2] for n, i in posed_images(given.model).items()}
    assert places == {"#1.jpg": 0, "#2.jpg": 1, "#3.jpg": 2}


def test_lines_that_were_made_comments_give_no_pose(tmp_path: Path) -> None:
    """The same in all formats with a line for each photo."""
    names = ["a.jpg", "x/b.jpg", "x/#c.jpg"]
    photos = PhotosAtHand(tmp_path, names)
    (tmp_path / "poses.txt").write_text(
        "x/b.jpg 1 0 0 0 0 0 0\n# db/a.jpg 1 0 0 0 0 0 1\n#c.jpg 1 0 0 0 0 0 2\n"
    )
    given = read_trajectory(tmp_path / "poses.txt", photos)
    assert [pose.name for pose in given] == names[1:]
    (tmp_path / "table.csv").write_text(
        "x,y,alt,name,heading,pitch,roll\n1,2,3,x/b.jpg,0,0,0\n # 1,2,3,a.jpg,0,0,0\n"
    )
    given = read_realitycapture(tmp_path / "table.csv", photos)
    assert [pose.name for pose in given] == ["x/b.jpg"]
    (tmp_path / "intrinsics.txt").write_text(
        "x/b.jpg PINHOLE 6 4 5 5 3 2\n # a.jpg PINHOLE 6 4 5 5 3 2\n#c.jpg PINHOLE 6 4 5 5 3 2\n"
    )
    assert load_intrinsics(tmp_path / "intrinsics.txt", names).keys() == {"x/b.jpg", "x/#c.jpg"}


@pytest.mark.parametrize("form", ["COLMAP", "nerfstudio", "list"])
def test_poses_of_photos_that_are_elsewhere_are_of_no_others(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two cameras' photos have the same file names, and those of one camera are at hand."""
    at_hand = ["0.jpg", *(f"left/{i}.jpg" for i in range(1, 4))]
    for name in at_hand:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(tmp_path / "photos" / name)
    sides = ("right", "left")
    places = {f"{side}/{i}.jpg": (i, k, 0.0) for k, side in enumerate(sides) for i in range(4)}
    places["0.jpg"] = (5, 5, 5.0)
    model = pycolmap.Reconstruction()
    own = camera()
    own.camera_id = 1
    model.add_camera_with_trivial_rig(own)
    frames = []
    for number, (name, place) in enumerate(places.items(), start=1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=number)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), -np.array(place))
        model.add_image_with_trivial_frame(image, pose)
        T = np.column_stack([OPENGL[:3, :3], place]).tolist()
        frames.append({"file_path": name, "transform_matrix": T})
    if form == "COLMAP":
        path = tmp_path / "sparse"
        path.mkdir()
        model.write_binary(path)
    elif form == "nerfstudio":
        path = tmp_path / "transforms.json"
        path.write_text(json.dumps({"fl_x": 100.0, "frames": frames}))
    else:
        path = tmp_path / "poses.txt"
        write_poses(path, {n: i.cam_from_world() for n, i in posed_images(model).items()})
    photos = PhotosAtHand(tmp_path / "photos", at_hand)
    caplog.clear()
    given = read_given_poses(path, photos, dict.fromkeys(at_hand, camera()))
    assert "was taken for" not in caplog.text
    found = {n: i.projection_center().tolist() for n, i in posed_images(given.model).items()}
    assert found == {name: pytest.approx(places[name]) for name in at_hand}
    given.write_again(given.model, tmp_path / "again.json")
    if form == "nerfstudio":
        assert len(json.loads((tmp_path / "again.json").read_text())["frames"]) == 4


def test_poses_by_names_that_begin_with_a_number(tmp_path: Path) -> None:
    names = ["1 (1).jpg", "1 (2).jpg", "2024 trip.jpg"]
    lines = [f"{name} 1 0 0 0 0 0 {-i}" for i, name in enumerate(names)]
    (tmp_path / "poses.txt").write_text("\n".join(lines))
    given = read_trajectory(tmp_path / "poses.txt", PhotosAtHand(tmp_path, names))
    places = {pose.name: pose.cam_from_world.inverse().translation[2] for pose in given}
    assert places == {"1 (1).jpg": 0, "1 (2).jpg": 1, "2024 trip.jpg": 2}


@pytest.mark.parametrize(
    ("size", "photo"), [((60, 40), SIZE), ((518, 350), (1536, 1024)), ((512, 336), (1536, 1024))]
)
def test_intrinsics_of_another_size_are_scaled(
    size: tuple[int, int], photo: tuple[int, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Reduced; squeezed to patches of 14 px; cut to patches of 16 px."""
    for name in NAMES:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", photo).save(tmp_path / "photos" / name)
    truth = camera("PINHOLE", photo)
    factor = photo[0] / size[0]
    fx, fy, cx, cy = truth.params / factor
    if size[0] == 518:
        fy, cy = fy * 350 / (1024 / factor), cy * 350 / (1024 / factor)
    if size[0] == 512:
        cy -= (1024 / factor - 336) / 2
    own = {"w": size[0], "h": size[1], "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    frames = [
        {"file_path": name, "transform_matrix": (T @ OPENGL).tolist()}
        for name, T in poses().items()
    ]
    path = tmp_path / "transforms.json"
    path.write_text(json.dumps({**own, "frames": frames}))
    given = read_given_poses(path, PhotosAtHand(tmp_path / "photos", NAMES))
    (found,) = given.model.cameras.values()
    assert (found.width, found.height) == photo
    np.testing.assert_allclose(found.params[:4], truth.params, rtol=3e-3)
    assert f"cameras for {size[0]} × {size[1]} pixels" in caplog.text


_WRONG_FOCAL = (
    '{"fl_x": %s, "w": 4, "frames": [{"file_path": "left/0000.10.jpg", "transform_matrix": '
    "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}]}"
)


def test_cameras_of_metashape_beside_a_list_of_images_are_metashapes(tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_text("left/0000.10.jpg\n")
    assert format_of(metashape(tmp_path))[0].name == "Metashape's XML"


def test_wrong_files_get_one_sentence(photos: PhotosAtHand, tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(EdmHlocError, match=message) as error:
            read_given_poses(path, photos)
        assert "\n" not in str(error.value)

    refused(tmp_path / "none.json", "No poses at")
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty",
        "neither a COLMAP model .* nor one of transforms.json, .*poses_bounds.npy",
    )
    path = tmp_path / "transforms.json"
    for text, message in (
        ("{", "is not JSON"),
        ('{"w": 3}', "has no list of frames"),
        ('{"frames": [{"file_path": "a"}]}', "frame 0 .* expected file_path and transform_matrix"),
        (_WRONG_FOCAL % '"long"', "frame 0 .*: fl_x is 'long'; it must be a positive number"),
        (_WRONG_FOCAL % "0", "frame 0 .*: fl_x is 0; it must be a positive number"),
        ('{"frames": []}', "has poses for 0 of the 4 photos .* are the names the same"),
    ):
        path.write_text(text)
        refused(path, message)
    record = json.loads(nerfstudio(tmp_path).read_text())
    mirrored = json.loads(json.dumps(record))
    mirrored["frames"][0]["transform_matrix"][0] = [
        -x for x in mirrored["frames"][0]["transform_matrix"][0]
    ]
    path.write_text(json.dumps(mirrored))
    refused(path, r"frame 0 .*: the pose is mirrored")
    record["frames"].append(record["frames"][0])
    path.write_text(json.dumps(record))
    refused(path, "has two poses for left/0000.10.jpg")
    xml = metashape(tmp_path)
    xml.write_text(xml.read_text()[:300])
    refused(xml, "damaged or no XML")
    xml.write_text('<document><chunk><cameras><camera label="0"/></cameras></chunk></document>')
    refused(xml, "none of its cameras has a pose .* align the photos")
    xml.write_text("<project/>")
    refused(xml, "is not Metashape's XML of cameras")
    table = tmp_path / "cameras.csv"
    table.write_text("#name,x,y,alt\na.jpg,1,2,3\n")
    refused(table, "lacks heading, pitch, roll")
    table.write_text("\n#name,x,y,alt,heading,pitch,roll\n\n0000.10.jpg,1,2,3,4,5,north\n")
    refused(table, "line 4: expected numbers")
    text = tmp_path / "trajectory.txt"
    text.write_text("1.0 2 3\n")
    refused(text, "line 1: expected 'timestamp tx ty tz qx qy qz qw'")
    text.write_text("1000.0 0 0 0 0 0 0 1\n")
    refused(text, "0 of 4 photos in .* named by a timestamp within 0.02 s")
    model = colmap(tmp_path)
    (model / "cameras.txt").unlink()
    refused(model, "has images.txt but no cameras.txt")
    shutil.copy(path, tmp_path / "poses.yaml")
    with pytest.raises(EdmHlocError, match="poses are read from nerfstudio's"):
        format_of(tmp_path / "poses.yaml")


def test_refined_poses_go_back_into_a_transforms_json(photos: PhotosAtHand, tmp_path: Path) -> None:
    given = read_given_poses(nerfstudio(tmp_path), photos)
    out = tmp_path / "refined.json"
    given.write_again(given.model, out)
    check(read_given_poses(out, photos), 1e-6)
    before, after = (json.loads(p.read_text()) for p in (tmp_path / "transforms.json", out))
    assert after["ply_file_path"] == "points.ply"
    assert [f["own"] for f in after["frames"]] == [f["own"] for f in before["frames"]]
    assert after["frames"][0]["fl_x"] == pytest.approx(100)


def test_nerfstudio_reads_refined_poses_and_intrinsics(
    photos: PhotosAtHand, tmp_path: Path
) -> None:
    """Values of the file count before those of its frames there, and paths from its folder."""
    path = nerfstudio(tmp_path)
    record = json.loads(path.read_text())
    record |= {"camera_angle_x": 1.0, "distortion_params": [0.01, -0.02, 0, 0, 0.001, 0.002]}
    record |= {"train_filenames": [f"images/{NAMES[0]}", "gone.jpg"], "aabb_scale": 4}
    for frame in record["frames"]:
        frame |= {"mask_path": f"masks/{frame['own']}.png", "depth_file_path": "/depth.exr"}
    path.write_text(json.dumps(record))
    given = read_given_poses(path, photos)
    (own,) = given.model.cameras.values()
    own.params = [90.0, 91, 62, 38, 0.1, 0.2, 0.01, 0.02]
    out = tmp_path / "out" / "deeper"
    out.mkdir(parents=True)
    given.write_again(given.model, out / "transforms.json")
    after = json.loads((out / "transforms.json").read_text())
    frames = after.pop("frames")
    assert after.pop("camera_model") == "OPENCV"
    assert (out / after.pop("ply_file_path")).resolve() == tmp_path / "points.ply"
    assert after.pop("train_filenames") == [frames[0]["file_path"]]
    assert after == {"aabb_scale": 4}
    for name, frame in zip(NAMES, frames, strict=True):
        assert (out / frame["file_path"]).samefile(tmp_path / "photos" / name)
        assert (out / frame["mask_path"]).resolve() == tmp_path / "masks" / f"{name}.png"
        assert frame["depth_file_path"] == "/depth.exr"
        lens = [frame[k] for k in ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")]
        assert lens == own.params.tolist()
        assert "distortion_params" not in frame


def test_a_third_coefficient_is_kept(photos: PhotosAtHand, tmp_path: Path) -> None:
    path = nerfstudio(tmp_path)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "k3": 0.3}))
    given = read_given_poses(path, photos)
    (own,) = given.model.cameras.values()
    assert own.model_name == "FULL_OPENCV"
    assert own.params[4:].tolist() == [0.01, -0.02, 0.001, 0.002, 0.3, 0, 0, 0]
    assert given.can_be_written()
    given.write_again(given.model, tmp_path / "out.json")
    (again,) = read_given_poses(tmp_path / "out.json", photos).model.cameras.values()
    assert again.params.tolist() == own.params.tolist()


@pytest.mark.parametrize("own", [{"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": True}])
def test_fisheyes_of_nerfstudio_and_of_instant_ngp(
    own: dict[str, object], photos: PhotosAtHand, tmp_path: Path
) -> None:
    path = nerfstudio(tmp_path)
    record = json.loads(path.read_text())
    del record["camera_model"]
    path.write_text(json.dumps({**record, **own, "k3": 0.003, "k4": 0.004}))
    lens = [*camera().params[:6].tolist(), 0.003, 0.004]
    (known,) = {c.todict()["model"] for c in load_intrinsics(path, NAMES).values()}
    assert known == pycolmap.CameraModelId.OPENCV_FISHEYE
    given = read_given_poses(path, photos)
    (found,) = given.model.cameras.values()
    assert (found.model_name, found.params.tolist()) == ("OPENCV_FISHEYE", lens)
    given.write_again(given.model, tmp_path / "out.json")
    (again,) = read_given_poses(tmp_path / "out.json", photos).model.cameras.values()
    assert (again.model_name, again.params.tolist()) == ("OPENCV_FISHEYE", lens)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["camera_model"] == "OPENCV_FISHEYE"
    assert {f.get("is_fisheye") for f in written["frames"]} == {own.get("is_fisheye")}
    # undistorted in between, as it were
    flat = dict.fromkeys(NAMES, camera())
    given = read_given_poses(path, photos, flat)
    given.write_again(given.model, tmp_path / "out.json")
    (again,) = read_given_poses(tmp_path / "out.json", photos).model.cameras.values()
    assert again.model_name == "OPENCV"


def test_a_fisheye_of_instant_ngp_with_an_angle_only(photos: PhotosAtHand, tmp_path: Path) -> None:
    path = nerfstudio(tmp_path)
    angle = 2 * np.arctan(60 / 100)
    frames = json.loads(path.read_text())["frames"]
    path.write_text(
        json.dumps({"camera_angle_x": angle, "is_fisheye": True, "k1": 0.1, "frames": frames})
    )
    (found,) = read_given_poses(path, photos).model.cameras.values()
    assert found.model_name == "OPENCV_FISHEYE"
    assert found.params.tolist() == pytest.approx([100, 100, 60, 40, 0.1, 0, 0, 0])


@pytest.mark.parametrize(
    ("own", "kind"),
    [
        ({"camera_model": "FISHEYE624", "distortion_params": [0.0] * 12}, "FISHEYE624"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"ftheta_p0": 0.0}, "f-theta"),
        ({"latlong": True}, "latlong"),
        ({"equirectangular": True}, "equirectangular"),
    ],
)
def test_lenses_of_a_transforms_json_that_colmap_lacks_are_left_out(
    own: dict[str, object],
    kind: str,
    photos: PhotosAtHand,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = nerfstudio(tmp_path)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "orthographic": False, "latlong": None}))
    read_given_poses(path, photos)
    record["frames"][1] |= own
    path.write_text(json.dumps(record))
    given = read_given_poses(path, photos)
    assert given.unposed == (NAMES[1],)
    assert f"COLMAP has no model for cameras of the kind {kind}, which took 1 of" in caplog.text
    assert set(load_intrinsics(path, NAMES)) == set(NAMES) - {NAMES[1]}
    assert f"the kind {kind}: the intrinsics of their photos are left out" in caplog.text
    path.write_text(json.dumps({**record, **own}))
    for read in (lambda: read_given_poses(path, photos), lambda: load_intrinsics(path, NAMES)):
        with pytest.raises(EdmHlocError, match=f"of the kind {kind}.*: undistort the photos"):
            read()


def test_cameras_that_nerfstudio_does_not_know_are_told_before_matching(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = [100.0, 101, 61, 39, 0.01, -0.02, 0.001, 0.002, 0.3, 0.1, 0, 0]
    full = pycolmap.Camera(model="FULL_OPENCV", width=SIZE[0], height=SIZE[1], params=params)
    given = read_given_poses(nerfstudio(tmp_path), photos, dict.fromkeys(NAMES, full))
    assert not given.can_be_written()
    assert "FULL_OPENCV with k4, k5, k6 = 0.1, 0, 0" in caplog.text
    assert read_given_poses(nerfstudio(tmp_path), photos).can_be_written()


@pytest.mark.parametrize("write", [nerfstudio, realitycapture])
def test_an_unreadable_photo_is_left_out(
    write, photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path)
    if write is nerfstudio:
        record = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in record.items() if k not in ("w", "h")}))
    (photos.root / NAMES[1]).write_bytes(b"")
    given = read_given_poses(path, photos)
    assert given.unposed == (NAMES[1],)
    assert "Skipping a photo" in caplog.text


@pytest.mark.parametrize("write", [nerfstudio, realitycapture, colmap])
def test_photos_that_are_not_at_hand_are_said(
    write, photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path)
    read_given_poses(path, photos)
    assert "not in" not in caplog.text
    given = read_given_poses(path, PhotosAtHand(photos.root, NAMES[:-1]))
    assert list(posed_images(given.model)) == NAMES[:-1]
    assert f"names 1 photos that are not in {photos.root}, such as" in caplog.text


def test_a_coefficient_that_colmap_lacks_is_said_once(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for write in (nerfstudio, realitycapture):
        path = write(tmp_path)
        text = path.read_text().replace('"OPENCV",', '"OPENCV", "k4": 0.1,')
        path.write_text(text.replace(",0.0,0.0,", ",0.0,0.1,"))  # RealityCapture's k3 and k4
        read_given_poses(path, photos)
        assert caplog.text.count("k4") == 1
        caplog.clear()


def components(xml: str, places: list[tuple[float, np.ndarray, np.ndarray] | None]) -> str:
    """Metashape's XML with the photos in turn in components of these places in the chunk."""
    written = ""
    for i, place in enumerate(places):
        inside = ""
        if place is not None:
            scale, R, t = place
            values = [" ".join(map(repr, x.ravel().tolist())) for x in (R, t)]
            inside = (
                f'<transform><rotation locked="true">{values[0]}</rotation><translation>'
                f"{values[1]}</translation><scale>{scale}</scale></transform>"
            )
        written += f'<component id="{i}" label="Component {i + 1}">{inside}</component>'
    for k, T in enumerate(poses().values()):
        place = places[k % len(places)]
        own = T.copy()
        if place is not None:
            scale, R, t = place
            own[:3, :3], own[:3, 3] = R.T @ T[:3, :3], R.T @ (T[:3, 3] - t) / scale
        matrices = [" ".join(map(repr, x.ravel().tolist())) for x in (T, own)]
        assert matrices[0] in xml
        xml = xml.replace(matrices[0], matrices[1])
        xml = xml.replace(f'<camera id="{k}"', f'<camera id="{k}" component_id="{k % len(places)}"')
    return xml.replace("<cameras>", f"<components>{written}</components><cameras>")


def test_components_of_metashape_are_brought_into_the_frame_of_the_chunk(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = metashape(tmp_path)
    xml = path.read_text()
    rotations = Rotation.random(2, random_state=1).as_matrix()
    places = [
        (2.0, rotations[0], np.array([1.0, 2, 3])),
        (0.5, rotations[1], np.array([4.0, 0, 9])),
    ]
    path.write_text(components(xml, [*places]))
    check(read_given_poses(path, photos))
    assert "have a place in the chunk" not in caplog.text
    path.write_text(components(xml, [*places]).replace("<scale>0.5", "<scale>-0.5"))
    with pytest.raises(EdmHlocError, match=r"component Component 2: scale is -0\.5; it must be"):
        read_given_poses(path, photos)
    # a single one stays in its own frame
    path.write_text(components(xml, [places[0]]))
    before = np.linalg.norm(poses()[NAMES[0]][:3, 3] - poses()[NAMES[1]][:3, 3])
    images = posed_images(read_given_poses(path, photos).model)
    a, b = (images[name].projection_center() for name in NAMES[:2])
    assert np.linalg.norm(a - b) == pytest.approx(before / 2)


def test_of_components_without_a_common_frame_the_largest_is_read(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = metashape(tmp_path)
    place = 2.0, Rotation.random(random_state=1).as_matrix(), np.array([1.0, 2, 3])
    xml = components(path.read_text(), [None, place])
    path.write_text(xml.replace('id="1" component_id="1"', 'id="1" component_id="0"'))
    given = read_given_poses(path, photos)
    assert given.unposed == (NAMES[3],)
    assert f"{path}: not all of the 2 components have a place" in caplog.text
    assert "only the 3 of 4 photos of the largest are read" in caplog.text


def test_cameras_of_metashape_that_colmap_lacks_are_left_out(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = metashape(tmp_path)
    own = (
        '<sensor id="1" label="panorama" type="spherical"/><sensor id="2" type="frame">'
        '<resolution width="0" height="8"/><calibration><f>0</f></calibration></sensor>'
    )
    xml = path.read_text().replace("</sensors>", own + "</sensors>")
    path.write_text(xml)
    check(read_given_poses(path, photos))  # no photo is of these sensors
    assert "no model" not in caplog.text
    path.write_text(xml.replace('id="1" sensor_id="0"', 'id="1" sensor_id="1"'))
    assert read_given_poses(path, photos).unposed == (NAMES[1],)
    assert "COLMAP has no model for cameras of the kind spherical, which took 1 of" in caplog.text
    path.write_text(xml.replace(' sensor_id="0"', ' sensor_id="1"'))
    with pytest.raises(EdmHlocError, match="of the kind spherical, which took 4 of the photos"):
        read_given_poses(path, photos)
    path.write_text(xml.replace('id="1" sensor_id="0"', 'id="1" sensor_id="2"'))
    with pytest.raises(EdmHlocError, match="sensor 2: its calibration holds no possible numbers"):
        read_given_poses(path, photos)


def test_rigs_are_taken_apart_with_a_word_on_it(
    photos: PhotosAtHand, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_given_poses(colmap(tmp_path / "alone"), photos)
    assert "rigs" not in caplog.text
    folder = tmp_path / "stereo"
    folder.mkdir()
    cameras = [f"{number} PINHOLE 120 80 100 101 61 39" for number in (1, 2)]
    images = [f"{i} 1 0 0 0 {i // 3} 0 0 {2 - i % 2} {n}\n" for i, n in enumerate(NAMES, start=1)]
    frames = [f"{k} 1 1 0 0 0 {k} 0 0 2 CAMERA 1 {2 * k - 1} CAMERA 2 {2 * k}" for k in (1, 2)]
    (folder / "cameras.txt").write_text("\n".join(cameras))
    (folder / "images.txt").write_text("\n".join(images))
    (folder / "points3D.txt").write_text("")
    (folder / "rigs.txt").write_text("1 2 CAMERA 1 CAMERA 2 1 1 0 0 0 -0.5 0 0")
    (folder / "frames.txt").write_text("\n".join(frames))
    given = posed_images(read_given_poses(folder, photos).model)
    x = [given[name].cam_from_world().translation[0] for name in NAMES]
    assert x == pytest.approx([1, 0.5, 2, 1.5])
    assert f"{folder} holds cameras in rigs, which are taken apart" in caplog.text
