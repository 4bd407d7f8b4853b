"""The pictures of how_it_works.py that show two photos and their matches (sections 1 to 4)."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from how_it_works_scene import FIRST, SECOND, SIZE, Output, Scene, load_photo
from matplotlib import pyplot as plt
from PIL import Image

import edm_hloc
from edm_hloc.base.grid import CELL
from edm_hloc.base.matches import Matches
from edm_hloc.images.pictures import draw_matches
from edm_hloc.matchers.base import Matcher
from edm_hloc.refinement.affine import local_affine_maps
from edm_hloc.refinement.alignment import align
from edm_hloc.refinement.config import RefinementConfig
from edm_hloc.refinement.corners import strongest_corners
from edm_hloc.refinement.matcher import RefinedMatcher
from edm_hloc.refinement.second_look import SecondLookConfig

# --------------------------------------------------------------------------- 1: pixel frames


def picture_frames(out: Output) -> None:
    """The corner of an image: the two origins, and the grid points of the cells."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), dpi=90)
    for ax, size in ((left, 4), (right, 20)):
        ax.set_xlim(-1.2 if size == 4 else -2.5, size + 0.1)
        ax.set_ylim(size - 0.6 if size == 4 else size - 4, -1.5 if size == 4 else -2.5)
        ax.set_aspect("equal")
        ax.axis("off")
        for k in range(size + 1):
            style = {"color": "0.82", "lw": 0.8} if size == 20 else {"color": "0.6", "lw": 1.2}
            ax.plot([k - 0.5, k - 0.5], [-0.5, size], **style)
            ax.plot([-0.5, size], [k - 0.5, k - 0.5], **style)
    left.set_title("Pixels, each a square: the frames of the files", fontsize=11)
    left.plot(0, 0, "o", color="C0", ms=9)
    left.annotate(
        "hloc: (0, 0)\nCOLMAP: (0.5, 0.5)", (0, 0), (0.62, -0.02), color="C0", va="center"
    )
    left.plot(-0.5, -0.5, "s", color="C3", ms=9)
    left.annotate("COLMAP: (0, 0)\nhloc: (−0.5, −0.5)", (-0.5, -0.5), (-0.3, -0.85), color="C3")
    left.plot(2.2, 2.6, "x", color="k", ms=9, mew=2)
    left.annotate("the same point:\nhloc (2.2, 2.6)\nCOLMAP (2.7, 3.1)", (2.2, 2.6), (2.4, 2.15))
    right.set_title("Grid points of the coarse cells in the network's input", fontsize=11)
    for k in (0, 8, 16):
        for edge in (k - 4, k + 4):
            if 0 <= edge <= 20:
                right.plot([edge, edge], [-0.5, 20], color="0.45", lw=1.4)
                right.plot([-0.5, 20], [edge, edge], color="0.45", lw=1.4)
    grid = np.array([(x, y) for x in (0, 8, 16) for y in (0, 8)])
    right.plot(*grid.T, "o", color="C0", ms=8, label="edm_s: (0, 0) is the pixel's centre")
    right.plot(
        *(grid - 0.5).T, "s", color="C3", ms=6, label="edm-outdoor: (0, 0) is the pixel's corner"
    )
    for x, y in grid:
        right.annotate(f"({x}, {y})", (x, y), (x + 0.7, y + 0.4), fontsize=9)
    right.legend(loc="lower left", fontsize=9, framealpha=1)
    out.figure("frames", figure)


# --------------------------------------------------------------------------- 2 and 3: the network


def picture_first_matches(out: Output, scene: Scene, network: Matcher) -> None:
    found = edm_hloc.match(scene.photos / FIRST, scene.photos / SECOND, network)
    picture = draw_matches(scene.photos / FIRST, scene.photos / SECOND, found, lines=80)
    out.jpeg("first_matches", picture, 1100)
    size = load_photo(scene.photos / FIRST, network).tensor.shape
    out.say(f"network's input {size[2]} × {size[1]}, {size[1] * size[2] // CELL**2} cells")
    out.say(f"first matches {len(found)}")


