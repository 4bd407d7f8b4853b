"""How sure the cameras of an adjusted model are, in a frame of their own.

The covariance of an adjustment depends on which cameras hold the frame. Here none does: it is that
of the cameras after the similarity that brings them nearest to where they are, as the command
`compare` aligns two models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.geometry import cross_product_matrix, extent
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.tracks.adjustment import Freedom, adjuster_of, reprojection_errors, robust_scale
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views
from edm_hloc.tracks.kernel import PATCH_SIGMAS

_KINDS = ("position", "rotation")
_DOUBTFUL = 5.0  # times the median uncertainty
_SAMPLED = 20  # photos of which the overlap of patches is measured, at most
_MOST_PHOTOS = 400  # of which the covariances of all pairs are computed
# Makes the frame, which is taken out in the end, determined. COLMAP adds it to the information of
# all parameters, so the first is far below what photos tell of a lens in a model with an extent of
# 1; it may drown in rounding where photos are large or see very many points, and more is needed.
# 1e-6 gives the same to four digits, but drowns on common photos, at the cost of a factorization.
_DAMPINGS = 1e-4, 1e-2, 1.0
UNSEEN = 1.2  # true errors over those that residuals tell: rendered scenes, seeds 3 to 5
RAYLEIGH = 1.1774  # median length of errors that are normal with 1 along each axis


@dataclass(frozen=True)
class CameraUncertainty:
    """Standard deviations of a camera.

    Attributes:
        position: (3,) along the camera's axes, in % of the cameras' extent.
        rotation: (3,) about the camera's axes, degrees.
    """

    position: tuple[float, float, float]
    rotation: tuple[float, float, float]


def camera_covariances(
    model: pycolmap.Reconstruction,
    freedom: Freedom,
    config: TrackConfig,
    options: MappingOptions | None = None,
) -> np.ndarray | None:
    """Covariance (6V, 6V) of the cameras of a model, sorted by name, in a frame of their own.

    Of each camera three of its rotation about its axes, radians, then three of its centre in the
    world.

    Args:
        model: adjusted to its points.
        freedom: what the adjustment has changed besides them.
        config: the settings of the refinement.
        options: threads.

    Returns:
        None of a model with too many photos or with rigs, or whose adjustment is singular.
    """
    views = Views.of(model)
    if not freedom.poses or not 2 <= len(views.ids) <= _MOST_PHOTOS:
        return None
    if not all(model.images[i].is_ref_in_frame() for i in views.ids.tolist()):
        return None  # COLMAP has no covariance of a camera that is held by another
    whole = extent(views.centres) or 1.0
    middle = np.median(views.centres, axis=0)
    model = pycolmap.Reconstruction(model)
    model.transform(pycolmap.Sim3d(1 / whole, pycolmap.Rotation3d(), -middle / whole))
    views = Views.of(model)
    tracks = Tracks.of(model, views)
    scale = robust_scale(reprojection_errors(tracks, views))
    noise = scale / RAYLEIGH / np.sqrt(_left_free(tracks, views))
    size = _sharing_errors(tracks, views, config) * (UNSEEN * noise) ** 2
    wanted = pycolmap.BACovarianceOptions()
    wanted.params = pycolmap.BACovarianceOptionsParams.POSES
    unit = np.tile([1.0] * 3 + [whole] * 3, len(views.ids))
    for wanted.damping in _DAMPINGS:
        adjuster = adjuster_of(model, scale, freedom, options or MappingOptions(), held=False)
        found = pycolmap.estimate_ba_covariance(wanted, model, adjuster)
        covariance = None if found is None else size * _of_centres(found, views)
        if covariance is not None and np.isfinite(covariance).all():
            return unit[:, None] * free_of_frame(covariance, views) * unit
    return None  # as where photos were mapped onto one place


def camera_uncertainties(
    covariances: np.ndarray | None, views: Views
) -> dict[str, CameraUncertainty]:
    """Standard deviations of cameras by the name of the photo; none if they are not known.

    Args:
        covariances: of `camera_covariances`.
        views: the same cameras.
    """
    uncertainties: dict[str, CameraUncertainty] = {}
    if covariances is None:
        return uncertainties
    whole = max(extent(views.centres), 1e-12)
    for v, name in enumerate(views.names):
        own = covariances[6 * v : 6 * v + 6, 6 * v : 6 * v + 6]
        turn = np.degrees(np.sqrt(np.maximum(np.diag(own)[:3], 0)))
        along = np.diag(views.R[v] @ own[3:, 3:] @ views.R[v].T)
        place = 100 / whole * np.sqrt(np.maximum(along, 0))
        uncertainties[name] = CameraUncertainty(_three(place), _three(turn))
    return uncertainties


def _three(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def median_uncertainty(cameras: Mapping[str, CameraUncertainty]) -> tuple[float, float] | None:
    """Medians over the cameras of the standard deviations in all directions together."""
    if not cameras:
        return None
    position, rotation = (
        float(np.median([np.linalg.norm(getattr(c, of)) for c in cameras.values()]))
        for of in _KINDS
    )
    return position, rotation


def most_uncertain(cameras: Mapping[str, CameraUncertainty]) -> dict[str, float]:
    """Standard deviations of the positions that are several times as large as the median one."""
    usual = median_uncertainty(cameras)
    if usual is None:
        return {}
    sizes = {name: float(np.linalg.norm(c.position)) for name, c in cameras.items()}
    return {name: size for name, size in sizes.items() if size > _DOUBTFUL * usual[0]}


def uncertainty_file(model: Path) -> Path:
    """The file beside a model that holds the uncertainties of its cameras."""
    return model.with_name(f"{model.name}_uncertainty.json")


def write_uncertainties(path: Path, cameras: Mapping[str, CameraUncertainty]) -> None:
    """Writes {"units": …, "cameras": {name: {"position": [x, y, z], "rotation": [x, y, z]}}}.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    units = {"position": "1 sigma along the axes of the camera, % of the cameras' extent"}
    units["rotation"] = "1 sigma about the axes of the camera, degrees"
    content = {"units": units, "cameras": {n: asdict(c) for n, c in cameras.items()}}
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False))


