"""COLMAP's layouts around undistorted photos: for Gaussian splatting, nerfstudio and OpenMVS."""

from __future__ import annotations

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.files import write_whole
from edm_hloc.interop.exports import points_ply, put_model, write_transforms
from edm_hloc.interop.targets.undistorted import Undistorted


def write_sparse(undistorted: Undistorted) -> None:
    """Writes `sparse/0`: the binary model, and its points as points3D.ply with normals of zero.

    The PLY is what readers of Gaussian splatting expect, which otherwise make it on their first
    run.
    """
    folder = undistorted.out / "sparse" / "0"
    put_model(undistorted.model, folder, text=False)
    write_whole(folder / "points3D.ply", points_ply(undistorted.model, normals=True))


def write_nerfstudio(undistorted: Undistorted) -> None:
    """Writes transforms.json and sparse_pc.ply beside the files of `write_sparse`."""
    write_sparse(undistorted)
    out, masks = undistorted.out, undistorted.masks
    write_whole(out / "sparse_pc.ply", points_ply(undistorted.model, normals=True))
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
    put_model(model, undistorted.out / "sparse", text=True)
