"""Photos of a model put into rigs: poses that the file gives or that the frames agree on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from edm_hloc.base.colmap import posed_images, with_cameras
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.evaluation.models import compare
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.rigs import put_in_rigs
from edm_hloc.tracks import adjustment
from edm_hloc.tracks.adjustment import Kept, adjust, in_rigs
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views

SIDES = ("front", "right", "back")
FRAMES = 7
F, W, H = 300.0, 320, 240


def matrix(rotation: np.ndarray, translation: Sequence[float]) -> np.ndarray:
    return np.vstack([np.column_stack([rotation, translation]), [0, 0, 0, 1]])


SENSORS = [  # cam_from_rig
    matrix(Rotation.from_euler("y", -40 * k, degrees=True).as_matrix(), [0.3 * k, 0.05 * k, 0])
    for k in range(3)
]
RIGS = [  # rig_from_world
    matrix(Rotation.from_euler("yx", [8 * f, 3 * (f % 3)], degrees=True).as_matrix(), [f, 0, 0.4])
    for f in range(FRAMES)
]


@dataclass(frozen=True)
class Noise:
    pixels: float = 0.0
    degrees: float = 0.0
    metres: float = 0.0


def model_of_a_rig(noise: Noise, *, one_camera: bool = False, missing: Sequence[str] = ()):
    """A model of photos SIDE/FRAME.jpg, one of no rig, and of points around them; and the truth."""
    rng = np.random.default_rng(4)
    points = rng.normal(size=(3000, 3))
    points *= rng.uniform(4, 9, (3000, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    points += [-3, 0, 0]
    models = []
    for wrong in (0.0, 1.0):
        model = pycolmap.Reconstruction()
        for camera_id in range(1, 2 if one_camera else 5):
            camera = pycolmap.Camera(
                model="SIMPLE_PINHOLE", width=W, height=H, params=[F, W / 2, H / 2]
            )
            camera.camera_id = camera_id
            model.add_camera_with_trivial_rig(camera)
        seen: dict[int, list[pycolmap.TrackElement]] = {}
        poses = {
            f"{side}/{f}.jpg": (SENSORS[k] @ RIGS[f], k)
            for f in range(FRAMES)
            for k, side in enumerate(SIDES)
        }
        poses["single.jpg"] = RIGS[2] @ matrix(np.eye(3), [0.5, 0.2, 0]), 3
        for number, (name, (T, k)) in enumerate(poses.items(), start=1):
            if name in missing:
                continue
            in_camera = points @ T[:3, :3].T + T[:3, 3]
            with np.errstate(divide="ignore"):
                xy = F * in_camera[:, :2] / in_camera[:, 2:] + [W / 2, H / 2]
            inside = (in_camera[:, 2] > 0.5) & (xy > 0).all(axis=1) & (xy < [W, H]).all(axis=1)
            shown = np.flatnonzero(inside)
            xy = xy[shown] + noise.pixels * rng.normal(size=(len(shown), 2))
            image = pycolmap.Image(
                name=name, keypoints=xy, camera_id=1 if one_camera else k + 1, image_id=number
            )
            turn = Rotation.from_rotvec(np.radians(noise.degrees) * rng.normal(size=3)).as_matrix()
            moved = matrix(turn, noise.metres * rng.normal(size=3)) if wrong else np.eye(4)
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d((moved @ T)[:3]))
            for index, point in enumerate(shown.tolist()):
                seen.setdefault(point, []).append(pycolmap.TrackElement(number, index))
        for point, elements in seen.items():
            if len(elements) > 1:
                model.add_point3D(points[point], pycolmap.Track(elements))
        models.append(model)
    return models[1], models[0]


def write_rig(path: Path, *, scale: float | None = None, extra: Sequence[str] = ()) -> Path:
    """A file of the rig; with the poses in it, at a scale, or without."""
    cameras = []
    for side, T in zip((*SIDES, *extra), (*SENSORS, *[SENSORS[1]] * len(extra)), strict=True):
        entry: dict[str, object] = {"image_prefix": f"{side}/"}
        if side == "front":
            entry["ref_sensor"] = True
        elif scale is not None:
            x, y, z, w = Rotation.from_matrix(T[:3, :3]).as_quat().tolist()
            entry["cam_from_rig_rotation"] = [w, x, y, z]
            entry["cam_from_rig_translation"] = (scale * T[:3, 3]).tolist()
        cameras.append(entry)
    path.write_text(json.dumps([{"cameras": cameras}]))
    return path


def relative_poses(model: pycolmap.Reconstruction) -> dict[str, list[np.ndarray]]:
    """cam_from_rig of the photos by side, each of its frame's reference photo."""
    posed = posed_images(model)
    found: dict[str, list[np.ndarray]] = {}
    for side in SIDES[1:]:
        for f in range(FRAMES):
            front, other = posed.get(f"front/{f}.jpg"), posed.get(f"{side}/{f}.jpg")
            if front and other:
                relative = other.cam_from_world() * front.cam_from_world().inverse()
                found.setdefault(side, []).append(relative.matrix())
    return found


