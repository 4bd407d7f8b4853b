"""COLMAP models written by hand or with impossible numbers: put in order or refused by line."""

from __future__ import annotations

import logging
import re
import struct
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError

CAMERA = "1 PINHOLE 640 480 500 500 320 240"
POSES = [f"{i} 0.6 0 0.8 0 {i} 0.5 -2 1 photo {i}.jpg" for i in (1, 2, 3)]


def write(folder: Path, images: str, cameras: str = CAMERA) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cameras.txt").write_text(f"# cameras\n{cameras}\n")
    (folder / "images.txt").write_text(images)
    (folder / "points3D.txt").write_text("")
    return folder


@pytest.mark.parametrize(
    "images",
    [
        "\n\n".join(POSES) + "\n\n",  # as COLMAP writes them
        "\n\n".join(POSES) + "\n",  # without the last empty line
        "\n\n".join(POSES),
        "\n".join(POSES) + "\n",  # without any
        "# one line an image\r\n" + "\r\n".join(POSES),
        "\n" + "\n\n".join(POSES) + "\n\n",  # and more than COLMAP writes
        f"{POSES[0]}\n\n # of the second\n{POSES[1]}\n\n{POSES[2]}\n\n",
        f"{POSES[0]}\n10 20 -1 30.5 4 -1\n{POSES[1]}\n{POSES[2]}\n10 20 -1 30 40 -1 5 5 -1 6 6 -1",
    ],
)
def test_empty_lines_may_be_missing(images: str, tmp_path: Path) -> None:
    model = read_model(write(tmp_path, images))
    found = {image.name: image for image in model.images.values()}
    assert sorted(found) == [f"photo {i}.jpg" for i in (1, 2, 3)]
    for i in (1, 2, 3):
        pose = found[f"photo {i}.jpg"].cam_from_world()
        np.testing.assert_allclose(pose.translation, [i, 0.5, -2])
        np.testing.assert_allclose(pose.rotation.quat, [0, 0.8, 0, 0.6], atol=1e-12)
    numbers = [found[f"photo {i}.jpg"].num_points2D() for i in (1, 2, 3)]
    assert numbers == ([2, 0, 4] if "30.5" in images else [0, 0, 0])


def test_empty_lines_may_be_missing_before_names_that_begin_with_a_number(tmp_path: Path) -> None:
    poses = [pose.replace("photo", "2024 photo") for pose in POSES]
    model = read_model(write(tmp_path, f"{poses[0]}\n10 20 -1\n{poses[1]}\n{poses[2]}\n"))
    found = {image.name: image.num_points2D() for image in model.images.values()}
    assert found == {"2024 photo 1.jpg": 1, "2024 photo 2.jpg": 0, "2024 photo 3.jpg": 0}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["cameras.txt", "images.txt", "points3D.txt"])
def test_a_byte_order_mark_is_no_part_of_a_model(name: str, encoding: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "\n\n".join(POSES) + "\n\n")
    (folder / "points3D.txt").write_text("1 0.5 0 2 255 0 0 0.1\n")
    text = (folder / name).read_text()
    (folder / name).write_text(text, encoding)
    model = read_model(folder)
    assert sorted(image.name for image in model.images.values()) == [
        f"photo {i}.jpg" for i in (1, 2, 3)
    ]
    assert model.num_points3D() == 1
    assert (folder / name).read_text(encoding) == text


