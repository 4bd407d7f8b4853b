"""A model of few points → the model of all: every verified match, every photo, cameras adjusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pycolmap
from tqdm import tqdm

from edm_hloc.base.colmap import open_database

_ITERATIONS = (10, 25)  # of each adjustment of all cameras and points, before each filtering


def complete_model(
    model: pycolmap.Reconstruction,
    kept: Mapping[int, np.ndarray],
    database: Path,
    colmap: pycolmap.IncrementalPipelineOptions,
) -> pycolmap.Reconstruction:
    """Puts the cameras of a model of chosen tracks into the graph of all verified matches.

    All points are triangulated, images that are not in the model are tried once more, and cameras
    and points are adjusted together.

    Args:
        model: made from a database of `thin_database`.
        kept: what that has returned.
        database: the database with everything.
        colmap: options of the mapper, those of the model.

    Returns:
        The complete model.
    """
    whole = pycolmap.Reconstruction()
    with open_database(database) as db:
        cache_options = pycolmap.DatabaseCacheOptions()
        cache_options.min_num_matches = colmap.min_num_matches
        cache = pycolmap.DatabaseCache.create(db, cache_options)
    whole.load(cache)
    for camera_id, camera in model.cameras.items():
        whole.cameras[camera_id].params = camera.params
    for frame_id in sorted(model.reg_frame_ids()):
        whole.frames[frame_id].rig_from_world = model.frames[frame_id].rig_from_world
        whole.register_frame(frame_id)
    _add_points(whole, model, kept)
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(whole)
    options, triangulation = colmap.get_mapper(), colmap.get_triangulation()
    images = sorted(whole.reg_image_ids())
    for image_id in tqdm(images, desc="Triangulating", unit="photo", disable=None):
        mapper.triangulate_image(triangulation, image_id)
    mapper.complete_and_merge_tracks(triangulation)
    mapper.filter_points(options)
    _register_more(mapper, colmap)
    adjustment = colmap.get_global_bundle_adjustment()
    for iterations in _ITERATIONS:
        adjustment.ceres.solver_options.max_num_iterations = iterations
        mapper.adjust_global_bundle(options, adjustment)
        mapper.complete_and_merge_tracks(triangulation)
        mapper.filter_points(options)
    mapper.filter_frames(options)
    mapper.end_reconstruction(False)
    return whole
