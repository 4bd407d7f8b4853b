"""Lenses of more than one coefficient, where the photos tell them: cameras calibrate themselves.

Mapping begins with COLMAP's SIMPLE_RADIAL, as a focal length and a coefficient are all that a few
matches determine. Refined tracks determine more: where one camera took several photos, its
principal point and a second coefficient of distortion (RADIAL). Whether they do is asked of the
photos, by a jackknife: the lens is found again without each quarter of them, and has to be more
than two standard deviations off what the simpler camera model can be. What a walk straight ahead
or a scene without depth leaves open differs from quarter to quarter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images
from edm_hloc.base.progress import StepProgress
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.tracks.adjustment import Freedom, adjuster_of, reprojection_errors, robust_scale
from edm_hloc.tracks.geometry import Tracks, Views

_SIMPLE, _BETTER = "SIMPLE_RADIAL", "RADIAL"
_MIN_PHOTOS = 6  # of one camera
_GROUPS = 4  # of photos that follow each other, of which one is left out at a time
_MIN_CHANGE = 2.0  # of the lens, in its standard deviations
_MOST_OBSERVATIONS = 50_000  # that the photos are asked about; more say the same again
_GRID = 12  # points along each side of a photo at which lenses are compared
_ITERATIONS = 30  # at most; lenses move farther than cameras
_MAX_OFF = 0.2  # of the principal point from the middle, of the longer side


@dataclass(frozen=True)
class Lens:
    """What the photos of a camera tell of its lens.

    Attributes:
        photos: number of its photos in the model.
        changed: shift in pixels from the lens as it was, with a centred principal point, to the
            lens as it is, see `lens_difference`.
        sigma: standard deviation of the lens as it is, measured alike.
    """

    photos: int
    changed: float
    sigma: float


def fit_lenses(
    model: pycolmap.Reconstruction, freedom: Freedom, options: MappingOptions
) -> tuple[pycolmap.Reconstruction, Freedom, list[Lens]]:
    """Gives cameras the lens that their photos tell, and adjusts the model to it.

    Cameras of six photos and more are asked whose model is SIMPLE_RADIAL, or RADIAL already.

    Args:
        model: with refined tracks; stays as it is.
        freedom: what may change; without poses, focal lengths and lenses none is asked for.
            Distortion that was left at zero, as the mapper found no believable one, is asked for:
            refined tracks tell more.
        options: threads.

    Returns:
        The model with the lenses, which is the given one if no lens was found; what its adjustment
        has changed; and the lenses.
    """
    asked = _asked(model, freedom)
    if not asked:
        return model, freedom, []
    with StepProgress("Calibrating lenses"):
        return _fit(model, asked, freedom, options)


def _fit(
    model: pycolmap.Reconstruction,
    asked: Mapping[int, list[int]],
    freedom: Freedom,
    options: MappingOptions,
) -> tuple[pycolmap.Reconstruction, Freedom, list[Lens]]:
    """What `fit_lenses` gives, for the images of each camera that is asked for."""
    some = _with_fewer_points(model)
    whole = _calibrated(some, set(asked), freedom, options)
    ways = []  # the lenses without each group
    for left in zip(*(np.array_split(images, _GROUPS) for images in asked.values()), strict=True):
        rest = _without(some, np.concatenate(left).tolist())
        ways.append(_calibrated(rest, set(asked), freedom, options))
    found = {}
    for i, images in sorted(asked.items()):
        changed = lens_difference(_centred(model.cameras[i]), whole.cameras[i])
        sigma = _jackknife(whole.cameras[i], [way.cameras[i] for way in ways])
        if changed > _MIN_CHANGE * sigma and is_plausible(whole.cameras[i]):
            found[i] = Lens(len(images), changed, sigma)
    if not found:
        return model, freedom, []
    if some is not model or asked.keys() != found.keys():
        whole = _calibrated(model, found.keys(), freedom, options)
    own = frozenset(whole.cameras) - found.keys()
    return whole, replace(freedom, principal_point=own <= freedom.constant), [*found.values()]


def lens_difference(a: pycolmap.Camera, b: pycolmap.Camera) -> float:
    """Root mean square, over a photo, of the shift in pixels between two lenses.

    The factor between their focal lengths is taken out: both lenses have room for it.
    """
    away = np.linalg.norm(_plane(a, a) - _plane(b, a), axis=1)
    return float(np.sqrt((away**2).mean()) * a.mean_focal_length())


def _plane(camera: pycolmap.Camera, like: pycolmap.Camera) -> np.ndarray:
    """(N, 2) where a grid of pixels lies in front of the camera, at a depth of 1.

    It is scaled to where these pixels lie in front of another camera. NaN if the lens, as an
    adjustment that has gone astray leaves it, does not see one of them.
    """
    x, y = (np.linspace(0, side, 2 * _GRID + 1)[1::2] for side in (like.width, like.height))
    grid, nowhere = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), np.full(2, np.nan)
    own, goal = (
        np.array([nowhere if (at := which.cam_from_img(xy)) is None else at for xy in grid])
        for which in (camera, like)
    )
    return np.asarray(own * (own * goal).sum() / (own**2).sum())


def _jackknife(lens: pycolmap.Camera, ways: Sequence[pycolmap.Camera]) -> float:
    """Standard deviation of a lens, as `lens_difference`, by those without a group of photos."""
    planes = np.array([_plane(way, lens) for way in ways])
    squared = ((planes - planes.mean(axis=0)) ** 2).sum(axis=(0, 2))
    variance = (len(ways) - 1) / len(ways) * squared.mean()
    return float(np.sqrt(variance) * lens.mean_focal_length())


def is_plausible(camera: pycolmap.Camera) -> bool:
    """Whether there are lenses like that: a RADIAL camera that sees each point once, and all of its
    photo."""
    f, cx, cy, k1, k2 = camera.params
    side = max(camera.width, camera.height)
    off = max(abs(cx - camera.width / 2), abs(cy - camera.height / 2)) / side
    squared = np.linspace(0, (camera.width**2 + camera.height**2) / (2 * f) ** 2, 20)
    once = bool(np.all(1 + 3 * k1 * squared + 5 * k2 * squared**2 > 0))
    corners = np.array([(x, y) for x in (0, camera.width) for y in (0, camera.height)], float)
    whole = all(camera.cam_from_img(corner) is not None for corner in corners)
    return bool(off < _MAX_OFF and once and whole and not camera.has_bogus_params(0.1, 10, 1))


def _asked(model: pycolmap.Reconstruction, freedom: Freedom) -> dict[int, list[int]]:
    """Ids of the images of each camera that may get another lens, in the order of their names."""
    photos: dict[int, list[int]] = {}
    if freedom.poses and freedom.focal and freedom.lenses:
        for _, image in sorted(posed_images(model).items()):
            camera = model.cameras[image.camera_id]
            if camera.model_name in (_SIMPLE, _BETTER) and image.camera_id not in freedom.constant:
                photos.setdefault(image.camera_id, []).append(image.image_id)
    return {i: images for i, images in photos.items() if len(images) >= _MIN_PHOTOS}


def _centred(camera: pycolmap.Camera) -> pycolmap.Camera:
    """The camera with its principal point in the middle of the photo."""
    copy = pycolmap.Camera(camera.todict())
    copy.principal_point_x, copy.principal_point_y = camera.width / 2, camera.height / 2
    return copy


def _with_fewer_points(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The model, or a copy with some of its points where it has too many."""
    ids = np.random.default_rng(0).permutation(sorted(model.point3D_ids()))
    seen = np.cumsum([model.points3D[i].track.length() for i in ids.tolist()])
    left = ids[np.searchsorted(seen, _MOST_OBSERVATIONS, "right") :]
    if not len(left):
        return model
    copy = pycolmap.Reconstruction(model)
    for i in left.tolist():
        copy.delete_point3D(i)
    return copy


