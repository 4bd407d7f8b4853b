"""Comparison of models: known errors are measured, whatever the similarity between the models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import compare

RNG = np.random.default_rng(0)
N = 12
CENTRES = RNG.uniform(-5, 5, (N, 3))
ROTATIONS = Rotation.random(N, random_state=1).as_matrix()  # camera from world
EXTENT = max(np.linalg.norm(a - b) for a in CENTRES for b in CENTRES)


def write(
    folder: Path,
    centres: np.ndarray = CENTRES,
    rotations: np.ndarray = ROTATIONS,
    names: list[str] | None = None,
    points: int = 0,
) -> Path:
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 500, 640, 480)
    model.add_camera_with_trivial_rig(camera)
    names = names or [f"{i:02}.jpg" for i in range(len(centres))]
    for i, (name, centre, rotation) in enumerate(zip(names, centres, rotations, strict=True)):
        image = pycolmap.Image(
            name=name, keypoints=np.zeros((points, 2)), camera_id=1, image_id=i + 1
        )
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)
        model.add_image_with_trivial_frame(image, pose)
    for k in range(points):
        track = pycolmap.Track()
        for i in range(3):
            track.add_element(i + 1, k)
        model.add_point3D(CENTRES.mean(axis=0), track)
    folder.mkdir()
    model.write_text(folder)
    return folder


def moved(
    centres: np.ndarray, rotations: np.ndarray, scale: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """The same cameras in another world frame."""
    Q = Rotation.from_rotvec([1.0, -2.0, 0.5]).as_matrix()
    return scale * centres @ Q.T + [7.0, 8.0, -9.0], rotations @ Q.T


def turned(rotations: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Each camera rotated about a random axis of its own."""
    axes = np.random.default_rng(2).normal(size=(len(rotations), 3))
    axes *= np.radians(degrees)[:, None] / np.linalg.norm(axes, axis=1, keepdims=True)
    return Rotation.from_rotvec(axes).as_matrix() @ rotations


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return write(tmp_path / "truth")


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1e4])
def test_a_similarity_makes_no_error(truth: Path, tmp_path: Path, scale: float) -> None:
    result = compare(write(tmp_path / "model", *moved(CENTRES, ROTATIONS, scale)), truth)
    assert (result.registered, result.images, result.missing) == (N, N, ())
    assert result.rotation_max < 1e-6
    assert result.position_max < 1e-6
    assert result.extent == pytest.approx(EXTENT)
    assert (result.points, result.mean_track_length) == (0, 0)


def test_errors_come_out_as_they_went_in(truth: Path, tmp_path: Path) -> None:
    degrees = np.linspace(0.01, 0.12, N)
    shifts = np.random.default_rng(3).normal(size=(N, 3))
    shifts *= (
        EXTENT
        * np.linspace(0.0001, 0.0012, N)[:, None]
        / np.linalg.norm(shifts, axis=1, keepdims=True)
    )
    result = compare(
        write(tmp_path / "model", *moved(CENTRES + shifts, turned(ROTATIONS, degrees))), truth
    )
    # the alignment takes up a part, the same for all
    assert result.rotation_median == pytest.approx(np.median(degrees), rel=0.3)
    assert result.rotation_max == pytest.approx(0.12, rel=0.3)
    assert result.position_median == pytest.approx(0.065, rel=0.3)  # %
    assert result.position_max == pytest.approx(0.12, rel=0.3)


def test_wrong_cameras_do_not_spoil_the_others(truth: Path, tmp_path: Path) -> None:
    centres, rotations = CENTRES.copy(), ROTATIONS.copy()
    centres[[1, 4, 9]] = [[30, 0, 0], [0, -20, 5], [3, 3, 40]]
    rotations[[1, 4]] = Rotation.random(2, random_state=5).as_matrix()
    result = compare(write(tmp_path / "model", *moved(centres, rotations)), truth)
    assert result.rotation_median < 0.01
    assert result.position_median < 0.01
    assert result.position_max == pytest.approx(
        100 * np.linalg.norm(centres - CENTRES, axis=1).max() / EXTENT, rel=0.01
    )


