"""The mesh of a run: from its raw matches and its model to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.at_work import at_work
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import read_json_object
from edm_hloc.images.masks import find_masks
from edm_hloc.images.sizes import fit_model
from edm_hloc.mapping.backdrop import BackdropSummary
from edm_hloc.mapping.output import run_folder
from edm_hloc.matching.masked import MaskedMatchReader
from edm_hloc.pipelines.matching import find_backgrounds
from edm_hloc.pipelines.run_entries import recorded_folder
from edm_hloc.surface.cloud import oriented_cloud
from edm_hloc.surface.glb import mesh_glb
from edm_hloc.surface.ply import Mesh, mesh_ply
from edm_hloc.surface.poisson import poisson_mesh
from edm_hloc.surface.samples import samples_of

SUFFIXES = (".glb", ".ply")


@dataclass(frozen=True)
class MadeMesh:
    """What a mesh was made from.

    Attributes:
        mesh: its vertices, triangles and colours.
        matches: number of matches that were triangulated.
        points: number of points of the cloud.
    """

    mesh: Mesh
    matches: int
    points: int


def make_mesh(model: Path, images: Path) -> MadeMesh:
    """The mesh of what the photos of a run show.

    Args:
        model: folder of its model, or of a part of it.
        images: folder of the photos.

    Raises:
        EdmHlocError: there is no model, or no raw matches in the folder of its run; or too few
            matches agree with the model for a surface.
    """
    read, _ = fit_model(read_model(model), images, f"the model {model}")
    out, _ = run_folder(model)
    with _scene_matches(out, images, read) as matches:
        samples = samples_of(read, matches, images)
    with at_work("Making the surface"):
        cloud = oriented_cloud(samples)
        mesh = poisson_mesh(cloud)
    if not len(mesh.triangles):
        raise EdmHlocError(
            f"Of the matches in {matches.path} {int(samples.matches.sum()):,} agree with the model "
            f"{model} at angles of 3° and more: too few lie side by side for a surface. Photos "
            "from more places are needed."
        )
    return MadeMesh(mesh, int(samples.matches.sum()), len(cloud))


def _scene_matches(out: Path, images: Path, model: pycolmap.Reconstruction) -> MaskedMatchReader:
    """The raw matches of a run without those outside its masks and in still backgrounds."""
    matches = out / "raw_matches"
    if not matches.exists() or not (out / "run.json").is_file():
        raise EdmHlocError(
            f"A mesh is made from all matches of a run, and there are no {matches}: give the model "
            "of a run of `edm-hloc reconstruct`. COLMAP's own mesher takes other models."
        )
    record = read_json_object(out / "run.json", "record of a run")
    masks = find_masks(recorded_folder(out, record, "masks"), sorted(posed_images(model)), images)
    # photos that have changed since show another colour at most: the model is of those before
    reader = MaskedMatchReader(matches, masks, images, changed=True)
    results = record.get("results")
    background = BackdropSummary.of_run(results if isinstance(results, dict) else {})
    if background is not None and background.photos:
        reader.not_scene = find_backgrounds(reader, images, reader.pairs()).in_background
    return reader


def check_mesh_file(path: Path) -> None:
    """Raises EdmHlocError unless the name of a file ends with one of `SUFFIXES`."""
    if path.suffix.lower() not in SUFFIXES:
        raise EdmHlocError(f"{path} must end with .glb (glTF) or .ply.")


def write_mesh(path: Path, mesh: Mesh, up: np.ndarray) -> None:
    """Writes a mesh, as glTF or PLY by the name of the file.

    Args:
        path: the file.
        mesh: in the frame of the model, which the PLY file keeps.
        up: (3, 3) glTF's frame, y up, from the model's.

    Raises:
        EdmHlocError: the file cannot be written, or its name has another ending.
    """
    check_mesh_file(path)
    write_whole(path, mesh_ply(mesh) if path.suffix.lower() == ".ply" else mesh_glb(mesh, up))