def _calibrated(
    model: pycolmap.Reconstruction,
    cameras: Collection[int],
    freedom: Freedom,
    options: MappingOptions,
) -> pycolmap.Reconstruction:
    """A copy of the model with better models of some lenses, adjusted; all other lenses stay."""
    copy = pycolmap.Reconstruction(model)
    for i in cameras:
        camera = copy.cameras[i]
        if camera.model_name == _SIMPLE:
            params = list(camera.params)
            camera.model = pycolmap.CameraModelId.RADIAL
            camera.params = [*params, 0.0]
    others = frozenset(copy.cameras) - set(cameras)
    own = replace(
        freedom, constant=freedom.constant | others, distortion=True, principal_point=True
    )
    views = Views.of(copy)
    scale = robust_scale(reprojection_errors(Tracks.of(copy, views), views))
    adjuster_of(copy, scale, own, options, iterations=_ITERATIONS).solve()
    pycolmap.ObservationManager(copy).filter_observations_with_negative_depth()
    copy.update_point_3d_errors()
    return copy


def _without(model: pycolmap.Reconstruction, images: Collection[int]) -> pycolmap.Reconstruction:
    """A copy of the model without the frames of some images, and without points of one photo."""
    copy = pycolmap.Reconstruction(model)
    for frame in {copy.images[i].frame_id for i in images}:
        copy.deregister_frame(frame)
    return copy
