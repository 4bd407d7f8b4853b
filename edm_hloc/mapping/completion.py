"""A model of few points → the model of all: every verified match, every photo, cameras adjusted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.at_work import at_work
from edm_hloc.base.colmap import open_database, take_poses, unposed_model
from edm_hloc.base.progress import StepProgress
from edm_hloc.mapping.plausible import drop_bogus

_ITERATIONS = (10, 5)  # of the adjustments of all cameras and points, a filter after each
_SETTLED = 5e-4  # share of the observations that the filter removes, below which it is the last
_SETTLED_NEARBY = 1e-4  # relative change of the cost that ends an adjustment around a new image


def complete_model(
    model: pycolmap.Reconstruction,
    kept: Mapping[int, np.ndarray],
    database: Path,
    colmap: pycolmap.IncrementalPipelineOptions,
    beside: Sequence[pycolmap.Reconstruction] = (),
) -> pycolmap.Reconstruction:
    """Puts the cameras of a model of chosen tracks into the graph of all verified matches.

    All points are triangulated, images that are not in the model are tried once more, and cameras
    and points are adjusted together.

    Args:
        model: made from a database of `thin_database`, or from the whole one.
        kept: what that has returned; by image id, the numbers that the model's keypoints have in
            `database`.
        database: the database with everything.
        colmap: options of the mapper, those of the model.
        beside: more models in the frame of this one, whose other images are taken over.

    Returns:
        The complete model.
    """
    with open_database(database) as db:
        whole, cache = unposed_model(db, colmap.min_num_matches)
    for part in reversed((model, *beside)):  # the first has the last word on cameras of several
        for camera_id, camera in part.cameras.items():
            whole.cameras[camera_id].params = camera.params
    for part in (model, *beside):
        take_poses(whole, part)
    _add_points(whole, model, kept)
    mapper = pycolmap.IncrementalMapper(cache)
    mapper.begin_reconstruction(whole)
    options, triangulation = colmap.get_mapper(), colmap.get_triangulation()
    images = sorted(whole.reg_image_ids())
    step = "Joining models" if beside else "Completing"
    with StepProgress(step, "photo", len(images)) as progress:
        for image_id in images:
            mapper.triangulate_image(triangulation, image_id)
            progress.update()
        mapper.complete_and_merge_tracks(triangulation)
        mapper.filter_points(options)
    left = whole.num_images() - len(images)
    if left:
        with StepProgress("Adding photos", "photo", left) as progress:
            register_next_images(mapper, colmap, added=progress.update)
    with at_work("Adjusting all photos"):
        adjustment = colmap.get_global_bundle_adjustment()
        for iterations in _ITERATIONS:
            adjustment.ceres.solver_options.max_num_iterations = iterations
            mapper.adjust_global_bundle(options, adjustment)
            mapper.complete_and_merge_tracks(triangulation)
            if mapper.filter_points(options) < _SETTLED * whole.compute_num_observations():
                break
    mapper.end_reconstruction(False)
    drop_bogus(whole, colmap)
    return whole


def _add_points(
    whole: pycolmap.Reconstruction, model: pycolmap.Reconstruction, kept: Mapping[int, np.ndarray]
) -> None:
    """Adds the points of a model of chosen tracks, with the keypoints' numbers in the whole."""
    for point_id in sorted(model.point3D_ids()):
        point = model.points3D[point_id]
        track = pycolmap.Track()
        for element in point.track.elements:
            track.add_element(element.image_id, int(kept[element.image_id][element.point2D_idx]))
        whole.add_point3D(point.xyz, track, point.color)


def register_next_images(
    mapper: pycolmap.IncrementalMapper,
    colmap: pycolmap.IncrementalPipelineOptions,
    only: Collection[int] | None = None,
    added: Callable[[], None] = lambda: None,
) -> None:
    """Registers the images that see enough of the points, one after another.

    After each the images around it are adjusted, once and roughly: all are adjusted in the end.

    Args:
        mapper: with a model.
        colmap: its options.
        only: ids of the images that are tried; None for all.
        added: called after each.
    """
    options, triangulation = colmap.get_mapper(), colmap.get_triangulation()
    adjustment = colmap.get_local_bundle_adjustment()
    adjustment.ceres.solver_options.function_tolerance = _SETTLED_NEARBY
    while True:
        for image_id in mapper.find_next_images(options, structure_less=False):
            tried = only is None or image_id in only
            if tried and mapper.register_next_image(options, image_id):
                break
        else:
            return
        mapper.triangulate_image(triangulation, image_id)
        mapper.iterative_local_refinement(
            1,
            colmap.ba_local_max_refinement_change,
            options,
            adjustment,
            triangulation,
            image_id,
        )
        added()
