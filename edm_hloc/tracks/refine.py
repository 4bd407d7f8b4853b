"""A model → the same with its points seen sharply by all photos, and its cameras adjusted to them.

Each round aligns the photos of every track (see `alignment`), drops the observations that do not
agree, and adjusts all cameras and points. From the second round on, points are also looked for in
photos that were never matched there.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import ModelStatistics, posed_images, quiet_colmap, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.progress import StepProgress
from edm_hloc.images.sizes import fit_model
from edm_hloc.mapping.extension import frame_change
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import new_model_folder, write_model
from edm_hloc.tracks.adjustment import Freedom, adjust, drop_observations
from edm_hloc.tracks.alignment import Alignment, align
from edm_hloc.tracks.config import TrackConfig
from edm_hloc.tracks.geometry import Tracks, Views
from edm_hloc.tracks.more_photos import joined, possible_observations, repeated_points
from edm_hloc.tracks.photos import PhotoShelf
from edm_hloc.tracks.uncertainty import (
    camera_uncertainties,
    median_uncertainty,
    uncertainty_file,
    write_uncertainties,
)

_LEAST_SHARE = (
    1 / 3
)  # of the observations that agree, or else photos and model do not belong together


@dataclass(frozen=True)
class TrackSummary:
    """What the refinement of tracks made of a model.

    Attributes:
        before, after: size and reprojection error of the model.
        rounds: number of rounds.
        added: observations in photos that were not matched there.
        repeated: points that were there twice, of which one is left.
        unread: names of the photos that could not be read; their points stay as they were.
        seconds: wall-clock time.
        uncertainty: of the camera in the middle: its position in % of the cameras' extent, its
            rotation in degrees; None where it was not computed.
    """

    before: ModelStatistics
    after: ModelStatistics
    rounds: int
    added: int
    repeated: int
    unread: tuple[str, ...]
    seconds: float
    uncertainty: tuple[float, float] | None = None


@dataclass(frozen=True)
class KeptIntrinsics:
    """Which intrinsics an adjustment leaves as they are.

    Attributes:
        names: of the photos whose cameras stay.
        all: all cameras stay.
        distortion: the distortion of all cameras stays.
    """

    names: frozenset[str] = frozenset()
    all: bool = False
    distortion: bool = False


def refine_tracks(
    model: pycolmap.Reconstruction,
    image_root: Path,
    freedom: Freedom,
    config: TrackConfig | None = None,
    options: MappingOptions | None = None,
) -> TrackSummary:
    """Refines the points of a model in all photos that see them, and the model with them.

    Keypoints keep their numbers: those that move are moved in place, those that are dropped stay
    without a point, and new ones come after the last.

    Args:
        model: changed in place; its cameras are for the photos as they are stored.
        image_root: folder of the photos.
        freedom: what changes besides the points.
        config: the settings.
        options: minimum angle of a point's rays, and threads.

    Raises:
        EdmHlocError: the model has no points, or none of its photos can be read, or they agree at
            few of its points; the model is then to be discarded.
    """
    config, options = config or TrackConfig(), options or MappingOptions()
    begin = time.monotonic()
    if not model.num_points3D():
        raise EdmHlocError(
            "The model has no 3D points, so there are no tracks to refine. Make them first: "
            "edm-hloc triangulate MODEL IMAGES OUT"
        )
    before = ModelStatistics.of(model)
    views = Views.of(model)
    shelf = PhotoShelf(image_root, views.names, config.max_side)
    threads = options.threads if options.threads > 0 else os.cpu_count() or 1
    dropped: dict[tuple[int, int], int] = {}
    added = repeated = 0
    for number, radius in enumerate(config.patch_radii):
        views = Views.of(model)
        tracks = Tracks.of(model, views)
        voting = np.ones(len(tracks.view), bool)
        if number:
            more = possible_observations(tracks, views, config.max_photos)
            tracks, voting = joined(tracks, more)
        found = align(tracks, voting, views, shelf, config, (radius, threads))
        if shelf.unread.all():
            raise EdmHlocError(
                f"None of the {len(views.names)} photos of the model can be read in {image_root}: "
                "give the folder that their names are relative to."
            )
        keep, aligned = _agreeing(tracks, voting, found, shelf.unread[tracks.view], config)
        share = float(keep[voting].mean())
        if share < _LEAST_SHARE:
            raise EdmHlocError(
                f"The photos in {image_root} agree at only {share:.0%} of what the model sees: are "
                "they the ones that it was made of, and sharp?"
            )
        xy = np.where(aligned[:, None], found.xy, tracks.xy)
        moved = Tracks(tracks.ids, tracks.xyz, tracks.start, tracks.view, tracks.index, xy)
        again = repeated_points(moved.chosen(keep), views)
        keep &= ~again[tracks.track]
        added += _write(model, moved, views, keep, dropped)
        repeated += int(again.sum())
        with StepProgress("Adjusting to refined tracks"):
            last = number == len(config.patch_radii) - 1
            adjust(model, config.outlier, freedom, options, again=last)
    return TrackSummary(
        before=before,
        after=ModelStatistics.of(model),
        rounds=len(config.patch_radii),
        added=added,
        repeated=repeated,
        unread=tuple(np.array(views.names)[shelf.unread].tolist()),
        seconds=time.monotonic() - begin,
    )


def refine_model(
    reference: Path,
    image_root: Path,
    out: Path,
    kept: KeptIntrinsics | None = None,
    options: MappingOptions | None = None,
) -> TrackSummary:
    """Refines the tracks of a COLMAP model and writes the model to `out`, binary, in its old frame.

    Args:
        reference: folder of the model, COLMAP's own, hloc's or any other.
        image_root: folder of its photos.
        out: folder of the new model, written on success only; may be that of the reference. A model
            that is there is replaced. The cameras' uncertainties are written beside it, see
            `uncertainty.uncertainty_file`.
        kept: which intrinsics stay as they are.
        options: minimum angle of a point's rays, and threads.

    Raises:
        EdmHlocError: a model or folder cannot be read or written, or as `refine_tracks`.
    """
    model, _ = fit_model(read_model(reference), image_root, f"the model {reference}")
    kept = kept or KeptIntrinsics()
    constant = frozenset(
        image.camera_id
        for name, image in posed_images(model).items()
        if kept.all or name in kept.names
    )
    freedom = Freedom(constant=constant, distortion=not kept.distortion)
    config = TrackConfig()
    with new_model_folder(out) as temporary, quiet_colmap():
        summary = refine_tracks(model, image_root, freedom, config, options)
        before = read_model(reference)
        model.transform(frame_change(model, before, posed_images(before)))
        with StepProgress("Uncertainty of the cameras"):
            uncertainties = camera_uncertainties(model, freedom, config, options)
        write_model(model, image_root, temporary)
    file = uncertainty_file(out)
    if uncertainties:
        write_uncertainties(file, uncertainties)
    else:
        file.unlink(missing_ok=True)
    return replace(summary, uncertainty=median_uncertainty(uncertainties))


def _agreeing(
    tracks: Tracks,
    voting: np.ndarray,
    found: Alignment,
    unread: np.ndarray,
    config: TrackConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Which observations (N,) stay in the model or come into it, and which of them are aligned."""
    least = np.where(voting, config.min_correlation, config.min_new_correlation)
    agrees = (found.correlation > least) & (found.texture[tracks.track] > config.min_texture)
    usual = found.moved[agrees & voting]
    bound = config.outlier * float(np.median(usual)) if len(usual) else 0.0
    aligned = agrees & (found.moved <= bound)
    return aligned | (unread & voting), aligned


