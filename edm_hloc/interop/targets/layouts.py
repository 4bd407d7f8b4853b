"""COLMAP's layouts around undistorted photos: for Gaussian splatting, nerfstudio and OpenMVS."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images, quiet_colmap
from edm_hloc.base.files import write_whole
from edm_hloc.interop.exports import write_transforms
from edm_hloc.interop.targets.undistorted import Undistorted


def write_sparse(undistorted: Undistorted) -> None:
    """Writes `sparse/0`: the binary model, and its points as points3D.ply with normals of zero.

    The PLY is what readers of Gaussian splatting expect, which otherwise make it on their first
    run.
    """
    folder = undistorted.out / "sparse" / "0"
    _write_model(undistorted.model, folder, text=False)
    write_whole(folder / "points3D.ply", points_ply(undistorted.model))


def write_nerfstudio(undistorted: Undistorted) -> None:
    """Writes transforms.json and sparse_pc.ply beside the files of `write_sparse`."""
    write_sparse(undistorted)
    out, masks = undistorted.out, undistorted.masks
    write_whole(out / "sparse_pc.ply", points_ply(undistorted.model))
    frames = {
        name: {"file_path": f"{undistorted.photos}/{name}"}
        | ({} if masks is None else {"mask_path": f"{masks}/{name}.png"})
        for name in posed_images(undistorted.model)
    }
    write_transforms(undistorted.model, out / "transforms.json", frames, "sparse_pc.ply")


def write_openmvs(undistorted: Undistorted) -> None:
    """Writes the text model that InterfaceCOLMAP reads in `sparse`; points need a track there."""
    model = undistorted.model
    for point_id, point in list(model.points3D.items()):
        if not point.track.length():
            model.delete_point3D(point_id)
    _write_model(model, undistorted.out / "sparse", text=True)


def points_ply(model: pycolmap.Reconstruction) -> bytes:
    """A binary PLY of the points with normals of zero and 8-bit colours."""
    fields = [(axis, "<f4") for axis in ("x", "y", "z", "nx", "ny", "nz")]
    fields += [(colour, "u1") for colour in ("red", "green", "blue")]
    table = np.zeros(model.num_points3D(), fields)
    for row, point in enumerate(model.points3D.values()):
        table[row] = (*point.xyz, 0, 0, 0, *point.color)
    kinds = {"<f4": "float", "u1": "uchar"}
    lines = [f"property {kinds[kind]} {name}" for name, kind in fields]
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}", *lines]
    return "\n".join([*lines, "end_header\n"]).encode() + table.tobytes()


def _write_model(model: pycolmap.Reconstruction, folder: Path, *, text: bool) -> None:
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with quiet_colmap():
            model.write_text(temporary) if text else model.write_binary(temporary)
        folder.mkdir(exist_ok=True)
        for path in temporary.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