def picture_second_look(out: Output, scene: Scene, network: Matcher) -> None:
    """The pair with its second photo on its side."""
    second = scene.photos.parent / "rolled.jpg"
    with Image.open(scene.photos / SECOND) as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save(second, quality=95)
    looks = RefinedMatcher(network, None, SecondLookConfig())
    first = scene.photos / FIRST
    before, after = (edm_hloc.match(first, second, matcher) for matcher in (network, looks))
    pictures = [draw_matches(first, second, found, lines=80) for found in (before, after)]
    out.jpeg("second_look", np.vstack(pictures), 900)
    for look, found in (("first look", before), ("after the second look", after)):
        x, y = found.keypoints1.T
        upright = Matches(found.keypoints0, np.column_stack([SIZE[0] - 1 - y, x]), found.scores)
        error = scene.epipolar_distances(upright, FIRST, SECOND)
        share = 100 * (error < 3).mean()
        out.say(f"second photo rolled, {look}: {len(found)} matches, within 3 px {share:.0f} %")


# --------------------------------------------------------------------------- 4: refinement


def picture_alignment(out: Output, scene: Scene, network: Matcher) -> None:
    """A corner of photo 0, its place in photo 1 before and after the alignment."""
    found = edm_hloc.match(scene.photos / FIRST, scene.photos / SECOND, network)
    images = [load_photo(scene.photos / name, network) for name in (FIRST, SECOND)]
    grey = images[0].tensor, images[1].tensor
    points0 = images[0].transform.to_network(found.keypoints0)
    points1 = images[1].transform.to_network(found.keypoints1)
    corners = strongest_corners(grey[0])
    affine = local_affine_maps(points0, points1, RefinementConfig().neighbours)
    column, row = np.rint(points0 / CELL).astype(int).T
    row = row.clip(0, corners.textured.shape[0] - 1)
    column = column.clip(0, corners.textured.shape[1] - 1)
    at_corner = corners.points[row, column]
    guess = points1 + np.einsum("nij,nj->ni", affine, at_corner - points0)
    aligned = align(grey, at_corner, guess.astype(np.float32), affine, RefinementConfig())
    moved = np.linalg.norm(aligned.points - guess, axis=1)
    good = (aligned.correlation > 0.97) & corners.textured[row, column]
    out.say(
        f"alignment at corners of photo 0: {len(moved)}, median shift {np.median(moved[good]):.2f} "
        f"px of the input, 90th percentile {np.percentile(moved[good], 90):.2f} px"
    )
    shown: list[int] = []  # three corners that moved visibly, far from each other
    clear = good & (moved > 1.5) & (aligned.correlation > 0.99)
    for i in np.argsort(-np.where(clear, contrast_at(grey[0], at_corner), 0)):
        if all(np.linalg.norm(at_corner[i] - at_corner[j]) > 100 for j in shown):
            shown.append(int(i))
        if len(shown) == 3:
            break
    figure, axes = plt.subplots(3, 5, figsize=(11, 6.6), dpi=80, layout="constrained")
    half = 12
    for line, i in zip(axes, shown, strict=True):
        fixed = patch(grey[0], at_corner[i], np.eye(2), half)
        before = patch(grey[1], guess[i], affine[i], half)
        after = patch(grey[1], aligned.points[i], affine[i], half)
        for ax, values in zip(line, (fixed, before, after), strict=False):
            ax.imshow(values, cmap="gray", extent=(-half, half, half, -half))
            ax.plot(0, 0, "+", color="C1", ms=14, mew=2)
        for ax, values in zip(line[3:], (before, after), strict=True):
            ax.imshow(normalised(values) - normalised(fixed), cmap="RdBu", vmin=-3, vmax=3)
            correlation = np.corrcoef(fixed.ravel(), values.ravel())[0, 1]
            ax.set_xlabel(f"correlation {correlation:.2f}")
        line[2].set_xlabel(f"moved by {moved[i]:.1f} px")
        for ax in line:
            ax.set_xticks([])
            ax.set_yticks([])
    titles = (
        "corner in photo 0",
        "photo 1, before",
        "photo 1, aligned",
        "difference before",
        "difference aligned",
    )
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=11)
    out.figure("alignment", figure)