@pytest.mark.parametrize("one_camera", [False, True])
def test_photos_get_one_pose_in_their_rig(one_camera: bool, tmp_path: Path) -> None:
    noisy, _ = model_of_a_rig(Noise(degrees=0.2, metres=0.02), one_camera=one_camera)
    before = noisy.num_points3D()
    model, rigs = put_in_rigs(noisy, write_rig(tmp_path / "rig.json"))
    assert (rigs.photos, rigs.frames, rigs.scale) == (3 * FRAMES, FRAMES, 1)
    assert not rigs.given
    assert not rigs.calibrated
    assert 0.05 < rigs.rotation < 0.5
    assert model.num_points3D() == before
    assert len(posed_images(model)) == 3 * FRAMES + 1
    for k, relatives in enumerate(relative_poses(model).values(), start=1):
        assert np.ptp(relatives, axis=0).max() < 1e-9
        assert relatives[0] == pytest.approx(SENSORS[k][:3], abs=0.03)
    # each photo of a frame counts alike
    for f in range(FRAMES):
        turns = []
        for name in (f"{side}/{f}.jpg" for side in SIDES):
            new, old = (posed_images(m)[name].cam_from_world().rotation for m in (model, noisy))
            turns.append((old.inverse() * new).matrix())
        axes = Rotation.from_matrix(turns).as_rotvec()
        assert np.abs(axes.mean(axis=0)).max() < 0.05 * np.abs(axes).max()
    # the photo of no rig is where it was
    single, was = (posed_images(m)["single.jpg"].cam_from_world() for m in (model, noisy))
    assert single.matrix() == pytest.approx(was.matrix())
    cameras = {n.partition("/")[0]: i.camera_id for n, i in posed_images(model).items()}
    assert len(set(cameras.values())) == 4


def test_the_rig_makes_noisy_photos_more_exact(tmp_path: Path) -> None:
    noise = Noise(pixels=0.8, degrees=0.15, metres=0.02)
    noisy, true = model_of_a_rig(noise, missing=("front/3.jpg", "back/5.jpg"))
    file = write_rig(tmp_path / "rig.json")
    kept = Kept(intrinsics=True, rigs=file)
    found, rigs, freedom = in_rigs(noisy, kept, TrackConfig(), MappingOptions())
    assert (rigs.photos, rigs.frames) == (3 * FRAMES - 2, FRAMES)
    assert freedom.constant == set(found.cameras)
    for relatives in relative_poses(found).values():
        assert np.ptp(relatives, axis=0).max() < 1e-9
    alone = pycolmap.Reconstruction(noisy)
    tracks = Tracks.of(alone, Views.of(alone))
    adjust(alone, tracks, 3.0, Kept(intrinsics=True).freedom(alone), MappingOptions(), again=True)
    errors = {}
    for name, model in (("true", true), ("noisy", noisy), ("alone", alone), ("found", found)):
        (tmp_path / name).mkdir()
        model.write_text(tmp_path / name)
        errors[name] = compare(tmp_path / name, tmp_path / "true")
    assert errors["found"].registered == 3 * FRAMES - 1
    assert errors["found"].rotation_median < 0.4 * errors["noisy"].rotation_median
    assert errors["found"].position_median < 0.4 * errors["noisy"].position_median
    assert errors["found"].rotation_median < 0.8 * errors["alone"].rotation_median
    assert errors["found"].position_median < 0.8 * errors["alone"].position_median


