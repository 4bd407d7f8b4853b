"""More photos for a model that is there: the new ones are registered, and its frame is kept."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.at_work import at_work
from edm_hloc.base.colmap import (
    ModelStatistics,
    adjust_all_images,
    centres_of,
    drop_pointless,
    open_database,
    posed_images,
    quiet_colmap,
    take_intrinsics,
    unposed_model,
    write_model_files,
)
from edm_hloc.base.geometry import extent
from edm_hloc.base.progress import StepProgress
from edm_hloc.mapping.frames import frame_change
from edm_hloc.mapping.incremental import cameras_of, refining_options, with_points
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import (
    MappingSummary,
    new_model_folder,
    number_of_cameras,
    only_elsewhere,
    parts_folder,
    write_model,
    write_parts,
)
from edm_hloc.mapping.parts import part_cameras, share_cameras
from edm_hloc.mapping.plausible import allow_cameras, drop_bogus
from edm_hloc.mapping.shared_cameras import photos_told_apart
from edm_hloc.mapping.triangulation import triangulate_points

_MIN_KEPT = 3  # images of the earlier model, which determine its frame
_MIN_KEPT_SHARE = 0.5  # of all images; with fewer the model is better made anew


@dataclass(frozen=True)
class ExtensionSummary:
    """What became of an earlier model.

    Attributes:
        before: images in the earlier model.
        kept: of these, images in the new one whose photos have not changed.
        removed: of these, images that are not among the photos any more.
        added: images in the new model that were not in the earlier one.
        moved: largest distance between the old and the new place of a kept camera, as a share of
            the extent of the earlier cameras.
        rotated: largest angle between the old and the new rotation of a kept camera, degrees.
        changed: images in the earlier model under whose names there are other photos now.
    """

    before: int
    kept: int
    removed: int
    added: int
    moved: float
    rotated: float
    changed: int = 0


@dataclass(frozen=True)
class EarlierModel:
    """A model of some of the photos.

    Attributes:
        model: the model.
        names: images whose poses hold: their photos are still there and have not changed.
        distorted: whether its cameras have lens distortion.
        one_camera: names of the photos that share a camera although each has its own in the
            database.
        own_cameras: names of the photos that have a camera each although they share some there.
        look_alikes: whether verified pairs were left out, with which it had folded.
    """

    model: pycolmap.Reconstruction
    names: Collection[str]
    distorted: bool = True
    one_camera: Collection[str] = ()
    own_cameras: Collection[str] = ()
    look_alikes: bool = False


def extend_model(
    database: Path,
    image_root: Path,
    out: Path,
    earlier: EarlierModel,
    options: MappingOptions,
    known: Collection[str] = (),
) -> tuple[MappingSummary, ExtensionSummary] | None:
    """Registers photos into a model and writes it to `out`, in the frame of the earlier model.

    All points are triangulated anew with the poses that hold. The other photos are registered one
    after the other while these poses are fixed; then everything is adjusted together, and brought
    back to where the earlier cameras are.

    Args:
        database: COLMAP database with verified pairs of all photos, whatever their ids.
        image_root: folder of the photos, for the colours of the points.
        out: folder of the model, written on success only. A model that is there is replaced.
        earlier: the model to extend.
        options: thresholds.
        known: names of the images whose intrinsics are not refined.

    Returns:
        The model that was written and what became of the earlier one; None, with nothing written,
        if too few of its images are left or see points again; if its cameras are of other sizes, or
        are one that the new photos cannot share; or if pairs were left out of it, with which it
        would fold.

    Raises:
        EdmHlocError: `out` holds other files, or cannot be written.
    """
    start = time.monotonic()
    before = posed_images(earlier.model)
    if earlier.look_alikes:
        return None
    with (
        contextlib.suppress(_NotExtendedError),
        new_model_folder(out) as temporary,
        quiet_colmap(),
    ):
        sharing: tuple[str, ...] = ()
        apart = before.keys() & set(earlier.names) & set(earlier.own_cameras)
        own = part_cameras(database, temporary / "apart.db", apart)
        database = temporary / "apart.db" if own else database
        together = before.keys() & set(earlier.names) & set(earlier.one_camera)
        if together:
            whole_database, database = database, temporary / "one-camera.db"
            sharing = share_cameras(whole_database, database, together)
            if not together <= set(sharing):
                raise _NotExtendedError
        database = _with_lenses(earlier, database, temporary / "lenses.db")
        with open_database(database) as db:
            names = {image.name for image in db.read_all_images()}
            whole = _with_known_poses(db, earlier, options)
        held = set(posed_images(whole))
        # before COLMAP leaves photos without a pose out of what it triangulates
        refine = Refinement.of(whole, known, options.refine_intrinsics, earlier.distorted)
        with StepProgress("Triangulating"):
            whole = triangulate_points(whole, database, image_root, temporary, options)
        if not whole.num_points3D():
            raise _NotExtendedError
        models = register_more(whole, database, image_root, temporary, options, refine)
        main = max(models, key=lambda m: (len(held & posed_images(m).keys()), m.num_reg_images()))
        adjust(main, options, refine)
        drop_pointless(main)
        if len(held & posed_images(main).keys()) < _MIN_KEPT:
            raise _NotExtendedError
        to_earlier = frame_change(main, earlier.model, held)
        main.transform(to_earlier)
        if options.refine_intrinsics and options.one_camera:
            colmap = refining_options(options, refine.focal, refine.distortion)
            adjustment = colmap.get_global_bundle_adjustment()
            if photos_told_apart(main, adjustment, refine.known, sharing):
                raise _NotExtendedError
        others = with_points((m for m in models if m is not main), main.reg_image_ids())
        write_model(main, image_root, temporary)
        write_parts(others, image_root, parts_folder(out))
        everywhere = tuple(sorted({n for m in (main, *others) for n in posed_images(m)}))
        mapped = MappingSummary(
            statistics=ModelStatistics.of(main),
            images=len(names),
            unregistered=tuple(sorted(names - posed_images(main).keys())),
            components=(main.num_reg_images(), *(m.num_reg_images() for m in others)),
            seconds=time.monotonic() - start,
            elsewhere=only_elsewhere(main, others),
            undistorted=not earlier.distorted,
            undistorted_photos=() if earlier.distorted else everywhere,
            one_camera_photos=tuple(name for name in everywhere if name in sharing),
            shared_cameras=sum(number_of_cameras(m, sharing) for m in (main, *others)),
            own_camera_photos=tuple(name for name in everywhere if name in own),
        )
        removed = before.keys() - names
        changed = before.keys() - removed - set(earlier.names)
        compared = compared_cameras(main, earlier.model, earlier.names)
        return mapped, replace(compared, removed=len(removed), changed=len(changed))
    return None


class _NotExtendedError(Exception):
    """The earlier model cannot be extended; nothing is written."""


def _with_lenses(earlier: EarlierModel, database: Path, copy: Path) -> Path:
    """The database; a copy with the cameras of images whose poses hold, where these are of another
    camera model in the earlier model, as COLMAP triangulates only what has the database's."""
    posed, changed = posed_images(earlier.model), {}
    with open_database(database) as db:
        for image in db.read_all_images():
            if image.name in posed and image.name in earlier.names:
                own = db.read_camera(image.camera_id)
                camera = earlier.model.cameras[posed[image.name].camera_id]
                if own.model != camera.model:
                    take_intrinsics(own, camera)
                    changed[own.camera_id] = own
    if not changed:
        return database
    shutil.copyfile(database, copy)
    with open_database(copy) as db:
        for camera in changed.values():
            db.update_camera(camera)
    return copy


