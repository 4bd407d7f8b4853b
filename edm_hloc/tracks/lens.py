"""Lenses of more than one coefficient, where the photos tell them: cameras calibrate themselves.

Mapping begins with COLMAP's SIMPLE_RADIAL, as a focal length and a coefficient are all that a few
matches determine. Refined tracks determine more: where one camera took several photos, its
principal point and a second coefficient of distortion (RADIAL). Whether they do is asked of the
photos, by a jackknife: the lens is found again without each quarter of them, and has to be more
than two standard deviations off what the simpler camera model can be. What a walk straight ahead
or a scene without depth leaves open differs from quarter to quarter.

Cameras of fewer photos beside such a one are asked with it: the points that it holds tell their
lenses, too, and principal points that they are assumed to have would bend the points and the lens
of the many. As they have too few photos to leave some out, each loses a quarter of what it sees.
Where nothing tells their lens, nor which camera took them, they get that of the many, if it
explains them as well.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import posed_images, take_intrinsics
from edm_hloc.base.progress import StepProgress
from edm_hloc.images.exif import tells_camera
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.shared_cameras import take_second_coefficient
from edm_hloc.tracks.adjustment import Freedom, adjuster_of, reprojection_errors, robust_scale
from edm_hloc.tracks.geometry import Tracks, Views

_SIMPLE = "SIMPLE_RADIAL"
BETTER = "RADIAL"
"""COLMAP's camera model of lenses that the photos tell."""

_MIN_PHOTOS = 6  # of one camera at least
_GROUPS = 4  # of photos that follow each other, of which one is left out at a time; of fewer
# photos than these, parts of each around its middle
_MIN_CHANGE = 2.0  # of the lens, in its standard deviations
_MOST_OBSERVATIONS = 12_000  # that the photos are asked about; more say the same again
_OF_A_PHOTO = 50  # observations of each on average, where that is more
_GRID = 12  # points along each side of a photo at which lenses are compared
_AS_WELL = 1.02  # of the median reprojection error, with the lens of another camera
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
        camera: its id.
        without: parameters of the lens (RADIAL) as it is without each group of photos, by the
            scatter of which it is told; each group as of all other cameras.
    """

    photos: int
    changed: float
    sigma: float
    camera: int
    without: tuple[tuple[float, ...], ...]


def fit_lenses(
    model: pycolmap.Reconstruction, freedom: Freedom, options: MappingOptions
) -> tuple[pycolmap.Reconstruction, Freedom, list[Lens]]:
    """Gives cameras the lens that their photos tell, and adjusts the model to it.

    Cameras of six photos and more are asked whose model is SIMPLE_RADIAL, or RADIAL already, and
    those of fewer beside them. Where none of the first is found, no lens is.

    Args:
        model: with refined tracks; stays as it is.
        freedom: what may change; without poses, focal lengths and lenses none is asked for.
            Distortion that was left at zero, as the mapper found no believable one, is asked for:
            refined tracks tell more.
        options: threads.

    Returns:
        The model with the lenses, which is the given one if no lens was found; what its adjustment
        may have changed, all principal points included: one that stayed in the middle, where it
        was not told, is no more certain than that; and the lenses, those of most photos first.
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
    some = with_fewer_points(model)
    whole = _calibrated(some, asked, freedom, options)
    many = [images for images in asked.values() if len(images) >= _MIN_PHOTOS]
    few = [image for images in asked.values() if len(images) < _MIN_PHOTOS for image in images]
    ways = []  # the lenses without each group
    for k, left in enumerate(zip(*(np.array_split(each, _GROUPS) for each in many), strict=True)):
        rest = _without(some, np.concatenate(left).tolist(), few, k)
        ways.append(_calibrated(rest, asked, freedom, options))
    found = {}
    for i, images in sorted(asked.items()):
        changed = lens_difference(_centred(model.cameras[i]), whole.cameras[i])
        sigma = _jackknife(whole.cameras[i], [way.cameras[i] for way in ways])
        if changed > _MIN_CHANGE * sigma and is_plausible(whole.cameras[i]):
            without = tuple(tuple(map(float, way.cameras[i].params)) for way in ways)
            found[i] = Lens(len(images), changed, sigma, i, without)
    if all(lens.photos < _MIN_PHOTOS for lens in found.values()):
        return model, freedom, []
    if some is not model:
        whole = _calibrated(model, asked, freedom, options)
    if frozenset(whole.cameras) - found.keys() - freedom.constant:
        told = {i: whole.cameras[i] for i in sorted(found, key=lambda i: found[i].photos)}
        whole = _with_lenses(model, told, freedom, options)
        like = _like_others(model, told, freedom.unsure & asked.keys())
        if like:
            whole = _with_fitting(model, whole, told, like, freedom, options)
    lenses = sorted(found.values(), key=lambda lens: -lens.photos)
    return whole, replace(freedom, principal_point=True), lenses


def unsure_cameras(model: pycolmap.Reconstruction, image_root: Path) -> frozenset[int]:
    """Ids of the cameras of few photos whose EXIF data tell neither camera nor lens."""
    photos: dict[int, list[str]] = {}
    for name, image in posed_images(model).items():
        photos.setdefault(image.camera_id, []).append(name)
    few = {i: names for i, names in photos.items() if len(names) < _MIN_PHOTOS}
    return frozenset(
        i for i, names in few.items() if not any(tells_camera(image_root / n) for n in names)
    )


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
    """Ids of the images of each camera that may get another lens, in the order of their names.

    None where no camera has many photos: these hold the points for the lenses of few photos.
    """
    photos: dict[int, list[int]] = {}
    if freedom.poses and freedom.focal and freedom.lenses:
        for _, image in sorted(posed_images(model).items()):
            camera = model.cameras[image.camera_id]
            if camera.model_name in (_SIMPLE, BETTER) and image.camera_id not in freedom.constant:
                photos.setdefault(image.camera_id, []).append(image.image_id)
    return photos if any(len(images) >= _MIN_PHOTOS for images in photos.values()) else {}