def contrast_at(grey: torch.Tensor, points: np.ndarray) -> np.ndarray:
    """Standard deviation of the grey values within 4 px of each point (N, 2)."""
    values = grey[0].numpy()
    corners = np.maximum(np.rint(points).astype(int) - 4, 0)
    return np.array([values[y : y + 9, x : x + 9].std() for x, y in corners])


def patch(grey: torch.Tensor, point: np.ndarray, affine: np.ndarray, half: int) -> np.ndarray:
    """(4·half + 1)² grey values around a point, half a pixel apart, mapped by an affine map."""
    steps = np.arange(-half, half + 0.25, 0.5)
    around = np.stack(np.meshgrid(steps, steps), axis=-1) @ affine.T + point
    x, y = (around[..., k].astype(np.float32) for k in (0, 1))
    return cv2.remap(grey[0].numpy(), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def normalised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 0.02)


NEVER = 10**9  # matches, a number that is never reached


def refinement_stages(base: RefinementConfig) -> dict[str, RefinementConfig | None]:
    """Matchers with one stage more each."""
    aligned = replace(
        base, min_support=0.0, min_aligned_support=0.0, min_matches_to_grow=NEVER, target_matches=0
    )
    supported = replace(aligned, min_support=base.min_support)
    checked = replace(supported, min_aligned_support=base.min_aligned_support)
    return {
        "the network's": None,
        "aligned at corners": aligned,
        "supported by neighbours before": supported,
        "and after the alignment": checked,
        "grown": base,
    }


def picture_refinement(out: Output, scene: Scene, network: Matcher) -> None:
    """Photo 0 with its matches before and after, coloured by their epipolar distance."""
    paths = scene.photos / FIRST, scene.photos / SECOND
    errors, shown = {}, {}
    for name, config in refinement_stages(RefinementConfig()).items():
        matcher = network if config is None else RefinedMatcher(network, config, SecondLookConfig())
        if name == "grown":
            matcher = edm_hloc.load_matcher("edm", network_size=max(SIZE))
        found = edm_hloc.match(*paths, matcher)
        error = scene.epipolar_distances(found, FIRST, SECOND)
        errors[name], shown[name] = error, found
        out.say(
            f"{name}: {len(found)} matches, median {np.median(error):.2f} px, within 1 px "
            f"{100 * (error < 1).mean():.0f} %, beyond 3 px {100 * (error > 3).mean():.1f} %"
        )
    figure, axes = plt.subplots(
        1, 3, figsize=(14, 4.2), dpi=80, width_ratios=(4, 4, 2.6), layout="constrained"
    )
    image = plt.imread(paths[0])
    for ax, name, title in (
        (axes[0], "the network's", "The network's matches"),
        (axes[1], "grown", "After the refinement"),
    ):
        ax.imshow(image, alpha=0.55)
        order = np.argsort(errors[name])
        dots = ax.scatter(
            *shown[name].keypoints0[order].T,
            c=errors[name][order].clip(0, 3),
            s=3,
            cmap="turbo",
            vmin=0,
            vmax=3,
        )
        ax.set_title(f"{title}: {len(shown[name]):,}")
        ax.axis("off")
    figure.colorbar(dots, ax=axes[1], label="epipolar distance, px (3 and more)", shrink=0.9)
    for name, colour in (("the network's", "C1"), ("grown", "C0")):
        label = "network" if colour == "C1" else "refined"
        sorted_errors = np.sort(errors[name])
        axes[2].plot(
            sorted_errors,
            np.arange(1, len(sorted_errors) + 1) / len(sorted_errors),
            colour,
            label=label,
        )
    axes[2].set(xlim=(0, 4), ylim=(0, 1), xlabel="epipolar distance, px", ylabel="share of matches")
    axes[2].grid(alpha=0.3)
    axes[2].legend(loc="lower right")
    out.figure("refinement", figure)