def _with_known_poses(
    db: pycolmap.Database, earlier: EarlierModel, options: MappingOptions
) -> pycolmap.Reconstruction:
    """The images and keypoints of a database, with the cameras and poses that hold."""
    whole, _ = unposed_model(db, options.min_inliers)
    before = posed_images(earlier.model)
    held = [i for i in whole.images.values() if i.name in before and i.name in earlier.names]
    if len(held) < max(_MIN_KEPT, _MIN_KEPT_SHARE * db.num_images()):
        raise _NotExtendedError
    for image in sorted(held, key=lambda i: i.image_id):
        camera = earlier.model.cameras[before[image.name].camera_id]
        own = whole.cameras[image.camera_id]
        if (own.width, own.height) != (camera.width, camera.height):
            raise _NotExtendedError
        take_intrinsics(own, camera)
        whole.frames[image.frame_id].rig_from_world = before[image.name].cam_from_world()
        whole.register_frame(image.frame_id)
    return whole


@dataclass(frozen=True)
class Refinement:
    """Which intrinsics may change in an adjustment.

    Attributes:
        known: ids of the cameras that never do.
        held: ids of the cameras of the earlier model, which change in the last adjustment only.
        focal, distortion: whether these are refined in the other cameras.
    """

    known: set[int]
    held: set[int]
    focal: bool
    distortion: bool

    @classmethod
    def of(
        cls,
        model: pycolmap.Reconstruction,
        known: Collection[str],
        refine: bool,
        distorted: bool,
    ) -> Refinement:
        constant = {image.camera_id for image in model.images.values() if image.name in known}
        held = {image.camera_id for image in posed_images(model).values()}
        refine = refine and not constant >= set(model.cameras)
        return cls(constant, held, refine, refine and distorted)


