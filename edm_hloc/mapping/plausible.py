"""Whether the cameras that a mapper has found can be those of real photos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images

MIN_PLAUSIBLE = 0.9
"""A model is mapped again without distortion if fewer of its images have a plausible camera."""

LENSES = (0.3, 5.0)
"""Focal lengths by the longer side, between which those that nothing tells are plausible."""

SHORTEST_LENS, LONGEST_LENS = 0.1, 30.0
"""Focal lengths by the longer side, beyond which no photo is placed: the shorter is COLMAP's."""

OFF_CENTRE = 0.007
"""Standard deviation, along each axis, of the principal points of lenses from the middle of their
photos, by the longer side: calibrated ones are mostly within 1 % of it."""

_LONGEST = 10.0  # by the longer side: plausible where most photos of the model have such a lens

_MOST_APART = 1.5  # factor between a focal length and the median of the others


def plausible_images(
    models: Sequence[pycolmap.Reconstruction], initial: Mapping[int, pycolmap.Camera]
) -> tuple[int, int]:
    """Of the largest model: registered images with a plausible camera, and registered images."""
    if not models:
        return 0, 0
    posed = posed_images(models[0]).values()
    cameras = models[0].cameras
    usual = float(np.median([focal_by_side(cameras[i.camera_id]) for i in posed] or [0.0]))
    longest = min(_LONGEST, max(LENSES[1], _MOST_APART * usual))
    plausible = {id: _is_plausible(c, initial[id], longest) for id, c in cameras.items()}
    return sum(plausible[i.camera_id] for i in posed), len(posed)


def focal_lengths_agree(model: pycolmap.Reconstruction, names: Collection[str]) -> bool:
    """Whether the focal lengths of nearly all of some images are near the median of their size.

    Photos of one size that tell of no focal length are most often of one camera. Where cameras of
    their own get focal lengths that differ by factors, as on photos of flat ground from above, the
    photos do not determine them one by one.

    Args:
        model: of which registered images count.
        names: of the images.
    """
    of_size: dict[tuple[int, int], list[float]] = defaultdict(list)
    posed = posed_images(model)
    for name in posed.keys() & set(names):
        camera = model.cameras[posed[name].camera_id]
        shorter, longer = sorted((camera.width, camera.height))
        of_size[shorter, longer].append(camera.mean_focal_length())
    ratio = np.concatenate([np.array(f) / np.median(f) for f in of_size.values()] or [np.empty(0)])
    near = (ratio < _MOST_APART) & (ratio > 1 / _MOST_APART)
    return bool(near.sum() >= MIN_PLAUSIBLE * len(ratio))


def allow_cameras(
    limits: pycolmap.IncrementalPipelineOptions | pycolmap.IncrementalTriangulatorOptions,
    cameras: Iterable[pycolmap.Camera],
) -> None:
    """Widens limits of focal lengths and distortion such that given cameras are within them.

    COLMAP makes no point that a camera beyond them sees. Its limit of the coefficients is 1, and
    calibrations with larger ones are common: the TUM RGB-D benchmark's first camera has a 1.16.

    Args:
        limits: options of the mapper or of the triangulation, changed in place.
        cameras: with intrinsics that are known.
    """
    for camera in cameras:
        for index in camera.focal_length_idxs():
            ratio = camera.params[index] / max(camera.width, camera.height)
            limits.min_focal_length_ratio = min(limits.min_focal_length_ratio, ratio)
            limits.max_focal_length_ratio = max(limits.max_focal_length_ratio, ratio)
        for index in camera.extra_params_idxs():
            limits.max_extra_param = max(limits.max_extra_param, abs(camera.params[index]))


def drop_bogus(model: pycolmap.Reconstruction, colmap: pycolmap.IncrementalPipelineOptions) -> None:
    """Takes the poses from images with a focal length or distortion that no lens has.

    COLMAP's mapper does so in models of 20 photos and more only. Such a photo sees few points, most
    often by wrong matches, and comes to stand far from all others.

    Args:
        model: of the mapper's.
        colmap: its options. Intrinsics that these keep are not judged.
    """
    found = set(model.cameras) - set(colmap.constant_cameras)
    bogus = {i for i in found if is_bogus(model.cameras[i], colmap)}
    frames = {i.frame_id for i in posed_images(model).values() if i.camera_id in bogus}
    for frame_id in sorted(frames):
        model.deregister_frame(frame_id)


def is_bogus(camera: pycolmap.Camera, colmap: pycolmap.IncrementalPipelineOptions) -> bool:
    """Whether a focal length or distortion is beyond the limits of the mapper's options."""
    limits = colmap.min_focal_length_ratio, colmap.max_focal_length_ratio, colmap.max_extra_param
    return bool(camera.has_bogus_params(*limits))


def focal_by_side(camera: pycolmap.Camera) -> float:
    """The focal length of a camera by the longer side of its photos."""
    return float(camera.mean_focal_length() / max(camera.width, camera.height))


def _is_plausible(camera: pycolmap.Camera, initial: pycolmap.Camera, longest: float) -> bool:
    """Whether a focal length is near that of the EXIF data, or else in the range of lenses."""
    if initial.has_prior_focal_length:
        return 0.7 < camera.mean_focal_length() / initial.mean_focal_length() < 1.4
    return LENSES[0] < focal_by_side(camera) < longest