def _write(
    model: pycolmap.Reconstruction,
    tracks: Tracks,
    views: Views,
    keep: np.ndarray,
    dropped: dict[tuple[int, int], int],
) -> int:
    """Puts observations into a model.

    Args:
        tracks: observations at their new places; of index −1 where the model does not have them.
        keep: (N,) which are in the model from now on.
        dropped: number of the keypoint of each observation that was dropped, by point and image:
            it is used again when the point is found there after all.

    Returns:
        Number of observations that the model did not have.
    """
    added = 0
    known = tracks.index >= 0
    ids = tracks.ids[tracks.track]
    for v, image_id in enumerate(views.ids.tolist()):
        points = model.images[image_id].points2D
        its = np.flatnonzero((tracks.view == v) & keep)
        for n in its.tolist():
            if known[n]:
                points[int(tracks.index[n])].xy = tracks.xy[n]
                continue
            index = dropped.pop((int(ids[n]), image_id), len(points))
            if index == len(points):
                points.append(pycolmap.Point2D(tracks.xy[n]))
                added += 1
            else:
                points[index].xy = tracks.xy[n]
            model.add_observation(int(ids[n]), pycolmap.TrackElement(image_id, index))
    lost = known & ~keep
    for n in np.flatnonzero(lost).tolist():
        dropped[int(ids[n]), int(views.ids[tracks.view[n]])] = int(tracks.index[n])
    drop_observations(model, tracks, views, lost)
    return added
