"""3D points for a COLMAP model whose poses are known."""

from __future__ import annotations

import time
from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import (
    ModelStatistics,
    posed_images,
    quiet_colmap,
    read_model,
    verified_pairs,
)
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.progress import StepProgress
from edm_hloc.images.sizes import fit_model
from edm_hloc.keypoints.h5 import FeatureReader
from edm_hloc.mapping.database import MatchedImages, import_matches, new_database
from edm_hloc.mapping.incremental import incremental_options
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import MappingSummary, new_model_folder, write_model
from edm_hloc.mapping.plausible import allow_cameras
from edm_hloc.mapping.verification import VerificationSummary, verify_known_poses

_REFINED_POINTS = 100_000  # minimum number of points that are refined at once, a kilobyte each


def triangulate(
    reference: Path,
    matched: MatchedImages,
    database: Path,
    out: Path,
    options: MappingOptions | None = None,
) -> tuple[VerificationSummary, MappingSummary]:
    """Triangulates 3D points with the poses and intrinsics of a model, which stay as they are.

    Only for photos that are stored in another size than the model's are the intrinsics scaled.

    Matches are verified by the known poses: they are inliers where both keypoints lie within
    `max_error` times the uncertainty of their image's keypoints (1 px where the file gives none) of
    their epipolar lines.

    Args:
        reference: COLMAP model with the poses; its points are ignored.
        matched: images, keypoints and matches. The photos are read for the colours of the points.
        database: the COLMAP database to write, with the reference's ids.
        out: folder of the model, written on success only. A model that is there is replaced.
        options: `max_error`, `min_inliers`, `min_tri_angle`, `two_view_points`, `seed` and
            `threads` count here.

    Raises:
        EdmHlocError: a file cannot be read, files or photos do not belong together, no point was
            found.
    """
    options = options or MappingOptions()
    start = time.monotonic()
    database, out, image_root = Path(database), Path(out), Path(matched.image_root)
    model, _ = fit_model(read_model(reference), image_root, f"the model {reference}")
    posed = posed_images(model)
    with (
        new_database(database, matched) as db,
        FeatureReader(matched.features) as features,
    ):
        ids = {name: image.image_id for name, image in posed.items()}
        if not any(name in features for name in ids):
            raise EdmHlocError(
                f"{matched.features} has keypoints of none of the {len(ids)} images of "
                f"{reference}: names must be the same."
            )
        write_reference(db, model)
        cameras = {name: model.cameras[image.camera_id] for name, image in posed.items()}
        import_matches(db, features, matched, ids, cameras)
        uncertainty = {
            image_id: features.uncertainty(name) or 1.0
            for name, image_id in ids.items()
            if name in features
        }
        verify_known_poses(db, model, uncertainty, options)
        verification = VerificationSummary.of(db, time.monotonic() - start)
        most = max(verified_pairs(db).values(), default=0)

    with new_model_folder(out) as temporary, quiet_colmap(), StepProgress("Triangulating"):
        if not verification.inliers:
            raise EdmHlocError(
                f"No match agrees with the poses of {reference}: {verification.pairs} pairs have "
                f"{verification.matches} matches. Do photos and poses belong together?"
            )
        if most < options.min_inliers:
            raise EdmHlocError(
                f"No pair has {options.min_inliers} matches that agree with the poses of "
                f"{reference}, as each needs; the most are {most}. Do photos and poses belong "
                "together?"
            )
        result = triangulate_points(model, database, image_root, temporary, options)
        if not result.num_points3D():
            raise EdmHlocError(
                f"None of {verification.inliers} verified matches gave a point. Are the photos of "
                "the pairs taken from one place? Give more partners, or photos from farther "
                "apart; in Python MappingOptions(min_tri_angle=…) accepts smaller angles."
            )
        write_model(result, image_root, temporary)
        statistics = ModelStatistics.of(result)
    seen = {name for name, image in posed_images(result).items() if image.num_points3D}
    return verification, MappingSummary(
        statistics=statistics,
        images=len(posed),
        unregistered=tuple(sorted(set(posed) - seen)),
        components=(statistics.registered,),
        seconds=time.monotonic() - start,
    )


def write_reference(db: pycolmap.Database, model: pycolmap.Reconstruction) -> None:
    """Writes cameras, rigs, images and frames of a model into a database, with its ids."""
    posed = posed_images(model).values()
    for camera in model.cameras.values():
        camera.has_prior_focal_length = True
        db.write_camera(camera, use_camera_id=True)
    for rig in model.rigs.values():
        db.write_rig(rig, use_rig_id=True)
    for image in posed:
        # The image without its frame, which is written after it.
        bare = pycolmap.Image(name=image.name, image_id=image.image_id, camera_id=image.camera_id)
        db.write_image(bare, use_image_id=True)
    for frame_id in sorted({image.frame_id for image in posed}):
        db.write_frame(model.frames[frame_id], use_frame_id=True)


def triangulate_points(
    model: pycolmap.Reconstruction,
    database: Path,
    image_root: Path,
    folder: Path,
    options: MappingOptions,
) -> pycolmap.Reconstruction:
    """COLMAP's triangulation, with the points refined in groups.

    COLMAP refines all points at once, which takes a kilobyte for every observation: 46 GiB for the
    size of Aachen. With known poses the points do not depend on each other.

    Args:
        model: known poses and intrinsics.
        database: COLMAP database with verified pairs.
        image_root: folder of the photos.
        folder: for the files that COLMAP writes.
        options: thresholds.

    Returns:
        The model with its points.
    """
    colmap = incremental_options(options)
    allow_cameras(colmap, model.cameras.values())
    colmap.ba_global_max_refinements = 0
    refinement = colmap.get_global_bundle_adjustment()
    for clear in (True, False):  # the second round extends and merges tracks of refined points
        model = pycolmap.triangulate_points(
            model, database, image_root, folder, clear_points=clear, options=colmap
        )
        ids = sorted(model.point3D_ids())
        # COLMAP checks the whole model before each group, so there are about 8 groups at most.
        group = max(_REFINED_POINTS, len(ids) // 8)
        for start in range(0, len(ids), group):
            config = pycolmap.BundleAdjustmentConfig()  # without images: cameras stay constant
            for i in ids[start : start + group]:
                config.add_variable_point(i)
            pycolmap.create_default_bundle_adjuster(refinement, config, model).solve()
        pycolmap.ObservationManager(model).filter_all_points3D(
            colmap.mapper.filter_max_reproj_error, colmap.mapper.filter_min_tri_angle
        )
    model.update_point_3d_errors()
    return model
