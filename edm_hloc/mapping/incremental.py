"""COLMAP's incremental mapper on a database, and what is tried where it fails."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import drop_pointless, open_database
from edm_hloc.base.progress import StepProgress
from edm_hloc.mapping.database_reading import cameras_by_id
from edm_hloc.mapping.focal_lengths import calibrate_focal_lengths
from edm_hloc.mapping.joining import join_models
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.parts import share_cameras
from edm_hloc.mapping.plausible import (
    LONGEST_LENS,
    MIN_PLAUSIBLE,
    allow_cameras,
    drop_bogus,
    focal_lengths_agree,
    plausible_images,
)
from edm_hloc.mapping.priors import use_priors
from edm_hloc.mapping.shared_cameras import fit_shared_cameras, merge_cameras
from edm_hloc.mapping.snapshots import Snapshots, content_of

logger = logging.getLogger(__name__)

_MIN_THINNED = 15  # matches of a pair where tracks were chosen
_TRIALS = 2  # of a photo that is dropped as its camera diverges; completion tries it once more
_GROWTH = 1.3  # of a model of chosen tracks, between adjustments of all its cameras
_SETTLED_NEARBY = 1e-4  # relative change of the cost that ends an adjustment of the newest cameras
_SETTLED_ALL = 1e-5  # the same for all cameras: COLMAP goes on for 50 iterations


def incremental_options(options: MappingOptions) -> pycolmap.IncrementalPipelineOptions:
    """COLMAP's options of the incremental mapper and of the triangulation."""
    colmap = pycolmap.IncrementalPipelineOptions()
    colmap.min_num_matches = options.min_inliers
    colmap.random_seed = options.seed
    colmap.num_threads = options.threads
    # By COLMAP's default of 10 photos through telephoto lenses are dropped and taken up in turns.
    colmap.max_focal_length_ratio = LONGEST_LENS
    colmap.extract_colors = False  # only the model that is kept gets colours, in `write_model`
    colmap.mapper.init_max_error = options.max_error
    colmap.mapper.abs_pose_max_error = 3 * options.max_error
    colmap.mapper.filter_max_reproj_error = options.max_error
    colmap.mapper.filter_min_tri_angle = options.min_tri_angle
    colmap.triangulation.complete_max_reproj_error = options.max_error
    colmap.triangulation.merge_max_reproj_error = options.max_error
    colmap.triangulation.min_angle = options.min_tri_angle
    colmap.triangulation.ignore_two_view_tracks = not options.two_view_points
    return colmap


def refining_options(
    options: MappingOptions, focal: bool, distortion: bool
) -> pycolmap.IncrementalPipelineOptions:
    """The same, with what is refined of the cameras that are not constant."""
    colmap = incremental_options(options)
    colmap.ba_refine_focal_length = colmap.mapper.abs_pose_refine_focal_length = focal
    colmap.ba_refine_extra_params = colmap.mapper.abs_pose_refine_extra_params = distortion
    return colmap


