"""Verified pairs → models: COLMAP's mappers, and what to try where they lead nowhere."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pycolmap
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from edm_hloc.base.colmap import open_database, posed_images
from edm_hloc.base.errors import EdmHlocError

logger = logging.getLogger(__name__)

Mapper = Literal["incremental", "global"]

_POSSIBLE = 0.9  # share of a model's photos with a possible focal length, below which it is doubted


@dataclass(frozen=True)
class MappingOptions:
    """What a user may have to change about the geometry.

    Attributes:
        mapper: "incremental", robust, or "global", faster on many photos.
        max_error: how far matches may be from their epipolar line and points from their
            keypoints, pixels of the original photos. Keypoints found in reduced photos are less
            exact by that factor: raise it for photos much larger than the matcher's input. The
            global mapper has its own bound for points, 4 px and a hundredth of the focal length.
        min_inliers: verified matches that a pair needs to count.
        min_tri_angle: least angle between the rays to a point, degrees; the global mapper takes
            no less than 1.5.
        two_view_points: also use points that only two photos see. Semi-dense matchers find most
            points in one pair only; they steady the poses and make the model two to three times
            as large, with shorter tracks on average.
        refine_intrinsics: adjust focal length and distortion of the cameras that are not known,
            which for the global mapper must be all or none. Where that leads nowhere, as on photos
            taken going straight on, the incremental mapper tries again without distortion.
        seed: of everything random. With one thread the incremental mapper repeats exactly, the
            global one nearly.
        threads: -1 for all cores.
    """

    mapper: Mapper = "incremental"
    max_error: float = 4.0
    min_inliers: int = 30
    min_tri_angle: float = 1.5
    two_view_points: bool = True
    refine_intrinsics: bool = True
    seed: int = 0
    threads: int = -1


def check_known(
    known: Collection[object], every: Collection[object], options: MappingOptions
) -> None:
    """Raises EdmHlocError if only some of all cameras are known, which the mapper cannot keep."""
    some = not set(known).isdisjoint(every) and not set(known).issuperset(every)
    if some and options.mapper == "global" and options.refine_intrinsics:
        raise EdmHlocError(
            "Intrinsics are known of some of the photos only, and the global mapper adjusts those "
            "of all or none: give them for all photos, or take the incremental mapper."
        )


def find_models(
    database: Path, images: Path, folder: Path, options: MappingOptions, known: Iterable[str] = ()
) -> tuple[list[pycolmap.Reconstruction], bool]:
    """All models that the verified pairs of a database give.

    Args:
        database: COLMAP database with verified pairs (see `sfm.build_database`).
        images: folder of the photos.
        folder: for what the mapper writes.
        options: how to map.
        known: names of the images whose cameras are not refined.

    Returns:
        The models that have points, largest first, and whether distortion was left out.

    Raises:
        EdmHlocError: the mapper cannot keep the known cameras, see `check_known`.
    """
    known = set(known)
    with open_database(database) as db:
        photos = db.read_all_images()
        given = {camera.camera_id: camera for camera in db.read_all_cameras()}
        connected = _most_connected(db, options.min_inliers)
    fixed = {image.camera_id for image in photos if image.name in known}
    every = {image.camera_id for image in photos}
    check_known(fixed, every, options)
    refine = options.refine_intrinsics and not fixed >= every
    if options.mapper == "global":
        return _with_points(_map_globally(database, folder, refine, options)), False
    several = _Mapping(database, images, folder, fixed, len(photos), options)
    models, undistorted = _with_points(several.run(refine, refine)), False
    worth = _worth(models, given)
    registered = models[0].num_reg_images() if models else 0
    # far too few photos, or impossible cameras: a few of many are no reason to map all again
    if refine and (registered < connected / 2 or worth[0] < _POSSIBLE * registered):
        logger.info("Mapping once more, without distortion.")
        again = _with_points(several.run(refine, False))
        if _worth(again, given) > worth:
            models, undistorted = again, True
    if not models:
        logger.info("Mapping once more, from any pair of photos.")
        models, undistorted = _with_points(several.run(refine, False, any_start=True)), refine
    return models, undistorted


def incremental_options(options: MappingOptions) -> pycolmap.IncrementalPipelineOptions:
    """COLMAP's options for ours."""
    o = pycolmap.IncrementalPipelineOptions()
    o.min_num_matches = options.min_inliers
    o.random_seed = options.seed
    o.num_threads = options.threads
    o.extract_colors = False  # later, of the model that is kept
    o.mapper.init_max_error = options.max_error
    o.mapper.abs_pose_max_error = 3 * options.max_error
    o.mapper.filter_max_reproj_error = options.max_error
    o.mapper.filter_min_tri_angle = options.min_tri_angle
    o.triangulation.complete_max_reproj_error = options.max_error
    o.triangulation.merge_max_reproj_error = options.max_error
    o.triangulation.min_angle = options.min_tri_angle
    o.triangulation.ignore_two_view_tracks = not options.two_view_points
    return o


