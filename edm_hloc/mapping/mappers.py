"""Verified pairs → models, by COLMAP's mappers, and what is tried where they find none."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from edm_hloc.base.colmap import ModelStatistics, open_database, posed_images, quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.journal import journal_path
from edm_hloc.base.progress import StepProgress
from edm_hloc.mapping.completion import complete_model
from edm_hloc.mapping.forecast import forecast, say_forecast
from edm_hloc.mapping.no_model import explain_no_model, explain_turning
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import (
    MappingSummary,
    new_model_folder,
    parts_folder,
    write_model,
    write_parts,
)
from edm_hloc.mapping.plausible import MIN_PLAUSIBLE, plausible_images
from edm_hloc.mapping.priors import PositionPriors, adjust_to_priors, use_priors, with_priors
from edm_hloc.mapping.snapshots import Snapshots, content_of, kept_snapshots
from edm_hloc.mapping.thinning import thin_database
from edm_hloc.mapping.turning import only_turned, turned_groups
from edm_hloc.mapping.verification import VerificationSummary

logger = logging.getLogger(__name__)

_MIN_THINNED = 15  # matches of a pair where tracks were chosen
_GROWTH = 1.3  # of a model of chosen tracks, between adjustments of all its cameras
_SETTLED_NEARBY = 1e-4  # relative change of the cost that ends an adjustment of the newest cameras
_SETTLED_ALL = 1e-5  # the same for all cameras: COLMAP goes on for 50 iterations


def check_known(
    known: Collection[object], every: Collection[object], options: MappingOptions
) -> None:
    """Checks that the mapper can keep the known intrinsics.

    Args:
        known: names of images, or ids of cameras, with known intrinsics.
        every: names of all images, or ids of all cameras.
        options: `mapper` and `refine_intrinsics` count here.

    Raises:
        EdmHlocError: some but not all are known, and the global mapper would refine them.
    """
    some = not set(known).isdisjoint(every) and not set(known).issuperset(every)
    if some and options.mapper == "global" and options.refine_intrinsics:
        raise EdmHlocError(
            "Intrinsics are known of some of the photos only, and the global mapper adjusts those "
            "of all or none: give them for all photos, or take the incremental mapper."
        )


def map_database(
    database: Path,
    image_root: Path,
    out: Path,
    options: MappingOptions | None = None,
    known: Iterable[str] = (),
    priors: PositionPriors | None = None,
) -> MappingSummary:
    """Reconstructs poses and points and writes the largest connected model to `out`, binary.

    Where the photos fall into several models, the others are written to `parts_folder(out)`. While
    the incremental mapper is at work, unfinished models lie in `journal_path(out)`, from which the
    same call goes on after the process was killed.

    Args:
        database: COLMAP database with verified pairs (see `build_database`).
        image_root: folder of the photos, for the colours of the points.
        out: folder of the model, written on success only. A model that is there is replaced.
        options: mapper and thresholds.
        known: names of the images whose intrinsics are not refined.
        priors: positions that the cameras are kept near, by the incremental mapper; the model is
            then in their frame.

    Raises:
        EdmHlocError: no model was found, with the reason and what to try; the camera turned without
            moving; the mapper cannot keep the known intrinsics; `out` holds other files.
    """
    options, known = options or MappingOptions(), set(known)
    start = time.monotonic()
    database, image_root, out = Path(database), Path(image_root), Path(out)
    with open_database(database) as db:
        verified_pairs = VerificationSummary.of(db).verified_pairs
        images = {image.image_id: image for image in db.read_all_images()}
        constant = {image.camera_id for image in images.values() if image.name in known}
        if only_turned(db, constant):
            raise EdmHlocError(explain_turning(database))
        content = content_of(db)
    names = [image.name for image in images.values()]
    if not verified_pairs:
        raise EdmHlocError(explain_no_model(database))
    depends_on: list[object] = [content, options.of_mapping(), sorted(known)]
    if priors is not None:
        depends_on.append(asdict(priors))
    with (
        kept_snapshots(journal_path(out), fingerprint_of(depends_on)) as snapshots,
        new_model_folder(out) as temporary,
        quiet_colmap(),
    ):
        to_map = database
        if priors is not None:
            to_map = with_priors(database, temporary / "priors.db", priors)
        models, undistorted = find_models(to_map, image_root, temporary, options, known, snapshots)
        if not models:
            raise EdmHlocError(explain_no_model(database))
        models, turned = _without_turned(database, models, constant)
        if not models:
            raise EdmHlocError(explain_turning(database))
        if priors is not None:
            refine = options.refine_intrinsics
            colmap = refining_options(options, refine, refine and not undistorted)
            for model in models:  # the completion has no regard for them
                adjust_to_priors(model, priors, colmap, constant)
        write_model(models[0], image_root, temporary)
        write_parts(models[1:], image_root, parts_folder(out))
        statistics = ModelStatistics.of(models[0])
    components = tuple(model.num_reg_images() for model in models)
    if len(components) > 1:
        logger.warning(
            "The photos fall into %d separate models of %s images; %s is the largest, the others "
            "are in %s.",
            len(components),
            ", ".join(map(str, components)),
            out,
            parts_folder(out),
        )
    registered = posed_images(models[0])
    return MappingSummary(
        statistics=statistics,
        images=len(names),
        unregistered=tuple(sorted(set(names) - registered.keys())),
        components=components,
        seconds=time.monotonic() - start,
        undistorted=undistorted,
        turned=turned,
    )


def _without_turned(
    database: Path, models: Sequence[pycolmap.Reconstruction], known: Collection[int]
) -> tuple[list[pycolmap.Reconstruction], tuple[str, ...]]:
    """The models of photos from several places, and the names of those taken from one place."""
    kept, turned = [], set[str]()
    with open_database(database) as db:
        names = {image.image_id: image.name for image in db.read_all_images()}
        for model in models:
            posed = posed_images(model)
            if only_turned(db, known, {image.image_id for image in posed.values()}):
                turned |= posed.keys()
            else:
                kept.append(model)
        posed_anywhere = {name for model in models for name in posed_images(model)}
        others = {image_id for image_id, name in names.items() if name not in posed_anywhere}
        turned |= {names[image_id] for image_id in turned_groups(db, known, others)}
    for model in kept:
        turned -= posed_images(model).keys()
    return kept, tuple(sorted(turned))


def find_models(
    database: Path,
    image_root: Path,
    folder: Path,
    options: MappingOptions,
    known: Iterable[str] = (),
    snapshots: Snapshots | None = None,
) -> tuple[list[pycolmap.Reconstruction], bool]:
    """Runs the mapper, several times where the incremental one finds no believable model.

    Args:
        database: COLMAP database with verified pairs.
        image_root: folder of the photos.
        folder: for the files that the mapper writes.
        options: mapper and thresholds.
        known: names of the images whose intrinsics are not refined.
        snapshots: where the incremental mapper leaves unfinished models, and goes on from them.

    Returns:
        The models that have points and images of their own, the one with most images first, and
        whether distortion was left at zero because no believable model has it.

    Raises:
        EdmHlocError: the mapper cannot keep the known intrinsics, see `check_known`.
    """
    known = set(known)
    with open_database(database) as db:
        images = db.read_all_images()
        initial = {camera.camera_id: camera for camera in db.read_all_cameras()}
        largest_component = _largest_component(db, options.min_inliers)
    constant = {image.camera_id for image in images if image.name in known}
    every = {image.camera_id for image in images}
    check_known(constant, every, options)
    refine = options.refine_intrinsics and not constant >= every
    if options.mapper == "global":
        return _with_points(_map_globally(database, folder, refine, options)), False
    mapping = IncrementalMapping(
        database, image_root, folder, constant, len(images), options, snapshots
    )
    thin, start = folder / "thin.db", time.monotonic()
    kept = thin_database(database, thin, options.min_inliers)
    if kept is not None:
        expected = forecast(database, kept, time.monotonic() - start)
        on_chosen = replace(mapping, database=thin, thinned=True, expected=expected)
        models, undistorted = _map_incrementally(on_chosen, refine, largest_component, initial)
        colmap = mapping.colmap_options(refine, refine and not undistorted)
        models = _with_points(_completed(models, kept, database, colmap))
        if models:
            return models, undistorted
    return _map_incrementally(mapping, refine, largest_component, initial)


def _map_incrementally(
    mapping: IncrementalMapping,
    refine: bool,
    largest_component: int,
    initial: Mapping[int, pycolmap.Camera],
) -> tuple[list[pycolmap.Reconstruction], bool]:
    """The models, and whether their distortion was left at zero, see `find_models`."""
    models, undistorted = _with_points(mapping.run(refine, refine)), False
    quality = plausible_images(models, initial)
    registered = models[0].num_reg_images() if models else 0
    # Only where far too few images are registered, or more than a few cameras are implausible.
    if refine and (registered < largest_component / 2 or quality[0] < MIN_PLAUSIBLE * registered):
        logger.info("Mapping once more, without distortion.")
        again = _with_points(mapping.run(refine, False))
        if plausible_images(again, initial) > quality:  # else the distortion was not the reason
            models, undistorted = again, True
    if not models:
        logger.info("Mapping once more, from any pair of photos.")
        models, undistorted = _with_points(mapping.run(refine, False, any_start=True)), refine
    return models, undistorted


def _completed(
    models: Sequence[pycolmap.Reconstruction],
    kept: Mapping[int, np.ndarray],
    database: Path,
    colmap: pycolmap.IncrementalPipelineOptions,
) -> Iterator[pycolmap.Reconstruction]:
    """Models of chosen tracks completed, without those whose images a larger one has got."""
    covered: set[int] = set()
    for model in models:
        if not set(model.reg_image_ids()) <= covered:
            whole = complete_model(model, kept, database, colmap)
            covered |= set(whole.reg_image_ids())
            yield whole


def incremental_options(options: MappingOptions) -> pycolmap.IncrementalPipelineOptions:
    """COLMAP's options of the incremental mapper and of the triangulation."""
    colmap = pycolmap.IncrementalPipelineOptions()
    colmap.min_num_matches = options.min_inliers
    colmap.random_seed = options.seed
    colmap.num_threads = options.threads
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
        images: number of images, for the progress bar.
        options: thresholds.
        snapshots: gets unfinished models, from which the next run goes on if it is killed.
        thinned: whether the database holds chosen tracks only, see `thin_database`.
        expected: seconds that it is going to take, 0 where it is not known.
    """

    database: Path
    image_root: Path
    folder: Path
    constant_cameras: set[int]
    images: int
    options: MappingOptions
    snapshots: Snapshots | None = None
    thinned: bool = False
    expected: float = 0.0

    def colmap_options(
        self, refine_focal: bool, refine_distortion: bool
    ) -> pycolmap.IncrementalPipelineOptions:
        """COLMAP's options, with what is refined of the cameras that are not constant."""
        colmap = refining_options(self.options, refine_focal, refine_distortion)
        colmap.min_model_size = 3
        colmap.constant_cameras = self.constant_cameras
        use_priors(colmap, self.database)
        if self.thinned:
            colmap.min_num_matches = min(colmap.min_num_matches, _MIN_THINNED)
            colmap.ba_global_frames_ratio = colmap.ba_global_points_ratio = _GROWTH
            # all matches follow in `complete_model`: what is left to gain here is soon lost again
            colmap.ba_local_max_refinements, colmap.ba_global_max_refinements = 1, 2
            colmap.ba_local_function_tolerance = _SETTLED_NEARBY
            colmap.ba_global_function_tolerance = _SETTLED_ALL
        return colmap

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
        if not registered:
            say_forecast(self.images, self.expected)
        with StepProgress("Mapping", "photo", self.images, before=registered) as progress:

            def registered_first() -> None:
                # another model, of other photos, or once more, as the last was not good enough
                progress.restart(2, "from another pair of photos" if progress.done else "")

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
        return list(models.values())


