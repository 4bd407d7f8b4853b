"""Focal lengths that no photo tells of, from the fundamental matrices of the verified pairs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pycolmap

from edm_hloc.base.colmap import open_database, verified_pairs
from edm_hloc.mapping.plausible import LENSES

_STEP = 0.01  # of the longer side: beside the cameras' errors nothing, and the same in each run


def calibrate_focal_lengths(database: Path) -> None:
    """Writes focal lengths into a database where the photos tell of none, by its verified pairs.

    COLMAP assumes 1.2 times the longer side, from which a model of photos through a long lens is
    badly begun. Two photos of general positions determine both focal lengths by their fundamental
    matrix, all pairs together do so better: Fetzer et al., "Stable Intrinsic Auto-Calibration from
    Fundamental Matrices of Devices with Uncorrelated Camera Parameters", WACV 2020. What is written
    is a start for the mapper, not a prior: lens distortion is not modelled.

    Args:
        database: COLMAP database with verified pairs. Cameras with a known focal length, and those
            of fisheye lenses, stay as they are.
    """
    with open_database(database) as db:
        unknown = [c for c in db.read_all_cameras() if not c.has_prior_focal_length]
        if not unknown:
            return
        with TemporaryDirectory(dir=database.parent) as folder:
            graph = Path(folder) / "graph.db"
            _copy_geometries(db, graph)
            options = pycolmap.ViewGraphCalibrationOptions()
            options.reestimate_relative_pose = False
            pycolmap.calibrate_view_graph(graph, options)
            with open_database(graph) as calibrated:
                found = {c.camera_id: c.mean_focal_length() for c in calibrated.read_all_cameras()}
        for camera in unknown:
            side, focal = max(camera.width, camera.height), found[camera.camera_id]
            ratio = round(focal / side / _STEP) * _STEP
            if focal != camera.mean_focal_length() and LENSES[0] < ratio < LENSES[1]:
                camera.focal_length = ratio * side
                db.update_camera(camera)


def _copy_geometries(db: pycolmap.Database, out: Path) -> None:
    """Writes cameras, images and the matrices of the pairs, without keypoints and matches."""
    graph = pycolmap.Database.open(out)
    try:
        with pycolmap.DatabaseTransaction(graph):
            for camera in db.read_all_cameras():
                graph.write_camera(camera, use_camera_id=True)
            for image in db.read_all_images():
                bare = pycolmap.Image(
                    name=image.name, image_id=image.image_id, camera_id=image.camera_id
                )
                graph.write_image(bare, use_image_id=True)
            for pair in verified_pairs(db):
                geometry = db.read_two_view_geometry(*pair)
                geometry.inlier_matches = geometry.inlier_matches[:0]
                graph.write_two_view_geometry(*pair, geometry)
    finally:
        graph.close()