def test_poses_of_the_file_stay_and_scale_the_model(tmp_path: Path) -> None:
    noisy, _ = model_of_a_rig(Noise(pixels=0.3, degrees=0.05, metres=0.005))
    file = write_rig(tmp_path / "rig.json", scale=2.5)
    found, rigs, freedom = in_rigs(noisy, Kept(rigs=file), TrackConfig(), MappingOptions())
    assert rigs.scale == pytest.approx(2.5, rel=0.05)
    assert freedom.rigid == rigs.given
    assert len(rigs.given) == 2
    for k, relatives in enumerate(relative_poses(found).values(), start=1):
        expected = np.column_stack([SENSORS[k][:3, :3], 2.5 * SENSORS[k][:3, 3]])
        assert np.abs(np.array(relatives) - expected).max() < 1e-9
    posed = posed_images(found)
    ends = [posed[f"front/{f}.jpg"].projection_center() for f in (0, FRAMES - 1)]
    truth = [-RIGS[f][:3, :3].T @ RIGS[f][:3, 3] for f in (0, FRAMES - 1)]
    assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(
        2.5 * np.linalg.norm(truth[1] - truth[0]), rel=0.01
    )


def test_wrong_files_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, _ = model_of_a_rig(Noise())
    file = write_rig(tmp_path / "rig.json", extra=["left"])
    _, rigs = put_in_rigs(model, file)
    assert rigs.photos == 3 * FRAMES
    assert "No photo of the model is named left/…" in caplog.text
    for text, message in (
        ("[]", "describes no rig"),
        ("{", "is damaged or no configuration of rigs"),
        ('[{"cameras": []}]', "is damaged or no configuration of rigs"),
        ('[{"cameras": [{"image_prefix": "front/"}]}]', 'its reference, with "ref_sensor": true'),
        (
            '[{"cameras": [{"image_prefix": "a/", "ref_sensor": true}]}]',
            r"is named a/…, as .* says of the reference camera; the first is 'back/0\.jpg'",
        ),
        (
            '[{"cameras": [{"image_prefix": "front/1", "ref_sensor": true}, '
            '{"image_prefix": "right/"}]}]',
            "No two photos of the model are of one frame",
        ),
    ):
        file.write_text(text)
        with pytest.raises(EdmHlocError, match=message):
            put_in_rigs(model, file)
    with pytest.raises(EdmHlocError, match=r"none\.json"):
        put_in_rigs(model, tmp_path / "none.json")