@dataclass(frozen=True)
class IncrementalMapping:
    """COLMAP's incremental mapper on one database.

    Attributes:
        database: COLMAP database with verified pairs.
        image_root: folder of the photos.
        folder: for the models that the mapper writes.
        constant_cameras: ids of the cameras whose intrinsics are not refined.
        images: number of images that verified pairs connect.
        options: thresholds.
        snapshots: gets unfinished models, from which the next run goes on if it is killed.
        thinned: whether the database holds chosen tracks only, see `thin_database`.
    """

    database: Path
    image_root: Path
    folder: Path
    constant_cameras: set[int]
    images: int
    options: MappingOptions
    snapshots: Snapshots | None = None
    thinned: bool = False

    def colmap_options(
        self, refine_focal: bool, refine_distortion: bool
    ) -> pycolmap.IncrementalPipelineOptions:
        """COLMAP's options, with what is refined of the cameras that are not constant."""
        colmap = refining_options(self.options, refine_focal, refine_distortion)
        colmap.min_model_size = 3
        colmap.constant_cameras = self.constant_cameras
        allow_cameras(colmap, self._constant)
        use_priors(colmap, self.database)
        if self.thinned:
            colmap.min_num_matches = min(colmap.min_num_matches, _MIN_THINNED)
            colmap.mapper.max_reg_trials = _TRIALS
            colmap.ba_global_frames_ratio = colmap.ba_global_points_ratio = _GROWTH
            # all matches follow in `complete_model`: what is left to gain here is soon lost again
            colmap.ba_local_max_refinements, colmap.ba_global_max_refinements = 1, 2
            colmap.ba_local_function_tolerance = _SETTLED_NEARBY
            colmap.ba_global_function_tolerance = _SETTLED_ALL
        return colmap

    def adjustment(self, distortion: bool) -> pycolmap.BundleAdjustmentOptions:
        """COLMAP's options of adjusting a whole model, with the distortion or without."""
        return self.colmap_options(True, distortion).get_global_bundle_adjustment()

    @cached_property
    def _constant(self) -> list[pycolmap.Camera]:
        """The cameras whose intrinsics are not refined."""
        return [c for i, c in cameras_of(self.database).items() if i in self.constant_cameras]

    @cached_property
    def with_one_camera(self) -> tuple[IncrementalMapping, tuple[str, ...]] | None:
        """The same on a copy where photos of one size share a camera, and the names of these; None
        where none may be of one."""
        shared = self.folder / f"one-camera-{self.database.name}"
        names = share_cameras(self.database, shared)
        if not names:
            return None
        if self.thinned:
            calibrate_focal_lengths(shared)  # all pairs together, instead of one photo's
        return replace(self, database=shared), names

    def like(self, found: FoundModel) -> IncrementalMapping:
        """The same with the cameras that a model of these photos was mapped with."""
        shared = self.with_one_camera if found.one_camera else None
        return shared[0] if shared is not None else self

    def run(
        self, refine_focal: bool, refine_distortion: bool, any_start: bool = False
    ) -> list[pycolmap.Reconstruction]:
        """All models that the mapper finds.

        Args:
            refine_focal: refine the focal length of the cameras that are not constant.
            refine_distortion: refine their distortion as well. Photos taken in straight forward
                motion do not determine it: it can grow without bound and spoil the model.
            any_start: accept initial pairs with forward motion and a small triangulation angle,
                which COLMAP rejects by default as they determine depth badly.
        """
        colmap = self.colmap_options(refine_focal, refine_distortion)
        if any_start:
            colmap.mapper.init_max_forward_motion = 1.0  # share of the motion: no limit
            colmap.mapper.init_min_tri_angle /= 2
        start, registered = None, 0
        if self.snapshots is not None:
            with open_database(self.database) as db:
                run = [refine_focal, refine_distortion, any_start, content_of(db)]
            start, registered = self.snapshots.begin(colmap, self.images, run)
        with StepProgress("Mapping", "photo", self.images, before=registered) as progress:
            resumed = start is not None

            def registered_first() -> None:
                nonlocal resumed
                if not resumed:
                    # another model, of other photos, or once more, as the last was not good enough
                    progress.restart(2, "from another pair of photos" if progress.done else "")
                resumed = False  # COLMAP calls this for the model that it goes on with as well

            def registered_next() -> None:
                if progress.done < self.images:  # photos that were dropped are counted again
                    progress.update()
                if self.snapshots is not None:
                    self.snapshots.prune()

            models = pycolmap.incremental_mapping(
                self.database,
                self.image_root,
                self.folder,
                colmap,
                input_path=start or "",
                initial_image_pair_callback=registered_first,
                next_image_callback=registered_next,
            )
        for model in models.values():
            drop_bogus(model, colmap)
        return list(models.values())

    def models(self, refine_focal: bool, refine_distortion: bool) -> list[pycolmap.Reconstruction]:
        """What `run` finds, with points, those joined that share photos, the largest first."""
        found = with_points(self.run(refine_focal, refine_distortion))
        if len(found) < 2:
            return found
        colmap = self.colmap_options(refine_focal, refine_distortion)
        return with_points(join_models(found, self.database, colmap))


@dataclass(frozen=True)
class FoundModel:
    """A model of the mapper's.

    Attributes:
        model: with points, and with images that no larger model of the same part has.
        undistorted: distortion was left at zero, as no believable model was found with it.
        one_camera: names of photos, not only its own, that have a camera each in the database and
            share one here with others of their size, as they fit it no worse.
        own_cameras: names of photos, not only its own, that share cameras in the database and have
            one each here, as they fit it far better.
        look_alikes: names of the photos of verified pairs that were left out: with them the model
            had folded.
    """

    model: pycolmap.Reconstruction
    undistorted: bool = False
    one_camera: tuple[str, ...] = ()
    own_cameras: tuple[str, ...] = ()
    look_alikes: tuple[tuple[str, str], ...] = ()


