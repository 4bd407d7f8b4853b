"""The programs that a model can be exported for, and how each goes on from there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from edm_hloc.base.colmap import check_model, is_model, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.interop.targets import kapture, layouts, metashape, rerun
from edm_hloc.interop.targets.undistorted import PhotosOfModel, Undistorted, undistort
from edm_hloc.pipelines.run_entries import recorded_for


@dataclass(frozen=True)
class Target:
    """A program that a model is exported for.

    Attributes:
        write: writes its files beside the undistorted photos.
        next_step: what to do with the folder, which stands for OUT in it.
        photos: folder of the undistorted photos in OUT.
    """

    write: Callable[[Undistorted], None]
    next_step: str
    photos: str = "images"

    def next_for(self, out: Path) -> str:
        """`next_step` with a folder as a shell takes it."""
        return re.sub(r"\bOUT(/[\w./]*\w)?", lambda m: quote(f"{out}{m[1] or ''}"), self.next_step)


TARGETS = {
    "gsplat": Target(
        layouts.write_sparse,
        "python examples/simple_trainer.py default --data_dir OUT --data_factor 1 (gsplat), or "
        "python train.py -s OUT (gaussian-splatting)",
    ),
    "nerfstudio": Target(layouts.write_nerfstudio, "ns-train splatfacto --data OUT"),
    "opensplat": Target(layouts.write_sparse, "opensplat OUT -n 2000"),
    "metashape": Target(
        metashape.write_metashape,
        "in Metashape add the photos in OUT/images, then File > Import > Import Cameras: "
        "OUT/cameras.xml (Agisoft)",
    ),
    "kapture": Target(kapture.write_kapture, "kapture_print_info.py -i OUT", photos=kapture.PHOTOS),
    "openmvs": Target(
        layouts.write_openmvs, "InterfaceCOLMAP -i OUT -o scene.mvs --image-folder OUT/images"
    ),
    "rerun": Target(rerun.write_rerun, "rerun OUT/scene.rrd"),
}
"""By the name that --for takes; `edm_hloc.cli.handover.TARGETS` repeats them."""


def largest_model(folder: Path) -> Path:
    """The folder of a model: `folder` itself, that of a run in it, or the largest of those in it.

    Args:
        folder: of a COLMAP model, of the output of a run, or of models in 0, 1, …, as COLMAP's
            mapper writes them.

    Raises:
        EdmHlocError: there is no model, or one of several is damaged.
    """
    of_run = folder / "model"  # also where somebody has put another model beside the run's record
    if is_model(of_run) and ((folder / "run.json").is_file() or not is_model(folder)):
        return of_run
    if is_model(folder):
        return folder
    inside = sorted(p for p in folder.glob("*") if p.name.isdecimal() and is_model(p))
    if not inside:
        check_model(folder)
    return max(inside, key=lambda path: read_model(path).num_reg_frames())


def photos_of(model: Path) -> Path:
    """The folder of the photos that the run has recorded which made a model.

    Raises:
        EdmHlocError: no run is recorded beside the model, or the folder is not there.
    """
    folder = recorded_for(model, "images")
    if folder is None:
        raise EdmHlocError(
            f"Where are the photos of {model}? No record of a run beside it tells: give their "
            "folder by --images."
        )
    if not folder.is_dir():
        raise EdmHlocError(
            f"The photos of {model} were in {folder}, which is not there: give their folder by "
            "--images."
        )
    return folder


def masks_of(model: Path) -> Path | None:
    """The masks of the run that made a model; None without a run, without masks, or if not there.

    Raises:
        EdmHlocError: the record of the run is damaged.
    """
    masks = recorded_for(model, "masks")
    return masks if masks is not None and masks.exists() else None


def export_for(target: str, model: Path, source: PhotosOfModel, out: Path) -> Undistorted:
    """Writes a model and its photos for another program.

    Args:
        target: one of `TARGETS`.
        model: folder of a COLMAP model.
        source: its photos.
        out: folder to write, empty or of an earlier export for the same program.

    Raises:
        EdmHlocError: see `undistort`; or a package is missing.
    """
    chosen = TARGETS[target]
    if target == "rerun":
        rerun.load_rerun()  # before the photos are undistorted
    undistorted = undistort(read_model(model), source, out, chosen.photos, target)
    chosen.write(undistorted)
    return undistorted
