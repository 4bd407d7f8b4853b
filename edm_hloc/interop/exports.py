"""Writes a COLMAP model in other formats: COLMAP binary and text, PLY, nerfstudio."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images, read_model, write_model_files
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.files import make_folder, refuse_foreign, remove_leftover, write_whole
from edm_hloc.base.fingerprint import file_stamp
from edm_hloc.base.text import read_json_object
from edm_hloc.images.find import image_stamps
from edm_hloc.images.sizes import fit_model
from edm_hloc.mapping.output import EXPORTED
from edm_hloc.surface import ply

logger = logging.getLogger(__name__)

_MARK = {"made_by": "edm-hloc export-model"}  # nerfstudio passes over keys that it does not know
_OF_EARLIER_VERSIONS = re.compile(rb'\{\n  "camera_model": "OPENCV(_FISHEYE)?",\n  "frames": \[')

# nerfstudio's camera model for each of COLMAP's, and the names of its parameters in their order.
_NERFSTUDIO = {
    "SIMPLE_PINHOLE": ("OPENCV", ("f", "cx", "cy")),
    "PINHOLE": ("OPENCV", ("fl_x", "fl_y", "cx", "cy")),
    "SIMPLE_RADIAL": ("OPENCV", ("f", "cx", "cy", "k1")),
    "RADIAL": ("OPENCV", ("f", "cx", "cy", "k1", "k2")),
    "OPENCV": ("OPENCV", ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")),
    "FULL_OPENCV": ("OPENCV", ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2", "k3")),
    "OPENCV_FISHEYE": ("OPENCV_FISHEYE", ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "k3", "k4")),
    "SIMPLE_RADIAL_FISHEYE": ("OPENCV_FISHEYE", ("f", "cx", "cy", "k1")),
    "RADIAL_FISHEYE": ("OPENCV_FISHEYE", ("f", "cx", "cy", "k1", "k2")),
}
_DISTORTION = {"OPENCV": ("k1", "k2", "p1", "p2"), "OPENCV_FISHEYE": ("k1", "k2", "k3", "k4")}
# COLMAP's camera looks along +z with y down, OpenGL's along −z with y up.
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def export_binary(model: Path, out: Path) -> None:
    """Writes COLMAP's binary files into the folder `out`.

    Raises:
        EdmHlocError: there is no model, `out` is of a run or holds a model in text form or one that
            no export has written, or writing fails.
    """
    _export_colmap(model, out, text=False)


def export_text(model: Path, out: Path) -> None:
    """Writes COLMAP's text files into the folder `out`; warns of names that COLMAP cuts off there.

    Raises:
        EdmHlocError: there is no model, `out` is of a run or holds a model in binary form or one
            that no export has written, or writing fails.
    """
    read = _export_colmap(model, out, text=True)
    cut = [image.name for image in read.images.values() if re.search(r"\s", image.name)]
    if cut:
        logger.warning(
            "%d photos have white space in their names, such as %r: COLMAP's reader of %s ends a "
            "name there, and finds them in the binary form only (leave out --text).",
            *(len(cut), min(cut), out / "images.txt"),
        )


def _export_colmap(model: Path, out: Path, *, text: bool) -> pycolmap.Reconstruction:
    read = read_model(model)
    # COLMAP reads only one of the two forms of a folder, which might be the outdated one
    other = out / ("cameras.bin" if text else "cameras.txt")
    if other.exists():
        raise EdmHlocError(
            f"{out} holds a model in another form ({other.name}): choose another folder."
        )
    if (out / "run.json").exists():
        raise EdmHlocError(
            f"{out} is the folder of a run, whose model is {out / 'model'}: choose another folder."
        )
    end = ".txt" if text else ".bin"
    names = [f"{part}{end}" for part in ("cameras", "images", "points3D", "rigs", "frames")]
    there = _stamps(out, names)
    if there and there != _exported(out):
        raise EdmHlocError(
            f"{out} holds a model that edm-hloc export-model has not written, or that was changed "
            "since, and it is not written over: move it, or choose another folder."
        )
    put_model(read, out, text=text)
    write_whole(out / EXPORTED, json.dumps(_stamps(out, names)))
    return read


def _stamps(folder: Path, names: Iterable[str]) -> dict[str, object]:
    """Size and time of those files that are there, as JSON gives them."""
    found = {name: file_stamp(folder / name) for name in names}
    return {name: list(stamp) for name, stamp in found.items() if stamp is not None}


def _exported(folder: Path) -> object:
    """What `EXPORTED` in a folder tells; None without it."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / EXPORTED).read_text("utf-8"))
    return None


