"""Photos that the mapper left out and that come into the model between two rounds."""

from __future__ import annotations

from dataclasses import replace

import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.mapping.incremental import refining_options
from edm_hloc.mapping.left_out import LeftOut, add_image, register_left_out
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.tracks.adjustment import Freedom
from edm_hloc.tracks.kept_points import put_back
from edm_hloc.tracks.rounds import Progress


def try_left_out(
    progress: Progress,
    mapped: pycolmap.Reconstruction,
    left_out: LeftOut,
    freedom: Freedom,
    options: MappingOptions,
) -> bool:
    """Registers photos by all points of a model, those that have been dropped included.

    Args:
        progress: its model gets the photos, with what they see of its points; their names and all
            that they see are noted.
        mapped: the model before the first round.
        left_out: the photos.
        freedom: which intrinsics are refined.
        options: thresholds of the mapping.

    Returns:
        Whether a photo has come in.
    """
    whole, model = pycolmap.Reconstruction(progress.model), progress.model
    put_back(whole, mapped, progress.repeated, options)
    colmap = refining_options(options, freedom.focal, freedom.distortion)
    progress.registered = register_left_out(whole, left_out, colmap)
    posed = posed_images(whole)
    for name in progress.registered:
        image = posed[name]
        add_image(model, image, whole.cameras[image.camera_id])
        for index, keypoint in enumerate(image.points2D):
            if keypoint.has_point3D():
                point_id = int(keypoint.point3D_id)
                progress.late.setdefault(point_id, []).append((image.image_id, index))
                if model.exists_point3D(point_id):
                    model.add_observation(point_id, pycolmap.TrackElement(image.image_id, index))
    return bool(progress.registered)


def with_newcomers(freedom: Freedom, progress: Progress, left_out: LeftOut) -> Freedom:
    """The same, where the known intrinsics of photos that came in stay as well."""
    posed = posed_images(progress.model)
    known = {posed[name].camera_id for name in progress.registered if name in left_out.known}
    return replace(freedom, constant=freedom.constant | known)