def test_photos_far_off_their_rig_keep_what_they_see(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noisy, true = model_of_a_rig(Noise(pixels=0.3, degrees=2.0, metres=0.1))
    kept = Kept(intrinsics=True, rigs=write_rig(tmp_path / "rig.json"))
    found, rigs, _ = in_rigs(noisy, kept, TrackConfig(), MappingOptions())
    assert rigs.rotation > 1  # 10 pixels
    assert not caplog.text  # nor do they agree without it
    assert found.num_points3D() > 0.99 * noisy.num_points3D()
    assert found.compute_num_observations() > 0.99 * noisy.compute_num_observations()
    for name, model in (("true", true), ("found", found)):
        (tmp_path / name).mkdir()
        model.write_text(tmp_path / name)
    assert compare(tmp_path / "found", tmp_path / "true").rotation_max < 0.05


def renamed(model: pycolmap.Reconstruction, folders: dict[str, str]) -> pycolmap.Reconstruction:
    """The model with the photos of some folders in others."""
    copy = pycolmap.Reconstruction(model)
    for image in copy.images.values():
        folder, slash, file = image.name.partition("/")
        image.name = f"{folders.get(folder, folder)}{slash}{file}"
    return copy


@pytest.mark.parametrize(
    ("folders", "prefixes"),
    [
        (("0/10", "1/10", "2/10"), ("0/", "1/", "2/")),  # "0/" is in 0/10/1.jpg once more
        (("cam1", "cam10", "cam2"), ("cam1", "cam10", "cam2")),
        (("c/a", "c", "back"), ("c/a/", "c/", "back/")),
        (("links ü/a", "rechts ü/a", "b"), ("links ü\\a\\", "rechts ü\\a\\", "b\\")),
    ],
)
def test_prefixes_in_each_other(
    folders: Sequence[str], prefixes: Sequence[str], tmp_path: Path
) -> None:
    model = renamed(model_of_a_rig(Noise())[0], dict(zip(SIDES, folders, strict=True)))
    cameras = [{"image_prefix": p, "ref_sensor": p == prefixes[0]} for p in prefixes]
    for order in (cameras, cameras[::-1]):
        (tmp_path / "rig.json").write_text(json.dumps([{"cameras": order}]))
        found, rigs = put_in_rigs(model, tmp_path / "rig.json")
        assert (rigs.photos, rigs.frames) == (3 * FRAMES, FRAMES)
        assert posed_images(found).keys() == posed_images(model).keys()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"cam_from_rig_rotation": [1, 0, 0, 0]}, "needs both cam_from_rig_rotation and"),
        ({"cam_from_rig_translation": [1, 0, 0]}, "needs both cam_from_rig_rotation and"),
        (
            {"cam_from_rig_rotation": [1, 0, 0, 0, 0], "cam_from_rig_translation": [1, 0, 0]},
            r"camera 'right/': cam_from_rig_rotation is no quaternion",
        ),
        (
            {"cam_from_rig_rotation": [0, 0, 0, 0], "cam_from_rig_translation": [1, 0, 0]},
            "is no quaternion",
        ),
        (
            {"cam_from_rig_rotation": [1, 0, 0, 0], "cam_from_rig_translation": [1, 0]},
            r"cam_from_rig_translation is not \[x, y, z\]",
        ),
        (
            {"cam_from_rig_rotation": [1, 0, 0, "nan"], "cam_from_rig_translation": [1, 0, 0]},
            "not finite",
        ),
        ({"cam_from_rig_rotation": 1}, "is no list of numbers"),
        ({"camera_params": [300, 160, 120]}, "go together"),
        ({"camera_model_name": "PINHOLE", "camera_params": [300]}, "another number of parameters"),
        ({"camera_model_name": "LENS", "camera_params": [300]}, "no camera model 'LENS'"),
        (
            {"camera_model_name": "EQUIRECTANGULAR", "camera_params": [320, 160]},
            "camera 'right/': EQUIRECTANGULAR is a camera of all directions",
        ),
        (
            {"camera_model_name": "SIMPLE_PINHOLE", "camera_params": [0, 160, 120]},
            "has a focal length of 0 pixels",
        ),
        (
            {"camera_model_name": "SIMPLE_PINHOLE", "camera_params": [600, 320, 240]},
            r"params of right/ .* for photos of another size: .* \(320, 240\) .* 320 × 240 pixels",
        ),
        ({"ref_sensor": "no"}, "has to be true or false"),
        ({"ref_sensor": True}, "its reference, with .* and only one"),
        ({"image_prefix": "front/"}, "2 cameras with the image_prefix 'front/'"),
        ({"image_prefix": None}, "is damaged or no configuration of rigs"),
        (
            {"cam_from_rig_rotation": [0.2, 0, 0.9, 0], "cam_from_rig_translation": [0, 0, 0]},
            "° .median. off the rigs of .* not their inverses",
        ),
        (
            {"cam_from_rig_rotation": [1, 0, 0, 0], "cam_from_rig_translation": [-1, 0, 0]},
            "on the other side",
        ),
    ],
)
def test_what_a_file_says_of_a_camera_can_be(
    entry: dict[str, object], message: str, tmp_path: Path
) -> None:
    model, _ = model_of_a_rig(Noise())
    cameras = [{"image_prefix": "front/", "ref_sensor": True}, {"image_prefix": "right/"} | entry]
    (tmp_path / "rig.json").write_text(json.dumps([{"cameras": cameras}]))
    with pytest.raises(EdmHlocError, match=message) as error:
        put_in_rigs(model, tmp_path / "rig.json")
    assert str(tmp_path / "rig.json") in str(error.value)