def put_model(model: pycolmap.Reconstruction, folder: Path, *, text: bool) -> None:
    """Writes COLMAP's files of a model into a folder, each whole; others that are there stay.

    Raises:
        EdmHlocError: the folder cannot be made; as a `NoRoomError`: the files cannot be written.
    """
    temporary = folder / ".edm_hloc.tmp"
    make_folder(folder)
    try:
        remove_leftover(temporary)
        temporary.mkdir()
        write_model_files(model, temporary, text=text, out=folder)
        for path in temporary.iterdir():
            path.replace(folder / path.name)
    except OSError as error:
        raise NoRoomError(f"Cannot write into {folder}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def export_ply(model: Path, out: Path) -> None:
    """Writes the points of a model with their colours as a binary PLY file.

    Raises:
        EdmHlocError: there is no model, it has no points, or the file cannot be written.
    """
    read = read_model(model)
    if not read.num_points3D():
        raise EdmHlocError(f"The model in {model} has no points to write.")
    write_whole(out, points_ply(read))


def points_ply(model: pycolmap.Reconstruction, *, normals: bool = False) -> bytes:
    """A binary PLY of the points with 8-bit colours, and with normals of zero if asked."""
    points = model.points3D.values()
    xyz = np.array([point.xyz for point in points]).reshape(-1, 3)
    colours = np.array([point.color for point in points], np.uint8).reshape(-1, 3)
    return ply.points_ply(xyz, colours, normals=normals)


def export_nerfstudio(model: Path, out: Path, images: Path | None = None) -> list[Path]:
    """Writes nerfstudio's `transforms.json` and, beside it, the points as `sparse_pc.ply`.

    The points of any other `NAME.json` are in `NAME_sparse_pc.ply`.

    Poses are world from camera in OpenGL's convention (y up, looking along −z). The world frame is
    the model's, so `applied_transform` is the identity. Each frame has its own intrinsics and
    distortion in COLMAP's pixel frame, which is also nerfstudio's.

    Args:
        model: folder of the COLMAP model.
        out: the JSON file.
        images: folder of the photos, for their absolute paths; by default paths are relative, in
            `images/`.

    Returns:
        The files.

    Raises:
        EdmHlocError: there is no model, or none with registered images; `images` has none of its
            photos; a camera model is unknown to nerfstudio; fisheye and other cameras are mixed;
            `out` is of another program, or the file of the points is not of `out`; or a file cannot
            be written.
    """
    _refuse_other_poses(out)
    read = read_model(model)
    if images is not None:
        posed = posed_images(read)
        if posed and not image_stamps(images, posed):
            raise EdmHlocError(
                f"None of the {len(posed)} photos of the model is in {images}, such as "
                f"{next(iter(posed))}: give their folder by --images."
            )
        read, _ = fit_model(read, images, f"the model {model}")
    frames = {}
    for name in posed_images(read):
        path = f"images/{name}" if images is None else (Path(images).resolve() / name).as_posix()
        frames[name] = {"file_path": path}
    if not frames:
        raise EdmHlocError(f"The model in {model} has no posed images.")
    if not read.num_points3D():
        write_transforms(read, out, frames, None)
        return [out]
    of_other = "" if out.name == "transforms.json" else f"{out.stem}_"
    points = out.with_name(f"{of_other}sparse_pc.ply")
    if points.exists() and _points_of(out) != points.name:
        raise EdmHlocError(
            f"{points} is there already, and {out} does not name it as its points: move it, or "
            "export into another folder."
        )
    write_transforms(read, out, frames, points.name)
    export_ply(model, points)
    return [out, points]


def _refuse_other_poses(out: Path) -> None:
    with contextlib.suppress(OSError), out.open("rb") as file:
        if _OF_EARLIER_VERSIONS.match(file.read(200)):
            return
    refuse_foreign(out, json.dumps(_MARK)[1:-1].encode())


def _points_of(transforms: Path) -> object:
    """The file of points that a `transforms.json` names; None if it names none or is not there."""
    with contextlib.suppress(EdmHlocError, OSError):
        return read_json_object(transforms, "file of poses").get("ply_file_path")
    return None


def write_transforms(
    model: pycolmap.Reconstruction,
    out: Path,
    files: Mapping[str, Mapping[str, str]],
    points: str | None,
) -> None:
    """Writes a `transforms.json`, see `export_nerfstudio`.

    Args:
        model: with posed images.
        out: the JSON file.
        files: by the image's name, "file_path" and where there are masks "mask_path".
        points: name of a PLY file beside `out`.

    Raises:
        EdmHlocError: a camera model is unknown to nerfstudio; fisheye and other cameras are mixed;
            or the file cannot be written.
    """
    kind, frames = nerfstudio_frames(model)
    images = posed_images(model)
    record: dict[str, object] = {
        **_MARK,
        "camera_model": kind,
        "frames": [
            {**files[name], **frame, "colmap_im_id": images[name].image_id}
            for name, frame in frames.items()
        ],
        "applied_transform": np.eye(4)[:3].tolist(),
    }
    if points is not None:
        record["ply_file_path"] = points
    write_whole(out, json.dumps(record, indent=2))


def nerfstudio_frames(
    model: pycolmap.Reconstruction,
) -> tuple[str, dict[str, dict[str, object]]]:
    """What nerfstudio's `transforms.json` says of the posed images of a model.

    Returns:
        The camera model of all, and by the image's name intrinsics, distortion and the pose.

    Raises:
        EdmHlocError: a camera model is unknown to nerfstudio; fisheye and other cameras are mixed.
    """
    frames, kinds = {}, set()
    for name, image in posed_images(model).items():
        intrinsics = nerfstudio_camera(model.cameras[image.camera_id])
        kinds.add(str(intrinsics.pop("camera_model")))
        world_from_cam = np.eye(4)
        world_from_cam[:3] = image.cam_from_world().inverse().matrix()
        frames[name] = {**intrinsics, "transform_matrix": (world_from_cam @ _OPENGL).tolist()}
    if len(kinds) > 1:
        raise EdmHlocError(
            "nerfstudio takes one kind of camera model, but the model has both fisheye and other "
            "cameras: export them separately."
        )
    return kinds.pop(), frames


def nerfstudio_camera(camera: pycolmap.Camera) -> dict[str, object]:
    """Intrinsics and distortion under nerfstudio's names, in pixels of COLMAP's frame.

    Raises:
        EdmHlocError: the camera model is unknown to nerfstudio.
    """
    kind, names = _NERFSTUDIO.get(camera.model_name, ("", ()))
    further = camera.params[len(names) :]  # of FULL_OPENCV, k4 to k6 of a denominator
    if not kind or further.any():
        with_what = f" with k4, k5, k6 = {', '.join(f'{k:.3g}' for k in further)}" if kind else ""
        raise EdmHlocError(
            f"nerfstudio does not know the camera model {camera.model_name}{with_what}: it "
            f"takes {', '.join(_NERFSTUDIO)}. Without distortion: edm-hloc export-model --for "
            "nerfstudio."
        )
    values = dict(zip(names, map(float, camera.params), strict=False))
    focal = values.pop("f", None)
    if focal is not None:
        values |= {"fl_x": focal, "fl_y": focal}
    values = dict.fromkeys(_DISTORTION[kind], 0.0) | values
    return {"camera_model": kind, "w": camera.width, "h": camera.height, **values}
