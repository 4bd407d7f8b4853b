"""Writes the mesh of a run: glTF with textures, PLY, or a page that shows it without network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import make_folder, refuse_foreign, write_whole
from edm_hloc.mapping.georeference import is_on_earth
from edm_hloc.pipelines.mesh import Surfaces
from edm_hloc.report.packing import pack
from edm_hloc.report.page import content_security_policy, environment, static
from edm_hloc.report.scene import upright, upright_views
from edm_hloc.surface import glb, ply

_PAGE_MARK = " – edm_hloc mesh</title>".encode()  # in every page
_MARKS = {".glb": glb.MARK, ".html": _PAGE_MARK, ".ply": ply.MARK}


@dataclass(frozen=True)
class WrittenMesh:
    """What was written.

    Attributes:
        triangles: their number.
        points: number of points of the cloud that the surface goes through.
        matches: number of matches that these are from.
    """

    triangles: int
    points: int
    matches: int


def check_mesh_file(path: Path) -> None:
    """Called before the work: raises EdmHlocError unless the name of a file is that of a mesh, and
    it can be written, which is not done over a file of others."""
    if path.suffix.lower() not in _MARKS:
        raise EdmHlocError(f"{path} must end with .glb (glTF), .html or .ply.")
    if path.is_dir():
        raise EdmHlocError(f"{path} is a folder: choose another name for the mesh.")
    refuse_foreign(path, _MARKS[path.suffix.lower()])
    make_folder(path.parent)


def write_mesh(model: Path, images: Path, file: Path) -> WrittenMesh:
    """Makes the mesh of a model and writes it.

    Args:
        model: folder of the model of a run.
        images: folder of its photos.
        file: glTF (.glb), upright, with the photos as its texture; a page that shows this (.html);
            or PLY, in the frame of the model, with more triangles and a colour for each vertex.

    Raises:
        EdmHlocError: see `check_mesh_file` and `pipelines.mesh.Surfaces.of_run`.
    """
    check_mesh_file(file)
    found = Surfaces.of_run(model, images)
    number, matches = len(found.cloud), found.matches
    if file.suffix.lower() == ".ply":
        mesh = found.mesh()
        write_whole(file, ply.mesh_ply(mesh))
        return WrittenMesh(len(mesh), number, matches)
    textured = found.textured()
    views = upright_views(found.model, images)
    up = upright(views, found.cloud.points, on_earth=is_on_earth(model))
    written = WrittenMesh(len(textured), number, matches)
    centres = np.array([view.centre for view in views])
    vertices = np.concatenate([textured.vertices, textured.rest.vertices])
    within = taken_within(vertices @ up.T, centres @ up.T)
    data = glb.mesh_glb(textured, up, two_sided=not within)
    write_whole(
        file, data if file.suffix.lower() == ".glb" else mesh_page(data, file.stem, written)
    )
    return written


def taken_within(vertices: np.ndarray, centres: np.ndarray) -> bool:
    """Whether most photos were taken inside what they show, as in a room or a courtyard.

    Seen from outside its walls would hide it, were they shown from behind.

    Args:
        vertices: (N, 3) of the mesh, y up.
        centres: (C, 3) of the cameras.
    """
    low, high = np.percentile(vertices, [2, 98], axis=0)
    inside = ((low < centres) & (centres < high)).all(axis=1)
    return bool(inside.mean() > 0.5)


def mesh_page(data: bytes, title: str, written: WrittenMesh) -> str:
    """The page of a glTF file."""
    scripts = [static("three.min.js"), static("common.js") + static("mesh.js")]
    return (
        environment()
        .get_template("mesh.html.j2")
        .render(
            title=title,
            facts=f"{written.triangles:,} triangles from {written.matches:,} matches",
            policy=content_security_policy(scripts),
            css=static("mesh.css"),
            scripts=scripts,
            mesh=pack(data),
        )
    )