def test_quaternions_of_seven_digits_get_length_1(tmp_path: Path) -> None:
    """Those of COLMAP's file of frames, too, which turn a place 5,000 km away by half a metre."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_frames_per_rig, options.num_points3D = 2, 5
    model = pycolmap.synthesize_dataset(options)
    model.write_text(tmp_path)
    text = (tmp_path / "frames.txt").read_text()
    (tmp_path / "frames.txt").write_text(re.sub(r"(\.\d{7})\d+", r"\1", text))
    for frame in read_model(tmp_path).frames.values():
        assert abs(np.linalg.norm(frame.rig_from_world.rotation.quat) - 1) < 1e-15


def test_quaternions_get_length_1(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    twice = "".join(line.replace(" 0.6 0 0.8", " 1.2 0 1.6") + "\n\n" for line in POSES)
    with caplog.at_level(logging.WARNING):
        model = read_model(write(tmp_path, twice))
    for image in model.images.values():
        quaternion = image.cam_from_world().rotation.quat
        np.testing.assert_allclose(quaternion, [0, 0.8, 0, 0.6], atol=1e-12)
    assert "3 quaternions that are not of length 1 (the first, in line 1, of 2)" in caplog.text
    model.frames[1].rig_from_world = pycolmap.Rigid3d(
        pycolmap.Rotation3d(np.array([0, 1.6, 0, 1.2])), np.zeros(3)
    )
    model.write_binary(tmp_path)
    again = read_model(tmp_path)
    np.testing.assert_allclose(
        again.images[1].cam_from_world().rotation.quat, [0, 0.8, 0, 0.6], atol=1e-12
    )


@pytest.mark.parametrize(
    ("cameras", "message"),
    [
        ("1 PINHOLE 640 480 0 500 320 240", "line 2: the camera has a focal length of 0 pixels"),
        ("1 PINHOLE 640 480 -5 500 320 240", "line 2: .* focal length of -5"),
        ("1 PINHOLE -1 480 500 500 320 240", "line 2: expected CAMERA_ID MODEL WIDTH"),
        ("1 PINHOLE 0 480 500 500 320 240", "line 2: the camera has a size of 0 × 480"),
        ("1 PINHOLE 640 480 nan 500 320 240", "line 2: a parameter .* is no finite number"),
        ("1 PINHOLE 640 480 500 500 320", "line 2: .*"),
        ("1 FISH 640 480 500 500 320 240", "line 2: expected CAMERA_ID MODEL WIDTH"),
        ("1 PINHOLE 6e99 480 500 500 320 240", "line 2: expected"),
        (CAMERA + "\n2", r"line 3: expected .* found '2'"),
    ],
)
def test_impossible_cameras_are_named(cameras: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EdmHlocError, match=rf"cameras\.txt, {message}"):
        read_model(write(tmp_path, "\n\n".join(POSES), cameras))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 nan 0 0 0 1 1 1 1 b.jpg", "the pose of b.jpg is not possible"),
        ("2 1 0 0 0 inf 1 1 1 b.jpg", "the pose of b.jpg is not possible"),
        ("2 0 0 0 0 1 1 1 1 b.jpg", "the pose of b.jpg is not possible"),
        ("2 1 0 0 0 1 1 1 b.jpg", "expected IMAGE_ID QW"),
        ("b.jpg 1 0 0 0 1 1 1", "expected IMAGE_ID QW"),
        ("2 1 0 0 0 1 1 1 1 " + "b" * 5000 + " \n1 2", "expected the points X Y POINT3D_ID"),
    ],
)
def test_impossible_images_are_named(line: str, message: str, tmp_path: Path) -> None:
    number = 4 if "expected the points" in message else 3
    with pytest.raises(EdmHlocError, match=rf"images\.txt, line {number}: {message}") as error:
        read_model(write(tmp_path, f"{POSES[0]}\n\n{line}\n"))
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_impossible_numbers_in_binary_files_are_named(value: float, tmp_path: Path) -> None:
    read_model(write(tmp_path, "\n\n".join(POSES))).write_binary(tmp_path)
    data = bytearray((tmp_path / "cameras.bin").read_bytes())
    data[32:40] = struct.pack("<d", value)
    whole = (tmp_path / "cameras.bin").read_bytes()
    (tmp_path / "cameras.bin").write_bytes(data)
    with pytest.raises(EdmHlocError, match=r"damaged: .*\(camera 1\)"):
        read_model(tmp_path)
    (tmp_path / "cameras.bin").write_bytes(whole)
    for name in ("frames.bin", "images.bin"):
        data = bytearray((tmp_path / name).read_bytes())
        at = bytes(data).find(struct.pack("<d", 0.5))
        assert at > 0
        data[at : at + 8] = struct.pack("<d", np.nan)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(EdmHlocError, match=r"the pose of photo \d\.jpg is no finite rotation"):
        read_model(tmp_path)


def test_a_sensor_without_a_pose_in_its_rig_is_named(tmp_path: Path) -> None:
    """COLMAP reads such a model, and then fails in all that asks for the pose of an image."""
    folder = write(tmp_path, "\n\n".join(POSES[:2]), f"{CAMERA}\n2{CAMERA[1:]}")
    images = folder / "images.txt"
    images.write_text(images.read_text().replace(" 1 photo 2", " 2 photo 2"))
    pose = "0.6 0 0.8 0 1 0.5 -2"
    (folder / "frames.txt").write_text(f"1 1 {pose} 2 CAMERA 1 1 CAMERA 2 2\n")
    rigs = folder / "rigs.txt"
    rigs.write_text("1 2 CAMERA 1 CAMERA 2 1 1 0 0 0 0.5 0 0\n")
    assert read_model(folder).image(2).cam_from_world().translation[0] == pytest.approx(1.5)
    rigs.write_text("1 2 CAMERA 1 CAMERA 2 0\n")
    with pytest.raises(EdmHlocError, match=r"pose of its sensor 2, the camera of photo 2\.jpg"):
        read_model(folder)
    rigs.unlink()
    (folder / "frames.txt").unlink()
    assert read_model(folder).image(2).cam_from_world().translation[0] == pytest.approx(2)


@pytest.mark.parametrize(
    "name", ["cameras.bin", "images.bin", "points3D.bin", "frames.bin", "rigs.bin"]
)
@pytest.mark.parametrize("count", [2**63, 2**32, 1000])
def test_absurd_lengths_end_at_once(name: str, count: int, tmp_path: Path) -> None:
    read_model(write(tmp_path, "\n\n".join(POSES))).write_binary(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(struct.pack("<Q", count) + data[8:])
    with pytest.raises(EdmHlocError, match=f"damaged: {name} ends too early"):
        read_model(tmp_path)


POINT = "7 0.5 1 2 10 20 30 0.4"
RIG = "1 2 CAMERA 1 CAMERA 2 1 1 0 0 0 0.1 0 0"
FRAME = "1 1 1 0 0 0 0 0 0 2 CAMERA 1 1 CAMERA 2 2"


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("points3D.txt", [POINT.replace("0.5", "nan")], "line 1: the position of point 7 is not f"),
        ("points3D.txt", [POINT, "", "8 1 inf 2 1 2 3 0"], "line 3: the position of point 8 is n"),
        ("points3D.txt", [POINT, POINT], "line 2: the id 7 belongs to the point in line 1 already"),
        ("points3D.txt", [POINT.replace("30", "300")], "line 1: expected POINT3D_ID X Y Z R G B"),
        ("points3D.txt", [POINT + " 1"], "line 1: expected .* pairs of IMAGE_ID POINT2D_IDX; foun"),
        ("points3D.txt", ["# mine", "7 0.5 1"], "line 2: expected .* found '7 0.5 1'"),
        ("cameras.txt", [CAMERA, CAMERA], "line 2: the id 1 belongs to the camera in line 1 alrea"),
        ("images.txt", [*POSES, "", POSES[1]], "line 5: the id 2 belongs to the image in line 2 a"),
        ("rigs.txt", [RIG, RIG], "line 2: the id 1 belongs to the rig in line 1 already"),
        ("rigs.txt", [RIG.replace("1 2 ", "1 99999999999 ")], "line 1: expected RIG_ID NUM_SENS"),
        ("rigs.txt", [RIG[:-4]], "line 1: expected RIG_ID"),
        ("rigs.txt", [RIG.replace("0.1", "nan")], "line 1: expected RIG_ID"),
        ("frames.txt", [FRAME, FRAME], "line 2: the id 1 belongs to the frame in line 1 already"),
        ("frames.txt", [FRAME.replace(" 2 ", " 999999999999 ", 1)], "line 1: expected FRAME_ID"),
        ("frames.txt", [FRAME[:-2]], "line 1: expected FRAME_ID"),
        ("frames.txt", [FRAME.replace("0 0 0 2", "0 0 inf 2")], "line 1: expected FRAME_ID"),
    ],
)
def test_impossible_lines_of_every_file_are_named(
    name: str, lines: list[str], message: str, tmp_path: Path
) -> None:
    write(tmp_path, "\n\n".join(POSES) + "\n")
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(EdmHlocError, match=rf"{name}, {message}"):
        read_model(tmp_path)


@pytest.fixture
def rigged(tmp_path: Path) -> Path:
    """A binary model whose rigs have two cameras each."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 2, 2, 2
    options.num_points3D = 5
    pycolmap.synthesize_dataset(options).write_binary(tmp_path)
    assert read_model(tmp_path).num_rigs() == 2
    return tmp_path


