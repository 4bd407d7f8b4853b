"""Poses from elsewhere, brought to where the photos' matches put them.

Points are triangulated with the poses as they are, at a threshold as generous as the poses are
wrong; poses and points are adjusted; and so on with half the threshold, down to that of every
reconstruction. Cameras whose matches contradict their pose do not take part: they are registered
anew in the end, as photos without a pose are.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import (
    ModelStatistics,
    centres_of,
    drop_pointless,
    open_database,
    posed_images,
    quiet_colmap,
    unposed_model,
    verified_pairs,
)
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import scratch_folder
from edm_hloc.base.geometry import epipolar_errors, extent
from edm_hloc.base.progress import StepProgress, track
from edm_hloc.mapping.database_reading import IdPair, ray_reader
from edm_hloc.mapping.extension import Refinement, adjust, register_more
from edm_hloc.mapping.frames import frame_change, move_to_origin
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.output import MappingSummary, new_model_folder, write_model
from edm_hloc.mapping.rotations import rotation_by_poses, rotations_by_matches
from edm_hloc.mapping.triangulation import triangulate_points

_WRONG_TURN = 15.0  # degrees by which most pairs of a wrong camera contradict its rotation, or …
_WRONG_FACTOR = 4.0  # … this times what is usual, if that is more, …
_SURELY_WRONG = 60.0  # … but no more than this
_STILL_WRONG = 5.0  # degrees of the median pair of a refined model; of right ones it is below 2
_FEW = 0.3  # of the usual share of its matches that a camera's points have, if its pose is wrong
_GENEROUS = 2.0  # times the errors of three quarters of the matches: the first threshold
_MOST = 0.15  # of the photos' longer side: a larger first threshold would accept anything
_FAR = 5.0  # times the median change: a camera that moved so far was wrong


@dataclass(frozen=True)
class PoseChange:
    """What became of the pose of a photo.

    Attributes:
        name: of the photo.
        moved: distance of its centre from the given one, in units of the given poses.
        rotated: angle between its rotation and the given one, degrees.
        points: number of points that it sees.
        state: "refined"; "far off", refined but by much more than the others; "registered anew",
            as its matches contradicted its pose; or "lost": it could not be, or has no matches, and
            has no pose now.
    """

    name: str
    moved: float
    rotated: float
    points: int
    state: str


@dataclass(frozen=True)
class PoseRefinementSummary:
    """What became of all poses.

    Attributes:
        extent: largest distance of two of the refined cameras, in units of the given poses.
        moved_median, moved_max: of the refined cameras, as shares of `extent`.
        rotated_median, rotated_max: of these, degrees.
        threshold: px, with which points were triangulated first: how wrong the poses were.
        intrinsics: whether they were refined as well.
        changes: of each photo, sorted by name.
    """

    extent: float
    moved_median: float
    moved_max: float
    rotated_median: float
    rotated_max: float
    threshold: float
    intrinsics: bool
    changes: tuple[PoseChange, ...]


def refine_poses(
    database: Path,
    image_root: Path,
    out: Path,
    given: pycolmap.Reconstruction,
    options: MappingOptions,
) -> tuple[MappingSummary, PoseRefinementSummary]:
    """Refines the poses of a model, and writes it with points to `out`, in its own world.

    Args:
        database: COLMAP database with pairs that are verified by their matches alone.
        image_root: folder of the photos, for the colours of the points.
        out: folder of the model, written on success only. A model that is there is replaced.
        given: posed cameras by the photos' names, with the intrinsics of the database.
        options: thresholds; `refine_intrinsics` refines focal lengths and distortion too.

    Raises:
        EdmHlocError: the matches agree with none of the poses, or `out` cannot be written.
    """
    start = time.monotonic()
    with quiet_colmap(), open_database(database) as db:
        model = _with_poses(db, given, options)
        back = move_to_origin(model)
        pairs = _verified_pairs(db, model)
        name_of = {image.image_id: image.name for image in model.images.values()}
        wrong = _contradicted(_turns(db, model, pairs))
        posed = len(posed_images(model))
        if 2 * len(wrong) > posed or posed - len(wrong) < 2:
            raise EdmHlocError(_disagreement(len(wrong), posed))
        good = [pair for pair in pairs if wrong.isdisjoint(pair)]
        threshold = _first_threshold(db, model, good, options)
    refine = Refinement(
        set() if options.refine_intrinsics else set(model.cameras),
        set(),
        focal=options.refine_intrinsics,
        distortion=options.refine_intrinsics,
    )
    for image_id in wrong:
        model.deregister_frame(model.images[image_id].frame_id)
    with new_model_folder(out) as temporary, quiet_colmap():
        for number, pixels in enumerate(_thresholds(threshold, options.max_error)):
            now = replace(options, max_error=pixels)
            with StepProgress(f"Triangulating within {pixels:.0f} px"):
                model = triangulate_points(model, database, image_root, temporary, now)
            if not model.num_points3D():
                break
            adjust(model, now, refine, robust=max(1.0, pixels / 4))
            if number == 0:
                new = _with_few_points(model, pairs)
                for image_id in new:
                    model.deregister_frame(model.images[image_id].frame_id)
                wrong |= new
        wrong |= drop_pointless(model)
        if not model.num_points3D() or len(posed_images(model)) < 2:
            raise EdmHlocError(_disagreement(len(given.images), len(given.images)))
        if wrong:
            model = _registered_anew(model, database, image_root, options, refine)
        adjust(model, options, refine)
        drop_pointless(model)
        anew = {name_of[image_id] for image_id in wrong}
        names = posed_images(model).keys() - anew
        with open_database(database) as db:
            turns = _turns(db, model, _verified_pairs(db, model))
        bent = bool(turns) and np.median([*turns.values()]) > _STILL_WRONG
        if bent or len(names) < 2:
            raise EdmHlocError(_disagreement(len(given.images), len(given.images)))
        model.transform(back)
        model.transform(frame_change(model, given, names))
        write_model(model, image_root, temporary)
        mapped = MappingSummary(
            statistics=ModelStatistics.of(model),
            images=len(given.images),
            unregistered=tuple(sorted(posed_images(given).keys() - posed_images(model).keys())),
            components=(len(posed_images(model)),),
            seconds=time.monotonic() - start,
        )
    changes = _changes(model, given, anew)
    summary = _summary(model, changes, threshold, options.refine_intrinsics)
    return mapped, summary


def _disagreement(wrong: int, every: int) -> str:
    return (
        f"The matches contradict the poses of {wrong} of {every} photos: are they of these photos, "
        "and in the convention of their format (world from camera, its axes)? To do without them: "
        "edm-hloc reconstruct."
    )


def _with_poses(
    db: pycolmap.Database, given: pycolmap.Reconstruction, options: MappingOptions
) -> pycolmap.Reconstruction:
    """The images and keypoints of a database with the given poses."""
    model, _ = unposed_model(db, options.min_inliers)
    poses = posed_images(given)
    for image in sorted(model.images.values(), key=lambda i: i.image_id):
        if image.name in poses:
            model.frames[image.frame_id].rig_from_world = poses[image.name].cam_from_world()
            model.register_frame(image.frame_id)
    if not posed_images(model):
        raise EdmHlocError(
            "No photo with a pose has verified matches: do the photos overlap? edm-hloc match A B "
            "shows what matches in two of them."
        )
    return model


def _verified_pairs(db: pycolmap.Database, model: pycolmap.Reconstruction) -> list[IdPair]:
    """The ids of the images of all verified pairs with two poses."""
    posed = {image.image_id for image in posed_images(model).values()}
    return sorted(pair for pair in verified_pairs(db, 1) if posed.issuperset(pair))


def _turns(
    db: pycolmap.Database, model: pycolmap.Reconstruction, pairs: Sequence[IdPair]
) -> dict[IdPair, float]:
    """By pair, the angle in degrees between the rotation by its matches and that by its poses."""
    tracked = track(pairs, "Comparing poses with matches", "pair")
    return {
        pair: float(np.degrees(by_matches.angle_to(rotation_by_poses(model, pair))))
        for pair, by_matches in rotations_by_matches(db, model, tracked).items()
    }


def _contradicted(turns: Mapping[IdPair, float]) -> set[int]:
    """The images whose rotations most of their pairs contradict: the worst, then without it again.

    A wrong camera makes the pairs of its neighbours wrong too.
    """
    wrong: set[int] = set()
    while True:
        angles: dict[int, list[float]] = defaultdict(list)
        for pair, angle in turns.items():
            for image_id in pair if wrong.isdisjoint(pair) else ():
                angles[image_id].append(angle)
        medians = {i: float(np.median(some)) for i, some in angles.items()}
        usual = float(np.median([*medians.values()])) if medians else 0.0
        worst = max(medians, key=lambda i: medians[i], default=-1)
        limit = min(max(_WRONG_TURN, _WRONG_FACTOR * usual), _SURELY_WRONG)
        if worst < 0 or medians[worst] <= limit:
            return wrong
        wrong.add(worst)


def _first_threshold(
    db: pycolmap.Database,
    model: pycolmap.Reconstruction,
    pairs: Sequence[IdPair],
    options: MappingOptions,
) -> float:
    """How far, in pixels, most matches are from the epipolar lines of the given poses, twice."""
    errors = [np.zeros(0)]
    camera_of = {i: model.cameras[model.images[i].camera_id] for pair in pairs for i in pair}
    rays = ray_reader(db, camera_of)
    for a, b in pairs:
        inliers = db.read_two_view_geometry(a, b).inlier_matches
        relative = model.images[b].cam_from_world() * model.images[a].cam_from_world().inverse()
        E = pycolmap.essential_matrix_from_pose(relative)
        in_a, in_b = epipolar_errors(rays(a)[inliers[:, 0]], rays(b)[inliers[:, 1]], E)
        focal = [camera_of[i].mean_focal_length() for i in (a, b)]
        errors.append(np.maximum(in_a * focal[0], in_b * focal[1]))
    every = np.concatenate(errors)
    usual = float(np.percentile(every, 75)) if len(every) else 0.0
    longest = max((max(c.width, c.height) for c in camera_of.values()), default=0)
    most = max(options.max_error, _MOST * longest)
    return float(np.clip(_GENEROUS * usual, options.max_error, most))


def _thresholds(first: float, last: float) -> list[float]:
    """Thresholds in pixels from the first one down to the last one, each half of the one before."""
    steps = int(np.ceil(np.log2(max(1.0, first / last)) - 1e-9))
    return [last * 2.0**step for step in range(steps, -1, -1)]


def _with_few_points(model: pycolmap.Reconstruction, pairs: Sequence[IdPair]) -> set[int]:
    """The images of which far fewer keypoints have become points than of the others."""
    inside = {i for pair in pairs for i in pair}
    shares = {
        image.image_id: image.num_points3D / max(1, image.num_points2D())
        for image in posed_images(model).values()
        if image.image_id in inside
    }
    if len(shares) < 4:
        return set()
    usual = float(np.median([*shares.values()]))
    return {i for i, share in shares.items() if share < _FEW * usual}


def _registered_anew(
    model: pycolmap.Reconstruction,
    database: Path,
    image_root: Path,
    options: MappingOptions,
    refine: Refinement,
) -> pycolmap.Reconstruction:
    """The model with the photos that have no pose in it, as far as they can be registered."""
    held = posed_images(model).keys()
    fixed = replace(refine, held=set(model.cameras))
    with scratch_folder() as folder:
        models = register_more(model, database, image_root, folder, options, fixed)
    return max(models, key=lambda m: (len(held & posed_images(m).keys()), m.num_reg_images()))


def _changes(
    model: pycolmap.Reconstruction, given: pycolmap.Reconstruction, anew: Collection[str]
) -> list[PoseChange]:
    now = posed_images(model)
    changes = []
    for name, before in posed_images(given).items():
        if name not in now:
            changes.append(PoseChange(name, 0.0, 0.0, 0, "lost"))
            continue
        after = now[name]
        moved = float(np.linalg.norm(after.projection_center() - before.projection_center()))
        turn = after.cam_from_world().rotation.angle_to(before.cam_from_world().rotation)
        state = "registered anew" if name in anew else "refined"
        changes.append(
            PoseChange(name, moved, float(np.degrees(turn)), int(after.num_points3D), state)
        )
    refined = [change for change in changes if change.state == "refined"]
    usual = [float(np.median([getattr(c, key) for c in refined])) for key in ("moved", "rotated")]
    whole = _extent(model)
    limits = max(_FAR * usual[0], 0.02 * whole), max(_FAR * usual[1], 2.0)
    return [
        replace(c, state="far off")
        if c.state == "refined" and (c.moved > limits[0] or c.rotated > limits[1])
        else c
        for c in changes
    ]


def _extent(model: pycolmap.Reconstruction) -> float:
    """Largest distance between two cameras, but for those far from all others."""
    return extent(centres_of(posed_images(model).values()))


def _summary(
    model: pycolmap.Reconstruction,
    changes: Sequence[PoseChange],
    threshold: float,
    intrinsics: bool,
) -> PoseRefinementSummary:
    whole = _extent(model)
    refined = [c for c in changes if c.state in ("refined", "far off")]
    moved, rotated = [c.moved / max(whole, 1e-12) for c in refined], [c.rotated for c in refined]
    return PoseRefinementSummary(
        extent=whole,
        moved_median=float(np.median(moved)),
        moved_max=max(moved),
        rotated_median=float(np.median(rotated)),
        rotated_max=max(rotated),
        threshold=threshold,
        intrinsics=intrinsics,
        changes=tuple(changes),
    )
