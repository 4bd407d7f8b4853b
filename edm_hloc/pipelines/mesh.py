"""The surfaces that a run shows: from its raw matches and its model to points and a mesh."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.at_work import at_work
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.text import read_json_object
from edm_hloc.images.cameras import refuse_panoramas
from edm_hloc.images.find import image_stamps
from edm_hloc.images.masks import find_masks
from edm_hloc.images.sizes import fit_model
from edm_hloc.mapping.backdrop import BackdropSummary
from edm_hloc.mapping.output import run_folder
from edm_hloc.matching.masked import MaskedMatchReader
from edm_hloc.pipelines.matching import find_backgrounds
from edm_hloc.pipelines.run_entries import recorded_folder
from edm_hloc.surface.atlas import TexturedMesh, textured
from edm_hloc.surface.cloud import Cloud, oriented_cloud
from edm_hloc.surface.colours import colours_of
from edm_hloc.surface.ply import Mesh, cloud_ply
from edm_hloc.surface.poisson import poisson_mesh
from edm_hloc.surface.samples import matched_side, samples_of
from edm_hloc.surface.simplify import simplified

_TEXTURED = 400_000  # triangles at most: what the photos show need not be in the surface as well


@dataclass(frozen=True)
class Surfaces:
    """The surfaces that the photos of a run show.

    Attributes:
        cloud: points and normals of them, in the frame of the model.
        matches: number of matches that were triangulated for it.
        model: its cameras are for the photos as they are stored.
        images: folder of the photos.
        side: px of a photo's longer side as the matcher saw it.
    """

    cloud: Cloud
    matches: int
    model: pycolmap.Reconstruction
    images: Path
    side: float

    @classmethod
    def of_run(cls, model: Path, images: Path) -> Surfaces:
        """Those of all matches of a run.

        Args:
            model: folder of its model, or of a part of it.
            images: folder of the photos.

        Raises:
            EdmHlocError: there is no model, it is of panoramas, or there are no raw matches in the
                folder of its run; or too few matches agree with the model for a surface.
        """
        read = read_model(model)
        refuse_panoramas(read, "which no mesh is made of")
        posed = posed_images(read)
        if posed and not image_stamps(images, posed):
            raise EdmHlocError(
                f"None of the {len(posed)} photos of {model} is in {images}, such as "
                f"{next(iter(posed))}: give their folder by --images."
            )
        fitted, scaled = fit_model(read, images, f"the model {model}")
        if scaled:  # the matches are in pixels of the photos that were matched
            read = read_model(model)
        out, _ = run_folder(model)
        with _scene_matches(out, images, read) as matches:
            samples, side = samples_of(read, matches), matched_side(matches)
        with at_work("Smoothing the points"):
            cloud = oriented_cloud(samples)
        number = int(samples.matches.sum())
        if not len(cloud):
            raise EdmHlocError(
                f"Of the matches in {matches.path} {number:,} agree with the model {model} at "
                "angles of 3° and more: too few lie side by side for a surface. Photos from more "
                "places are needed."
            )
        return cls(cloud, number, fitted, images, side)

    def mesh(self) -> Mesh:
        """The mesh through the points, with the colours of the photos."""
        with at_work("Making the surface"):
            mesh = poisson_mesh(self.cloud)
        return replace(mesh, colours=self._colours(mesh.vertex_cloud()))

    def textured(self) -> TexturedMesh:
        """The mesh through the points, of fewer triangles, with the photos as its texture."""
        with at_work("Making the surface"):
            mesh = simplified(poisson_mesh(self.cloud), _TEXTURED)
        images = {self.images / name: image for name, image in posed_images(self.model).items()}
        return textured(mesh, self.model, images, self.side)

    def points_ply(self) -> bytes:
        """The points with normals and colours, as a PLY file."""
        return cloud_ply(self.cloud, self._colours(self.cloud))

    def _colours(self, cloud: Cloud) -> np.ndarray:
        return colours_of(cloud, self.model, self.images, self.side)


def _scene_matches(out: Path, images: Path, model: pycolmap.Reconstruction) -> MaskedMatchReader:
    """The raw matches of a run without those outside its masks and in still backgrounds."""
    matches = out / "raw_matches"
    for needed in (matches, out / "run.json"):
        if not needed.exists():
            raise EdmHlocError(
                f"A mesh is made from all matches of a run, and there is no {needed}: give the "
                "model of a run of `edm-hloc reconstruct`, or one that `refine-model` made of it "
                "in the same folder. COLMAP's own mesher takes other models."
            )
    record = read_json_object(out / "run.json", "record of a run")
    folder, names = recorded_folder(out, record, "masks"), sorted(posed_images(model))
    try:
        masks = find_masks(folder, names, images)
    except EdmHlocError as error:
        raise EdmHlocError(f"The mesh needs the masks of the run in {out}: {error}") from error
    cameras = {name: model.cameras[i.camera_id] for name, i in posed_images(model).items()}
    sizes = {name: (camera.width, camera.height) for name, camera in cameras.items()}
    # photos that have changed since show another colour at most: the model is of those before
    reader = MaskedMatchReader(matches, masks, images, sizes)
    results = record.get("results")
    background = BackdropSummary.of_run(results if isinstance(results, dict) else {})
    if background is not None and background.photos:
        reader.not_scene = find_backgrounds(reader, reader.pairs()).in_background
    return reader