def register_more(
    model: pycolmap.Reconstruction,
    database: Path,
    image_root: Path,
    folder: Path,
    options: MappingOptions,
    refine: Refinement,
) -> list[pycolmap.Reconstruction]:
    """COLMAP's incremental mapper from a model on, whose cameras stay as they are.

    Args:
        model: with points.
        database: COLMAP database with verified pairs of all photos.
        image_root: folder of the photos.
        folder: for the files that the mapper writes.
        options: thresholds.
        refine: which intrinsics may change, those of new cameras only.

    Returns:
        All models that are there then, without images that see no point.
    """
    colmap = refining_options(options, refine.focal, refine.distortion)
    colmap.min_model_size = 3
    colmap.fix_existing_frames = True
    colmap.constant_cameras = refine.known | refine.held
    cameras = cameras_of(database) | dict(model.cameras)
    allow_cameras(colmap, [cameras[i] for i in sorted(colmap.constant_cameras & cameras.keys())])
    given, made = folder / "given", folder / "made"
    for path in (given, made):
        path.mkdir()
    write_model_files(model, given)
    with StepProgress("Registering", "photo") as progress:
        models = pycolmap.incremental_mapping(
            database,
            image_root,
            made,
            colmap,
            input_path=given,
            next_image_callback=lambda: progress.update(1),
        )
    found = list(models.values()) or [model]
    for each in found:
        drop_bogus(each, colmap)
        drop_pointless(each)
    return found


def adjust(
    model: pycolmap.Reconstruction,
    options: MappingOptions,
    refine: Refinement,
    robust: float | None = None,
) -> None:
    """Adjusts all cameras and points together, then drops the points that do not fit.

    Args:
        model: changed in place.
        options: thresholds.
        refine: which intrinsics may change.
        robust: error in pixels from which observations count less and less (Cauchy's loss), where
            some of them are wrong; None: all count alike.
    """
    colmap = refining_options(options, refine.focal, refine.distortion)
    config = adjust_all_images(model, refine.known)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    with at_work("Adjusting all cameras"):
        adjustment = colmap.get_global_bundle_adjustment()
        if robust is not None:
            adjustment.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
            adjustment.ceres.loss_function_scale = robust
        pycolmap.create_default_bundle_adjuster(adjustment, config, model).solve()
    pycolmap.ObservationManager(model).filter_all_points3D(
        colmap.mapper.filter_max_reproj_error, colmap.mapper.filter_min_tri_angle
    )
    model.update_point_3d_errors()


def compared_cameras(
    model: pycolmap.Reconstruction, earlier: pycolmap.Reconstruction, unchanged: Collection[str]
) -> ExtensionSummary:
    """What became of the cameras of an earlier model in the same frame.

    Args:
        model, earlier: the two models.
        unchanged: names of the photos that are there as they were for the earlier model. The other
            images of the two have nothing but their names in common.

    Returns:
        The summary, in which no images are removed or changed.
    """
    now, then = posed_images(model), posed_images(earlier)
    common = sorted(now.keys() & then.keys() & set(unchanged))
    moved = rotated = 0.0
    whole = extent(centres_of(then.values()))
    for name in common:
        a, b = now[name], then[name]
        away = float(np.linalg.norm(a.projection_center() - b.projection_center()))
        moved = max(moved, away / max(whole, 1e-12))
        turn = a.cam_from_world().rotation.angle_to(b.cam_from_world().rotation)
        rotated = max(rotated, float(np.degrees(turn)))
    return ExtensionSummary(
        before=len(then),
        kept=len(common),
        removed=0,
        added=len(now.keys() - then.keys()),
        moved=moved,
        rotated=rotated,
    )
