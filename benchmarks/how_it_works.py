"""Makes the pictures and the numbers of docs/how_it_works.md, on a rendered scene.

    python benchmarks/how_it_works.py OUT

OUT/pictures holds the pictures, OUT/numbers.txt what the page quotes. A second call continues where
an interrupted one stopped. Needs matplotlib. The pictures of two photos and their matches are made
in how_it_works_matches.py, those of many photos here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
from how_it_works_matches import (
    picture_alignment,
    picture_first_matches,
    picture_frames,
    picture_refinement,
    picture_second_look,
)
from how_it_works_scene import FIRST, QUERY, Output, Scene
from matplotlib import pyplot as plt

import edm_hloc
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.evaluation.models import align as align_models
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.keypoints.quantization import quantize_image
from edm_hloc.localization.pnp import PoseOptions, find_correspondences
from edm_hloc.localization.points import ModelPoints
from edm_hloc.matching.reader import RawMatchReader
from edm_hloc.pipelines.reconstruct import RECONSTRUCTION_KEYPOINTS
from edm_hloc.report.model_pictures import draw_model
from edm_hloc.report.scene import Points, build_scene, camera_views

# --------------------------------------------------------------------------- 5: keypoints


def picture_keypoint(out: Output, run: Path) -> None:
    """The raw points around one keypoint of a photo, by pair; bin, mean and adjusted position."""
    raw = RawMatchReader(run / "raw_matches")
    pairs = [pair for pair in raw.pairs() if FIRST in pair]
    others = [next(name for name in pair if name != FIRST) for pair in pairs]
    found = [raw.read(FIRST, other) for other in others]
    points = np.concatenate([matches.keypoints0 for matches in found])
    scores = np.concatenate([matches.scores for matches in found])
    pair_of = np.repeat(np.arange(len(found)), [len(matches) for matches in found])
    config = RECONSTRUCTION_KEYPOINTS
    bins = quantize_image(points, scores, replace(config, position="bin"))
    means = quantize_image(points, scores, replace(config, position="mean"))
    with FeatureReader(run / "features.h5") as features:
        adjusted = features.keypoints(FIRST)
    assert len(adjusted) == len(means.keypoints), "the order of pairs is another one"
    moved = np.linalg.norm(adjusted - means.keypoints, axis=1)
    out.say(
        f"{FIRST}: {len(points)} raw points of {len(found)} pairs become {len(adjusted)} "
        f"keypoints; adjustment moves them by {np.median(moved):.2f} px (median)"
    )
    best = a_typical_keypoint(points, means.ids, pair_of, moved)
    centre = bins.keypoints[best]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), dpi=85, layout="constrained")
    image = plt.imread(run.parent / "scene/photos" / FIRST)
    for ax, half in ((left, 20), (right, 3.2)):
        ax.imshow(image, cmap="gray", alpha=0.6 if half > 10 else 0.35)
        ax.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] + half, centre[1] - half))
    near = np.abs(points - centre).max(axis=1) < 20
    left.plot(*points[near].T, ".", color="C0", ms=4)
    left.plot(*adjusted.T, "+", color="C3", ms=9, mew=1.5)
    left.set_title("raw points (dots) and keypoints (crosses)")
    side = config.cell_size
    for k in range(-3, 4):
        right.axvline(centre[0] + (k - 0.5) * side, color="0.4", lw=0.8)
        right.axhline(centre[1] + (k - 0.5) * side, color="0.4", lw=0.8)
    for i in np.unique(pair_of[near]):
        own = near & (pair_of == i)
        right.plot(
            *points[own & (means.ids == best)].T,
            "o",
            color=plt.cm.tab10(i % 10),
            ms=8,
            label=others[i].removesuffix(".jpg") if (means.ids[own] == best).any() else None,
        )
        right.plot(*points[own & (means.ids != best)].T, "o", color="0.6", ms=4)
    right.plot(*centre, "s", color="k", ms=9, mfc="none", mew=2, label="centre of the bin")
    right.plot(*means.keypoints[best], "D", color="k", ms=8, label="weighted mean")
    right.plot(*adjusted[best], "*", color="C3", ms=17, mec="k", label="adjusted")
    right.set_title(
        f"one keypoint: the points of {(means.ids == best).sum()} pairs, bins of {side:g} px"
    )
    right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for ax in (left, right):
        ax.tick_params(labelsize=8)
    out.figure("keypoint", figure)


def a_typical_keypoint(
    points: np.ndarray, ids: np.ndarray, pair_of: np.ndarray, moved: np.ndarray
) -> int:
    """The keypoint with most different points among those with one of each of six or more pairs.

    Only keypoints that the adjustment moved by 0.2 to 0.5 px are considered.

    Args:
        points: (M, 2) raw points of the photo.
        ids: (M,) the keypoint of each point.
        pair_of: (M,) the pair of each point.
        moved: (N,) pixels by which the adjustment moved each keypoint.
    """

    def number_of_different(values: np.ndarray) -> np.ndarray:
        rows = np.unique(np.column_stack([ids, values])[ids >= 0], axis=0)
        return np.bincount(rows[:, 0].astype(int), minlength=len(moved))

    pairs = number_of_different(pair_of)
    suitable = (pairs == np.bincount(ids[ids >= 0], minlength=len(moved))) & (pairs >= 6)
    suitable &= (moved > 0.2) & (moved < 0.5)
    return int(np.argmax(suitable * number_of_different(np.rint(points / 0.3))))


# --------------------------------------------------------------------------- 6 and 7


def picture_model(out: Output, model: edm_hloc.Reconstruction) -> None:
    loaded = model.model
    scene = build_scene(Points.of(loaded), camera_views(loaded))
    picture = draw_model(scene, "overview", (1400, 900))
    rows, columns = (np.flatnonzero((picture < 255).any(axis=(axis, 2))) for axis in (1, 0))
    picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    out.jpeg("model", picture, 900)
    verified = model.run.results["verified"]
    out.say(
        f"verification: {verified['verified_pairs']} of {verified['pairs']} pairs, "
        f"{verified['inliers']} of {verified['matches']} matches"
    )
    out.say(f"model: {model!r}")


def picture_localization(
    out: Output, scene: Scene, model: Path, localization: edm_hloc.Localization
) -> None:
    """The new photo with its keypoints and the reprojected 3D points."""
    ((name, answer),) = localization.items()
    if answer.pose is None:
        raise SystemExit(f"how_it_works.py: {name} cannot be localized: {answer.status}.")
    points = ModelPoints(model, prefix="database/")
    query = f"query/{QUERY}"
    with (
        FeatureReader(localization.out / "features.h5") as features,
        MatchReader(localization.out / "matches.h5") as matches,
    ):
        joined = find_correspondences(query, points.names(), features, matches, points, 0)
    words = answer.camera.split()
    camera = pycolmap.Camera(
        model=words[0], width=int(words[1]), height=int(words[2]), params=[*map(float, words[3:])]
    )
    projected = np.asarray(camera.img_from_cam(answer.pose * joined.points))
    error = np.linalg.norm(projected - joined.pixels, axis=1)
    inlier = error < PoseOptions().max_error
    out.say(f"localization: {localization!r}; {name}: {answer.inliers} of {answer.correspondences}")
    out.say(f"median reprojection error {answer.median_error:.2f} px")
    distance, angle = pose_error(scene, read_model(model), answer.pose)
    out.say(f"pose of the new photo: {100 * distance:.2f} cm and {angle:.3f}° from the truth")
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), dpi=80, layout="constrained")
    image = plt.imread(scene.new / QUERY)
    left.imshow(image, alpha=0.7)
    left.plot(*(projected[inlier] - 0.5).T, ".", color="lime", ms=2.5, mec="none")
    left.plot(*(joined.pixels[~inlier] - 0.5).T, "x", color="red", ms=5)
    left.set_title(f"{answer.inliers:,} inliers; the outliers are red crosses")
    left.axis("off")
    right.hist(error[error < 4], 60, color="C0")
    right.set(xlabel="reprojection error, px", ylabel="correspondences")
    out.figure("localization", figure)


def pose_error(
    scene: Scene, model: pycolmap.Reconstruction, pose: pycolmap.Rigid3d
) -> tuple[float, float]:
    """Distance in metres and angle in degrees between the pose of the new photo and the truth."""
    true = {name: image.cam_from_world() for name, image in posed_images(scene.truth).items()}
    found = {name: image.cam_from_world() for name, image in posed_images(model).items()}
    names = sorted(found)
    rotations, centres = (
        [np.array([part(poses[name]) for name in names]) for poses in (found, true)]
        for part in (lambda p: p.rotation.matrix(), lambda p: p.inverse().translation)
    )
    to_truth = align_models(rotations[0], centres[0], rotations[1], centres[1])
    centre = to_truth(pose.inverse().translation[None])[0]
    distance = np.linalg.norm(centre - true[QUERY].inverse().translation)
    R = pose.rotation.matrix() @ to_truth.R.T @ true[QUERY].rotation.matrix().T
    return float(distance), float(np.degrees(np.arccos(np.clip((np.trace(R) - 1) / 2, -1, 1))))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    folder: Path = parser.parse_args(arguments).out
    out = Output(folder)
    scene = Scene.make(folder / "scene")
    network = edm_hloc.load_matcher("edm", refine="none")
    as_mapped = edm_hloc.ReconstructionConfig(refine_tracks=False)
    model = edm_hloc.reconstruct(scene.photos, folder / "run", config=as_mapped)
    localization = edm_hloc.localize(
        folder / "run/model", scene.photos, scene.new, folder / "localization"
    )
    steps: list[Callable[[], None]] = [
        lambda: picture_frames(out),
        lambda: picture_first_matches(out, scene, network),
        lambda: picture_second_look(out, scene, network),
        lambda: picture_alignment(out, scene, network),
        lambda: picture_refinement(out, scene, network),
        lambda: picture_keypoint(out, folder / "run"),
        lambda: picture_model(out, model),
        lambda: picture_localization(out, scene, folder / "run/model", localization),
    ]
    for step in steps:
        step()


if __name__ == "__main__":
    main()