def test_quaternions_of_rigs_get_length_1(rigged: Path) -> None:
    truth = read_model(rigged)
    for path in rigged.glob("*.bin"):
        path.unlink()
    truth.write_text(rigged)
    lines = (rigged / "rigs.txt").read_text().splitlines()
    for i, line in enumerate(lines):
        if not line.startswith("#"):
            words = line.split()
            words[7:11] = [repr(0.5 * float(word)) for word in words[7:11]]
            lines[i] = " ".join(words)
    (rigged / "rigs.txt").write_text("\n".join(lines))
    model = read_model(rigged)
    for image_id, image in truth.images.items():
        pose = model.images[image_id].cam_from_world().matrix()
        np.testing.assert_allclose(pose, image.cam_from_world().matrix(), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "offset", "value", "message"),
    [
        ("points3D.bin", 16, struct.pack("<d", np.nan), "has a point 1 whose position is not fi"),
        ("points3D.bin", 24, struct.pack("<d", -np.inf), "has a point 1 whose position is not fi"),
        ("points3D.bin", 51, struct.pack("<Q", 2**61), "ends too early"),
        ("rigs.bin", 8 + 16 + 9, struct.pack("<d", np.nan), "has a sensor in rig 1 whose pose is"),
        ("rigs.bin", 8 + 81, struct.pack("<I", 1), "lists rig 1 twice"),
        ("rigs.bin", 12, struct.pack("<I", 2**31), "ends too early"),
        ("frames.bin", 8 + 64, struct.pack("<I", 2**31), "ends too early"),
        ("frames.bin", 8 + 100, struct.pack("<I", 1), "lists frame 1 twice"),
        ("cameras.bin", 8 + 56, struct.pack("<I", 1), "lists camera 1 twice"),
    ],
)
def test_impossible_records_of_binary_files_are_named(
    name: str, offset: int, value: bytes, message: str, rigged: Path
) -> None:
    data = bytearray((rigged / name).read_bytes())
    data[offset : offset + len(value)] = value
    (rigged / name).write_bytes(data)
    with pytest.raises(EdmHlocError, match=f"damaged: {name} {message}"):
        read_model(rigged)


@pytest.mark.parametrize(("name", "offset"), [("rigs.bin", 20), ("frames.bin", 8 + 4)])
def test_parts_that_do_not_fit_together_are_said_so(name: str, offset: int, rigged: Path) -> None:
    data = bytearray((rigged / name).read_bytes())
    data[offset : offset + 4] = struct.pack("<I", 77)  # no such camera, no such rig
    (rigged / name).write_bytes(data)
    with pytest.raises(EdmHlocError, match=f"{rigged} is damaged: its files do not fit together"):
        read_model(rigged)