def map_believably(mapping: IncrementalMapping, refine: bool) -> list[FoundModel]:
    """Runs the mapper, several times where it finds no believable model."""
    initial = cameras_of(mapping.database)
    with open_database(mapping.database) as db:
        used = [image.camera_id for image in db.read_all_images()]
    refine = refine and not mapping.constant_cameras >= set(used)
    # One photo of a camera does not determine distortion before there is a model around it.
    later = refine and mapping.thinned and len(set(used)) > len(used) / 2
    models = mapping.models(refine, refine and not later)
    undistorted = False
    one_camera: tuple[str, ...] = ()
    few = _registered(models) < mapping.images / 2
    shared = mapping.with_one_camera if refine and mapping.options.one_camera else None
    if shared is not None:
        sharing, names = shared
        own = plausible_images(models, initial)
        lenses = own[0] >= MIN_PLAUSIBLE * own[1]
        believable = not few and lenses and focal_lengths_agree(models[0], names)
        every = _registered(models) == mapping.images
        merged = _merged(sharing, models, initial) if believable and every else None
        if merged is None:
            again, flat = _with_shared_cameras(sharing, initial)
            if plausible_images(again, initial) >= own and (
                not believable or _fit(sharing, again, models, not flat)
            ):
                merged = again, flat
            elif believable and not every:
                merged = _merged(sharing, models, initial)
        if merged is not None:
            (models, undistorted), mapping, one_camera, later = merged, sharing, names, False
    plausible, registered = plausible_images(models, initial)
    few, spoiled = registered < mapping.images / 2, plausible < MIN_PLAUSIBLE * registered
    if later and spoiled and not few:
        undistorted = True  # cameras that are badly determined already
    elif refine and (few or spoiled) and not one_camera:
        logger.info("Mapping once more, %s distortion.", "with" if later else "without")
        again = mapping.models(refine, later)
        if plausible_images(again, initial) > (plausible, registered):
            models, undistorted = again, not later  # else the distortion was not the reason
    if not models:
        logger.info("Mapping once more, from any pair of photos.")
        models, undistorted = with_points(mapping.run(refine, False, any_start=True)), refine
    return [FoundModel(model, undistorted, one_camera) for model in models]


def _merged(
    sharing: IncrementalMapping,
    models: Sequence[pycolmap.Reconstruction],
    initial: Mapping[int, pycolmap.Camera],
) -> tuple[list[pycolmap.Reconstruction], bool] | None:
    """Believable models of a camera for each photo with one for photos of one size, if that fits.

    An adjustment finds it where the cameras of the photos agree already; mapping again would take
    long, and the mapper may then miss photos that it has found.

    Args:
        sharing: on the database where these photos share a camera.
        models: mapped with a camera for each, the largest first.
        initial: the cameras of the database by id.

    Returns:
        The models, and whether distortion was left as it was; None if they do not fit.
    """
    least = sharing.colmap_options(True, True).min_num_matches
    for distortion in (True, False):
        merged = [
            merge_cameras(
                model,
                sharing.database,
                least,
                sharing.adjustment(distortion),
                sharing.constant_cameras,
            )
            for model in models
        ]
        plausible, registered = plausible_images(merged, initial)
        if plausible >= MIN_PLAUSIBLE * registered:
            return (merged, not distortion) if _fit(sharing, merged, models, distortion) else None
    return None


def _fit(
    sharing: IncrementalMapping,
    shared: Sequence[pycolmap.Reconstruction],
    own: Sequence[pycolmap.Reconstruction],
    distortion: bool,
) -> bool:
    """Whether the largest model with shared cameras fits its photos no worse."""
    adjustment = sharing.adjustment(distortion)
    return fit_shared_cameras(shared[0], own[0], adjustment, sharing.constant_cameras)


def _with_shared_cameras(
    sharing: IncrementalMapping, initial: Mapping[int, pycolmap.Camera]
) -> tuple[list[pycolmap.Reconstruction], bool]:
    """Models with one camera for photos of one size, and whether distortion was left at zero.

    It is where a model with it has implausible cameras or few photos, and one without it has not.

    Args:
        sharing: on the database where these photos share a camera.
        initial: the cameras of the database by id.
    """
    logger.info("Mapping once more, with one camera for photos of one size.")
    models = sharing.models(True, True)
    plausible, registered = plausible_images(models, initial)
    if registered >= sharing.images / 2 and plausible >= MIN_PLAUSIBLE * registered:
        return models, False
    logger.info("Mapping once more, with one camera for photos of one size, without distortion.")
    flat = sharing.models(True, False)
    if plausible_images(flat, initial) > (plausible, registered):
        return flat, True
    return models, False


def cameras_of(database: Path) -> dict[int, pycolmap.Camera]:
    """The cameras of a database by id."""
    with open_database(database) as db:
        return cameras_by_id(db)


def _registered(models: Sequence[pycolmap.Reconstruction]) -> int:
    """Number of images of the largest model."""
    return models[0].num_reg_images() if models else 0


def with_points(
    models: Iterable[pycolmap.Reconstruction], covered: Collection[int] = ()
) -> list[pycolmap.Reconstruction]:
    """The models that have points, the one with most images first, each without images that have
    none.

    A model whose images are all in larger ones is left out: it is no part of its own.

    Args:
        models: images without points are taken out of them.
        covered: ids of images that count as those of a larger model.
    """
    some = [model for model in models if model.num_points3D()]
    for model in some:
        drop_pointless(model)
    parts: list[pycolmap.Reconstruction] = []
    covered = set(covered)
    for model in sorted(some, key=size_of, reverse=True):
        images = set(model.reg_image_ids())
        if not images <= covered:
            parts.append(model)
            covered |= images
    return parts


def size_of(model: pycolmap.Reconstruction) -> tuple[int, int]:
    """Registered images and points, by which models are put in order."""
    return model.num_reg_images(), model.num_points3D()