def _with_points(models: Iterable[pycolmap.Reconstruction]) -> list[pycolmap.Reconstruction]:
    """The models that have points, the one with most images first.

    A model whose images are all in larger ones is left out: it is no part of its own.
    """
    by_size = sorted(
        (model for model in models if model.num_points3D()),
        key=lambda model: (model.num_reg_images(), model.num_points3D()),
        reverse=True,
    )
    parts: list[pycolmap.Reconstruction] = []
    covered: set[int] = set()
    for model in by_size:
        images = set(model.reg_image_ids())
        if not images <= covered:
            parts.append(model)
            covered |= images
    return parts


def _largest_component(db: pycolmap.Database, min_inliers: int) -> int:
    """Number of images in the largest connected component of the graph of verified pairs."""
    number = {image.image_id: i for i, image in enumerate(db.read_all_images())}
    edges = [
        [number[image_id] for image_id in pycolmap.pair_id_to_image_pair(pair_id)]
        for pair_id, inliers in zip(*db.read_two_view_geometry_num_inliers(), strict=True)
        if inliers >= min_inliers
    ]
    if not edges:
        return 0
    rows, columns = np.array(edges).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(number), len(number)))
    return int(np.bincount(connected_components(graph, directed=False)[1]).max())


def _map_globally(
    database: Path, folder: Path, refine: bool, options: MappingOptions
) -> list[pycolmap.Reconstruction]:
    """All models that COLMAP's global mapper finds, on a copy of the database."""
    colmap = pycolmap.GlobalPipelineOptions()
    colmap.min_num_matches = options.min_inliers
    colmap.random_seed = options.seed
    colmap.num_threads = options.threads
    colmap.mapper.bundle_adjustment.refine_focal_length = refine
    colmap.mapper.bundle_adjustment.refine_extra_params = refine
    colmap.mapper.min_tri_angle_deg = options.min_tri_angle
    colmap.mapper.retriangulation.min_angle = options.min_tri_angle
    colmap.mapper.retriangulation.ignore_two_view_tracks = not options.two_view_points
    working = folder / "database.db"
    shutil.copyfile(database, working)
    if refine:
        # Writes focal lengths from fundamental matrices into the database; the mapper needs them.
        pycolmap.calibrate_view_graph(working)
    models = folder / "models"
    models.mkdir()
    with StepProgress("Mapping"):
        return list(pycolmap.global_mapping(working, folder, models, colmap).values())