class _Mapping(NamedTuple):
    """What the incremental mapper works on.

    Attributes:
        database, images: of the photos.
        folder: for its models.
        fixed: cameras that stay as they are.
        number: of photos.
        options: of the geometry.
    """

    database: Path
    images: Path
    folder: Path
    fixed: set[int]
    number: int
    options: MappingOptions

    def run(
        self, refine_focal: bool, refine_distortion: bool, any_start: bool = False
    ) -> list[pycolmap.Reconstruction]:
        """All models it finds.

        Args:
            refine_focal, refine_distortion: of the cameras that are not fixed. Photos taken going
                straight on do not tell distortion: it can grow beyond all bounds, and take the
                model with it.
            any_start: be content with pairs, such as all of those are, that COLMAP does not like to
                start from, since they tell little depth.
        """
        o = incremental_options(self.options)
        o.min_model_size = 3
        o.constant_cameras = self.fixed
        o.ba_refine_focal_length = o.mapper.abs_pose_refine_focal_length = refine_focal
        o.ba_refine_extra_params = o.mapper.abs_pose_refine_extra_params = refine_distortion
        if any_start:
            o.mapper.init_max_forward_motion = 1.0  # of all motion
            o.mapper.init_min_tri_angle /= 2
        with tqdm(total=self.number, desc="Mapping", unit="photo", disable=None) as progress:
            models = pycolmap.incremental_mapping(
                self.database,
                self.images,
                self.folder,
                o,
                initial_image_pair_callback=lambda: progress.update(2),
                next_image_callback=lambda: progress.update(1),
            )
        return list(models.values())


def _with_points(models: Iterable[pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    """The models that have any, largest first."""
    return sorted(
        (model for model in models if model.num_points3D()),
        key=lambda model: (model.num_reg_images(), model.num_points3D()),
        reverse=True,
    )


def _most_connected(db: pycolmap.Database, min_inliers: int) -> int:
    """How many photos the verified pairs join at most."""
    number = {image.image_id: i for i, image in enumerate(db.read_all_images())}
    joined = [
        [number[image_id] for image_id in pycolmap.pair_id_to_image_pair(pair_id)]
        for pair_id, inliers in zip(*db.read_two_view_geometry_num_inliers(), strict=True)
        if inliers >= min_inliers
    ]
    if not joined:
        return 0
    rows, columns = np.array(joined).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(number), len(number)))
    return int(np.bincount(connected_components(graph, directed=False)[1]).max())


def _worth(
    models: Sequence[pycolmap.Reconstruction], given: Mapping[int, pycolmap.Camera]
) -> tuple[int, int]:
    """Photos with a possible camera in the largest model, and the points that photos see there."""
    if not models:
        return 0, 0
    posed = posed_images(models[0]).values()
    possible = {id: _is_possible(camera, given[id]) for id, camera in models[0].cameras.items()}
    return sum(possible[i.camera_id] for i in posed), models[0].compute_num_observations()


def _is_possible(camera: pycolmap.Camera, given: pycolmap.Camera) -> bool:
    """Whether a focal length is near what EXIF data say, or else what lenses have."""
    if given.has_prior_focal_length:
        return 0.7 < camera.mean_focal_length() / given.mean_focal_length() < 1.4
    return 0.3 < camera.mean_focal_length() / max(camera.width, camera.height) < 5.0


def _map_globally(
    database: Path, folder: Path, refine: bool, options: MappingOptions
) -> list[pycolmap.Reconstruction]:
    o = pycolmap.GlobalPipelineOptions()
    o.min_num_matches = options.min_inliers
    o.random_seed = options.seed
    o.num_threads = options.threads
    o.mapper.bundle_adjustment.refine_focal_length = refine
    o.mapper.bundle_adjustment.refine_extra_params = refine
    o.mapper.min_tri_angle_deg = options.min_tri_angle
    o.mapper.retriangulation.min_angle = options.min_tri_angle
    o.mapper.retriangulation.ignore_two_view_tracks = not options.two_view_points
    working = folder / "database.db"
    shutil.copyfile(database, working)
    if refine:
        # changes the database: focal lengths from fundamental matrices, which the mapper needs
        pycolmap.calibrate_view_graph(working)
    models = folder / "models"
    models.mkdir()
    return list(pycolmap.global_mapping(working, folder, models, o).values())