def read_uncertainties(path: Path) -> dict[str, CameraUncertainty]:
    """What `write_uncertainties` has written.

    Raises:
        EdmHlocError: the file is damaged.
    """
    try:
        cameras = json.loads(path.read_text("utf-8"))["cameras"]
        return {
            name: CameraUncertainty(*(_three(np.array(own[of], float)) for of in _KINDS))
            for name, own in cameras.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EdmHlocError(
            f"{path} does not hold the uncertainties of cameras: remove it to compare without them."
        ) from error


def _left_free(tracks: Tracks, views: Views) -> float:
    """Share of the residuals that the adjustment could not make zero: residuals are smaller than
    the errors of the observations, as points and cameras follow these."""
    measured = 2 * len(tracks.view)
    unknown = 3 * len(tracks.ids) + 6 * len(views.ids) - 7
    return max(1.0, measured - unknown) / max(1, measured)


def _sharing_errors(tracks: Tracks, views: Views, config: TrackConfig) -> float:
    """Mean number of observations that share the error of one, with itself.

    Patches that overlap show the same noise: their errors correlate as their weights do, which are
    Gaussians of a third of a patch's side.
    """
    sigma = config.patch_radii[-1] / PATCH_SIGMAS
    shared, number = 0.0, 0
    for v in range(0, len(views.cameras), -(-len(views.cameras) // _SAMPLED)):
        camera = views.cameras[v]
        reduction = max(1.0, max(camera.width, camera.height) / config.max_side)
        xy = tracks.xy[tracks.view == v] / reduction
        shared, number = shared + len(xy), number + len(xy)
        if len(xy) > 1:
            pairs = cKDTree(xy).query_pairs(4 * sigma, output_type="ndarray")
            squared = ((xy[pairs[:, 0]] - xy[pairs[:, 1]]) ** 2).sum(axis=1)
            shared += 2 * float(np.exp(-squared / (4 * sigma**2)).sum())
    return shared / max(1, number)


def _of_centres(found: pycolmap.BACovariance, views: Views) -> np.ndarray:
    """(6V, 6V) covariance of each camera's rotation (about its axes, radians) and centre.

    COLMAP gives that of the rotation, in half angles as Ceres' quaternions change, and the
    translation of cam_from_world.
    """
    number = len(views.ids)
    ids = views.ids.tolist()
    covariance = np.zeros((number, 6, number, 6))
    for a in range(number):
        for b in range(a, number):
            block = np.asarray(found.get_cam_cross_cov_from_world(ids[a], ids[b]))
            covariance[a, :, b], covariance[b, :, a] = block, block.T
    to_centre = np.zeros((number, 6, 6))
    for v in range(number):
        to_centre[v, :3, :3] = 2 * np.eye(3)
        to_centre[v, 3:, :3] = -2 * views.R[v].T @ cross_product_matrix(views.t[v])
        to_centre[v, 3:, 3:] = -views.R[v].T
    turned = np.einsum("aij,ajbk,blk->aibl", to_centre, covariance, to_centre)
    return np.asarray(turned.reshape(6 * number, 6 * number))


def free_of_frame(covariance: np.ndarray, views: Views) -> np.ndarray:
    """The covariance (6V, 6V) after the similarity that brings all cameras nearest to where they
    are. An angle of a radian counts as √2 times the cameras' mean distance from their middle, as in
    `evaluation.models.align`, where a rotation counts by all three of its axes."""
    centres = views.centres - views.centres.mean(axis=0)
    spread = float(np.sqrt((centres**2).sum(axis=1).mean())) or 1.0
    similarity = np.zeros((len(centres), 6, 7))
    for v, centre in enumerate(centres):
        similarity[v, :3, :3] = -views.R[v]
        similarity[v, 3:, :3] = -cross_product_matrix(centre)
        similarity[v, 3:, 3:6] = np.eye(3)
        similarity[v, 3:, 6] = centre
    unit = np.tile([np.sqrt(2)] * 3 + [1 / spread] * 3, len(centres))
    basis, _ = np.linalg.qr(unit[:, None] * similarity.reshape(-1, 7))
    project = np.eye(len(unit)) - basis @ basis.T
    scaled = unit[:, None] * covariance * unit
    return np.asarray((project @ scaled @ project.T) / unit[:, None] / unit)