def test_a_camera_that_no_frame_has_beside_the_reference(tmp_path: Path) -> None:
    apart = [f"front/{f}.jpg" for f in (3, 4, 5, 6)] + [f"back/{f}.jpg" for f in (0, 1, 2)]
    model, _ = model_of_a_rig(Noise(), missing=apart)
    with pytest.raises(EdmHlocError, match=r"no two photos of one frame named front/… and back/…"):
        put_in_rigs(model, write_rig(tmp_path / "rig.json"))


def test_photos_of_one_camera_have_one_size(tmp_path: Path) -> None:
    model, _ = model_of_a_rig(Noise())
    file = write_rig(tmp_path / "rig.json")
    other = pycolmap.Camera(model="SIMPLE_PINHOLE", width=W // 2, height=H // 2, params=[F, 80, 60])
    cameras = {i: pycolmap.Camera(c.todict()) for i, c in model.cameras.items()}
    own = {image.image_id: image.camera_id for image in model.images.values()}
    number = posed_images(model)["right/0.jpg"].image_id
    for size, focal in (((W // 2, H // 2), F), ((W, H), 100 * F)):
        other.width, other.height, other.focal_length, other.camera_id = *size, focal, 9
        several = with_cameras(model, [*cameras.values(), other], own | {number: 9})
        if size != (W, H):
            with pytest.raises(EdmHlocError, match=r"right/… .* several sizes \(160 × 120, 320 × "):
                put_in_rigs(several, file)
    found, _ = put_in_rigs(several, file)  # the first photo's camera is not as the others
    assert {round(camera.focal_length) for camera in found.cameras.values()} == {F}


def test_rigs_that_another_file_described_are_taken_apart_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = put_in_rigs(model_of_a_rig(Noise())[0], write_rig(tmp_path / "rig.json"))
    assert not caplog.text
    two = [{"image_prefix": "front/", "ref_sensor": True}, {"image_prefix": "right/"}]
    (tmp_path / "two.json").write_text(json.dumps([{"cameras": two}]))
    put_in_rigs(model, tmp_path / "two.json")
    assert "7 photos in rigs that" in caplog.text
    assert "such as back/0.jpg" in caplog.text


def test_a_photo_that_moved_in_its_rig_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _ = model_of_a_rig(Noise(pixels=0.3))
    file = write_rig(tmp_path / "rig.json")
    _, rigs, _ = in_rigs(model, Kept(intrinsics=True, rigs=file), TrackConfig(), MappingOptions())
    assert rigs.off == ()
    assert rigs.residuals[1] < 1.2 * rigs.residuals[0]
    images = posed_images(model)
    images["right/2.jpg"].name, images["right/5.jpg"].name = "right/5.jpg", "right/2.jpg"
    _, rigs, _ = in_rigs(model, Kept(intrinsics=True, rigs=file), TrackConfig(), MappingOptions())
    assert {"right/2.jpg", "right/5.jpg"} <= set(rigs.off)
    assert not any(name.startswith("back/") for name in rigs.off)
    assert not caplog.text


def test_photos_of_other_moments_are_told_before_the_adjustment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes many times as long as that of photos that fit their rig."""
    model, _ = model_of_a_rig(Noise(pixels=0.3))
    for name, image in posed_images(model).items():
        side, _, file = name.partition("/")
        if side == "right":
            image.name = f"right/{(int(file[0]) + 1) % FRAMES}.jpg"

    def adjusted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adjustment, "adjuster_of", adjusted)
    kept = Kept(intrinsics=True, rigs=write_rig(tmp_path / "rig.json"))
    with pytest.raises(KeyboardInterrupt):
        in_rigs(model, kept, TrackConfig(), MappingOptions())
    assert "rig.json most photos agree to" in caplog.text
    assert "are photos of equal names of several moments" in caplog.text
