"""Meshes of fewer triangles, by COLMAP: quadric edge collapse (Garland and Heckbert, 1997)."""

from __future__ import annotations

from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.files import scratch_folder, write_whole
from edm_hloc.surface.ply import Mesh, mesh_ply, read_mesh


def simplified(mesh: Mesh, triangles: int) -> Mesh:
    """A mesh of at most about as many triangles; the mesh itself where it has no more."""
    if len(mesh.triangles) <= triangles:
        return mesh
    middle = mesh.vertices.mean(axis=0)  # the file has single precision
    moved = Mesh(mesh.vertices - middle, mesh.colours, mesh.triangles)
    with scratch_folder() as folder:
        before, after = Path(folder) / "before.ply", Path(folder) / "after.ply"
        write_whole(before, mesh_ply(moved))
        options = pycolmap.MeshSimplificationOptions()
        options.target_face_ratio = triangles / len(mesh.triangles)
        with quiet_colmap():
            pycolmap.simplify_mesh(before, after, options)
        found = read_mesh(after)
    return Mesh(found.vertices + middle, found.colours, found.triangles)