def _centred(camera: pycolmap.Camera) -> pycolmap.Camera:
    """The camera with its principal point in the middle of the photo."""
    copy = pycolmap.Camera(camera.todict())
    copy.principal_point_x, copy.principal_point_y = camera.width / 2, camera.height / 2
    return copy


def with_fewer_points(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """The model, or a copy with some of its points where it has too many."""
    ids = np.random.default_rng(0).permutation(sorted(model.point3D_ids()))
    seen = np.cumsum([model.points3D[i].track.length() for i in ids.tolist()])
    most = max(_MOST_OBSERVATIONS, _OF_A_PHOTO * model.num_reg_images())
    left = ids[np.searchsorted(seen, most, "right") :]
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
        take_second_coefficient(copy.cameras[i])
    others = frozenset(copy.cameras) - set(cameras)
    adjust_to_lenses(
        copy,
        replace(freedom, constant=freedom.constant | others, distortion=True, principal_point=True),
        options,
    )
    return copy


def _like_others(
    model: pycolmap.Reconstruction, told: Mapping[int, pycolmap.Camera], unsure: Collection[int]
) -> dict[int, pycolmap.Camera]:
    """Of unsure cameras whose lens is not told, by their ids, the last that is told of their size.

    Args:
        model: with all cameras.
        told: lenses by the ids of their cameras.
        unsure: ids of the cameras.
    """
    of_size = {(lens.width, lens.height): lens for lens in told.values()}
    sizes = {i: (model.cameras[i].width, model.cameras[i].height) for i in sorted(unsure)}
    return {i: of_size[size] for i, size in sizes.items() if i not in told and size in of_size}


def _with_fitting(
    model: pycolmap.Reconstruction,
    usual: pycolmap.Reconstruction,
    told: Mapping[int, pycolmap.Camera],
    like: Mapping[int, pycolmap.Camera],
    freedom: Freedom,
    options: MappingOptions,
) -> pycolmap.Reconstruction:
    """The model with the lenses that are told, and with those of others where they fit as well.

    Args:
        model: as it was given.
        usual: the same with the lenses that are told.
        told, like: those, and those of others, by the ids of the cameras.
        freedom, options: of the adjustment.
    """
    also = _with_lenses(model, {**told, **like}, freedom, options)
    before, errors = _errors(usual), _errors(also)
    fitting = {i: lens for i, lens in like.items() if errors[i] <= _AS_WELL * before[i]}
    if not fitting:
        return usual
    return also if fitting == like else _with_lenses(model, {**told, **fitting}, freedom, options)


def _errors(model: pycolmap.Reconstruction) -> dict[int, float]:
    """Median reprojection error of each camera, pixels."""
    views = Views.of(model)
    tracks = Tracks.of(model, views)
    errors = reprojection_errors(tracks, views)
    cameras = np.array([model.images[i].camera_id for i in views.ids.tolist()])[tracks.view]
    return {i: robust_scale(errors[cameras == i]) for i in model.cameras}


def _with_lenses(
    model: pycolmap.Reconstruction,
    lenses: Mapping[int, pycolmap.Camera],
    freedom: Freedom,
    options: MappingOptions,
) -> pycolmap.Reconstruction:
    """A copy of the model with these lenses, adjusted to them; other principal points stay."""
    copy = pycolmap.Reconstruction(model)
    for i, lens in lenses.items():
        take_intrinsics(copy.cameras[i], lens)
    adjust_to_lenses(copy, replace(freedom, constant=freedom.constant | lenses.keys()), options)
    return copy


def adjust_to_lenses(
    model: pycolmap.Reconstruction, freedom: Freedom, options: MappingOptions
) -> None:
    """Adjusts a model whose lenses have changed."""
    views = Views.of(model)
    scale = robust_scale(reprojection_errors(Tracks.of(model, views), views))
    adjuster_of(model, scale, freedom, options, iterations=_ITERATIONS).solve()
    pycolmap.ObservationManager(model).filter_observations_with_negative_depth()
    model.update_point_3d_errors()


def _without(
    model: pycolmap.Reconstruction, images: Collection[int], few: Collection[int], part: int
) -> pycolmap.Reconstruction:
    """A copy of the model without some photos and parts of others, and without points of one photo.

    Args:
        model: stays as it is.
        images: ids of the images whose frames are left out.
        few: ids of images that lose a part of what they see.
        part: its number, in turn around the middle of the photo.
    """
    copy = pycolmap.Reconstruction(model)
    for i in few:
        camera, seen = (
            copy.cameras[copy.images[i].camera_id],
            np.array(copy.images[i].get_observation_point2D_idxs(), int),
        )
        xy = np.array([copy.images[i].points2D[k].xy for k in seen.tolist()]).reshape(-1, 2)
        x, y = xy.T - [[camera.width / 2], [camera.height / 2]]
        for k in np.array_split(seen[np.argsort(np.arctan2(y, x))], _GROUPS)[part].tolist():
            if copy.images[i].points2D[k].has_point3D():  # not gone with another photo's part
                copy.delete_observation(i, k)
    for frame in {copy.images[i].frame_id for i in images}:
        copy.deregister_frame(frame)
    return copy