def test_a_mirrored_model_is_wrong(truth: Path, tmp_path: Path) -> None:
    result = compare(write(tmp_path / "model", CENTRES * [1, 1, -1]), truth)
    assert result.position_median > 3


def test_cameras_on_a_line_and_only_two(tmp_path: Path) -> None:
    """The centres leave a rotation about the line undetermined, the orientations determine it."""
    line = np.outer(np.linspace(0, 10, 6), [0.6, 0.8, 0.0])
    centres = line + np.random.default_rng(4).normal(0, 1e-3, line.shape)
    degrees = np.full(6, 0.05)
    truth = write(tmp_path / "truth", line, ROTATIONS[:6])
    model = write(tmp_path / "model", *moved(centres, turned(ROTATIONS[:6], degrees)))
    result = compare(model, truth)
    assert result.rotation_max < 0.1
    assert result.position_max < 0.05
    two = write(tmp_path / "two", *moved(line[[0, 5]], ROTATIONS[[0, 5]]), ["00.jpg", "05.jpg"])
    result = compare(two, truth)
    assert (result.registered, result.images) == (2, 6)
    assert result.missing == ("01.jpg", "02.jpg", "03.jpg", "04.jpg")
    assert result.rotation_max < 1e-6
    assert result.position_max < 1e-6
    assert "2 of 6" in str(result)
    assert "01.jpg" in str(result)


@pytest.mark.parametrize(
    "rename",
    [
        lambda i: f"images/{i:02}.jpg",
        lambda i: f"deep/{i % 2}/x/{i:02}.jpg",
        lambda i: f"{i:02}.jpg" if i % 2 else f"part/{i:02}.jpg",
    ],
)
def test_names_with_other_folders(
    truth: Path, tmp_path: Path, rename: Callable[[int], str]
) -> None:
    names = [rename(i) for i in range(N)]
    result = compare(write(tmp_path / "model", *moved(CENTRES, ROTATIONS), names), truth)
    assert result.registered == N
    assert result.position_max < 1e-6


def test_ambiguous_file_names_are_no_match(tmp_path: Path) -> None:
    names = [f"{folder}/{i}.jpg" for i in range(6) for folder in "ab"]
    truth = write(tmp_path / "truth", names=names)
    model = write(tmp_path / "model", names=[f"c/{name[2:]}x" for name in names])
    with pytest.raises(EdmHlocError, match="0 image"):
        compare(model, truth)
    model = write(tmp_path / "other", names=[f"c/{i}/{i % 6}.jpg" for i in range(N)])
    with pytest.raises(EdmHlocError, match="0 image"):
        compare(model, truth)


def test_statistics_are_those_of_the_model(truth: Path, tmp_path: Path) -> None:
    model = write(tmp_path / "model", points=5)
    result = compare(model, truth)
    assert (result.points, result.mean_track_length) == (5, 3.0)
    reconstruction = pycolmap.Reconstruction(model)
    reconstruction.update_point_3d_errors()
    assert result.mean_reprojection_error == reconstruction.compute_mean_reprojection_error()


def test_what_cannot_be_compared(truth: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "one", CENTRES[:1], ROTATIONS[:1])
    with pytest.raises(EdmHlocError, match="two are needed"):
        compare(one, truth)
    spot = write(tmp_path / "spot", CENTRES * 0 + 3, ROTATIONS)
    with pytest.raises(EdmHlocError, match="one place"):
        compare(truth, spot)
    with pytest.raises(EdmHlocError, match="No COLMAP model"):
        compare(tmp_path / "nothing", truth)
    # a model whose cameras all fell together is bad, not an error
    assert compare(spot, truth).position_median > 1


