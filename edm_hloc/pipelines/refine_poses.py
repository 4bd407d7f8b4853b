"""Photos with poses from elsewhere → refined poses and points.

    OUT/given_poses/      the poses as they were read, a COLMAP model without points
    OUT/model/            COLMAP model with refined poses, in the world of the given ones
    OUT/poses.csv         how far each camera was moved, and which were wrong
    OUT/transforms.json   the refined poses in the form that they came in, if it is nerfstudio's

and the other files of `reconstruct`.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pycolmap

from edm_hloc.base.colmap import camera_text, posed_images, read_model, write_model_files
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.images.masks import find_masks
from edm_hloc.images.roots import root_text
from edm_hloc.localization.poses import to_numbers
from edm_hloc.mapping.database import build_database
from edm_hloc.mapping.georeference import CAMERAS, RECORD
from edm_hloc.mapping.pose_refinement import PoseRefinementSummary, refine_poses
from edm_hloc.matchers.base import Matcher
from edm_hloc.pairs.retrieval import SimilarPhotos
from edm_hloc.pairs.rules import Pair
from edm_hloc.pipelines.georeferencing import keep_place_of
from edm_hloc.pipelines.matching import MATCHING_FILES, names_of
from edm_hloc.pipelines.reconstruct import ReconstructionConfig, match_photos
from edm_hloc.pipelines.run import Run

logger = logging.getLogger(__name__)

_FILES = (
    *MATCHING_FILES,
    *("database.db", "model", "given_poses", "poses.csv", "transforms.json", RECORD, CAMERAS),
)


@dataclass(frozen=True)
class PosedPhotos:
    """The input of `refine_given_poses`.

    Attributes:
        model: posed cameras without points, with intrinsics for the photos as they are stored.
        source: the file that the poses are from.
        image_root: folder of the photos.
        write: writes refined poses into a file, in the form that they came in; None: not made. An
            EdmHlocError of it becomes a warning.
    """

    model: pycolmap.Reconstruction
    source: Path
    image_root: Path
    write: Callable[[pycolmap.Reconstruction, Path], None] | None = None


def refine_given_poses(
    posed: PosedPhotos,
    out: Path,
    pairs: Sequence[Pair] | SimilarPhotos,
    matcher: Matcher,
    config: ReconstructionConfig | None = None,
) -> Run:
    """Matches the photos, and refines their poses; see the module for the files.

    Args:
        posed: the photos and poses.
        out: output folder; a run that is there already is continued.
        pairs, matcher: as for `reconstruct`; photos without a pose are left out.
        config: settings of every step; `mapping.refine_intrinsics` refines intrinsics too.

    Returns:
        The record of the run, with `results["poses"]`.

    Raises:
        EdmHlocError: invalid input, or the matches agree with none of the poses. Finished steps are
            kept.
    """
    config = config or ReconstructionConfig()
    image_root, mapping = posed.image_root, config.mapping
    settings = {
        "command": "refine-poses",
        "poses": str(posed.source),
        "images": root_text(image_root),
        "quantization": asdict(config.keypoints),
        "mapping": asdict(mapping),
        "masks": None if config.masks is None else root_text(config.masks),
    }
    images = posed_images(posed.model)
    cameras = {name: posed.model.cameras[image.camera_id] for name, image in images.items()}
    given = {
        name: [*to_numbers(image.cam_from_world()), camera_text(cameras[name])]
        for name, image in images.items()
    }
    pairs = _of_posed(pairs, images, posed.source)
    masks = find_masks(config.masks, names_of(pairs), image_root)
    with Run.begin(out, settings, matcher, _FILES, overwrite=config.overwrite) as run:
        database, model, folder = out / "database.db", out / "model", out / "given_poses"
        again = out / "transforms.json"
        run.step("poses", given, [folder], lambda: _write_given(posed.model, folder))
        matched, fingerprint = match_photos(run, image_root, pairs, masks, matcher, config)

        def verify() -> dict[str, Any]:
            options = CameraOptions(known=cameras)
            imported, verified = build_database(database, matched, options, mapping)
            return {"imported": imported, "verified": verified}

        def refine() -> dict[str, Any]:
            mapped, poses = refine_poses(database, image_root, model, posed.model, mapping)
            write_whole(out / "poses.csv", _table(poses))
            if posed.write is not None:
                try:
                    posed.write(read_model(model), again)
                except EdmHlocError as error:  # refined cameras may be of no form that it has
                    logger.warning("%s was not written: %s", again, error)
            return {"mapped": mapped, "poses": poses}

        depends_on = [fingerprint, given, mapping.of_verification()]
        verified = run.step("database", depends_on, [database], verify)
        depends_on = [verified, mapping.of_mapping()]
        if posed.write is not None:  # with all else that the file holds, and the photos' paths
            text = posed.source.read_text("utf-8", errors="replace")
            depends_on += [str(posed.source), text, str(image_root)]
        made = run.step("model", depends_on, [model, out / "poses.csv"], refine, maybe=[again])
        if posed.source.is_dir():  # a model, whose frame is kept
            keep_place_of(run, posed.source, made)
        return run


def _of_posed(
    pairs: Sequence[Pair] | SimilarPhotos, posed: Collection[str], source: Path
) -> Sequence[Pair] | SimilarPhotos:
    """The pairs of photos that have poses: of others no intrinsics are known that could stay.

    Raises:
        EdmHlocError: there are none.
    """
    if isinstance(pairs, SimilarPhotos):
        return replace(pairs, names=tuple(name for name in pairs.names if name in posed))
    found = [pair for pair in pairs if pair[0] in posed and pair[1] in posed]
    if not found:
        raise EdmHlocError(f"In none of the pairs both photos have a pose in {source}.")
    return found


def _write_given(model: pycolmap.Reconstruction, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    write_model_files(model, folder, text=True)
    return {}


def _table(poses: PoseRefinementSummary) -> str:
    """A line for each photo, those that changed most first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["photo", "state", "moved", "moved_percent", "rotated_degrees", "points"])
    for change in sorted(poses.changes, key=lambda c: (c.state == "refined", -c.rotated)):
        share = 100 * change.moved / max(poses.extent, 1e-12)
        numbers = [f"{change.moved:.6g}", f"{share:.4f}", f"{change.rotated:.4f}", change.points]
        writer.writerow([change.name, change.state, *numbers])
    return text.getvalue()