@pytest.mark.parametrize("form", ["TUM", "KITTI", "Blender"])
def test_the_truth_in_forms_of_data_sets(form: str, tmp_path: Path) -> None:
    """Against the truth as TUM, KITTI or Blender's NeRF scenes publish it, one photo is missing."""
    for i in range(N):
        Image.new("L", (64, 48)).save(tmp_path / f"{i:02}.jpg")
    world = [np.column_stack([R.T, c]) for R, c in zip(ROTATIONS, CENTRES, strict=True)]
    if form == "Blender":
        path = tmp_path / "transforms_train.json"
        frames = [
            {
                "file_path": f"./{i:02}",
                "transform_matrix": [*(P @ np.diag([1, -1, -1, 1])).tolist(), [0, 0, 0, 1]],
            }
            for i, P in enumerate(world)
        ]
        path.write_text(json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    elif form == "KITTI":
        path = tmp_path / "poses.txt"
        path.write_text("\n".join(" ".join(map(repr, P.ravel().tolist())) for P in world))
    else:
        path = tmp_path / "groundtruth.txt"
        rows = [
            [float(i), *P[:, 3].tolist(), *Rotation.from_matrix(P[:, :3]).as_quat().tolist()]
            for i, P in enumerate(world)
        ]
        path.write_text("\n".join(" ".join(map(repr, row)) for row in rows))
    degrees = np.full(N - 1, 0.05)
    model = write(tmp_path / "model", *moved(CENTRES[1:], turned(ROTATIONS[1:], degrees)))
    for i in reversed(range(N - 1)):  # named from 00.jpg so far
        names = (tmp_path / "model" / "images.txt").read_text()
        (tmp_path / "model" / "images.txt").write_text(
            names.replace(f" {i:02}.jpg", f" {i + 1:02}.jpg")
        )
    result = compare(model, path, tmp_path)
    assert (result.registered, result.images, result.missing) == (N - 1, N, ("00.jpg",))
    assert 0.02 < result.rotation_median < 0.06
    assert result.position_max < 0.2
    with pytest.raises(EdmHlocError, match="give --images with the folder of the photos"):
        compare(model, path)


def test_uncertainties_are_compared_with_the_errors(tmp_path: Path) -> None:
    """Errors differ by axis; the standard deviations are half of what they should be."""
    rng = np.random.default_rng(5)
    n = 300
    centres, rotations = rng.uniform(-5, 5, (n, 3)), Rotation.random(n, random_state=2).as_matrix()
    truth = write(tmp_path / "truth", centres, rotations)
    position, rotation = np.array([0.1, 0.3, 1.0]), np.array([0.6, 0.3, 0.1])
    extent = max(np.linalg.norm(centres - centre, axis=1).max() for centre in centres)
    off = rng.normal(0, position, (n, 3)) * extent / 100
    turns = Rotation.from_rotvec(rng.normal(0, rotation, (n, 3)), degrees=True).as_matrix()
    found = centres + np.einsum("nji,nj->ni", rotations, off)
    model = write(tmp_path / "model", *moved(found, turns @ rotations))
    assert compare(model, truth).told is None

    file = tmp_path / "model_uncertainty.json"
    one = {"position": list(position / 2), "rotation": list(rotation / 2)}
    file.write_text(json.dumps({"cameras": {f"{i:02}.jpg": one for i in range(1, n)}}))
    comparison = compare(model, truth)
    told = comparison.told
    assert told is not None
    assert told.position == pytest.approx(np.linalg.norm(position) / 2)
    assert told.rotation == pytest.approx(np.linalg.norm(rotation) / 2)
    assert told.position_ratio == pytest.approx(2, rel=0.1)
    assert told.rotation_ratio == pytest.approx(2, rel=0.1)
    assert told.position_within == pytest.approx((0.38, 0.68), abs=0.04)
    assert told.rotation_within == pytest.approx((0.38, 0.68), abs=0.04)
    assert "Uncertain     0.52 % and 0.34° (1 σ, medians); errors are" in str(comparison)

    file.write_text('{"cameras": {"00.jpg": 3}}')
    with pytest.raises(EdmHlocError, match=r"model_uncertainty\.json does not hold"):
        compare(model, truth)
