"""True errors of the depths of refined points on rendered photos, by kind of point.

    python benchmarks/point_errors.py OUT --seeds 3 4 5

Reads what `refined_tracks.py OUT` has made, of all seeds together. An error is that along the
optical axis of the photo that sees a point from the middle of its directions, positive behind the
surface; those at the outline of things, where that has no meaning, do not count. Printed are its
median and that of its size, in millimetres of scenes of 20 m; the median of the longest of the
told deviations; and the shares within one, two and four of these.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.geometry import extent
from edm_hloc.mapping.frames import frame_change
from edm_hloc.tracks.geometry import Tracks, Views, mean_directions, viewing_directions
from edm_hloc.tracks.point_uncertainty import point_uncertainty_file

_FLAT = 0.002  # of the inverse depth, that a surface is off a plane within a pixel
_PATCH = 6  # pixels, about half a patch's width
_PLANE, _BENT = 1e-4, 1e-3  # of the inverse depth, off a plane within these


@dataclass(frozen=True)
class PointErrors:
    """The points of a refined model whose true depth is known.

    Attributes:
        error: (N,) metres, positive behind the surface.
        sigma: (N,) longest of the told deviations, metres.
        length: (N,) photos that see the point.
        aligned: (N,) whether its photos were aligned.
        edge: (N,) pixels to the nearest edge in depth.
        bend: (N,) how far the surface is off a plane within a patch, of the inverse depth.
    """

    error: np.ndarray
    sigma: np.ndarray
    length: np.ndarray
    aligned: np.ndarray
    edge: np.ndarray
    bend: np.ndarray

    @classmethod
    def of(cls, model: Path, scene: Path, mapped: Path | None = None) -> PointErrors:
        """The errors of a refined model.

        Args:
            model: of it, with its uncertainties beside.
            scene: `truth` and `depth` of the photos.
            mapped: the model before; without, all points count as aligned.
        """
        refined, truth = read_model(model), read_model(scene / "truth")
        refined.transform(frame_change(refined, truth, posed_images(truth)))
        told = np.load(point_uncertainty_file(model))
        views, true = Views.of(refined), Views.of(truth)
        tracks = Tracks.of(refined, views)
        assert views.names == true.names
        assert (tracks.ids == told["ids"]).all()
        directions = viewing_directions(tracks, views), mean_directions(tracks, views)
        along = np.einsum("ni,ni->n", directions[0], directions[1][tracks.track])
        view = tracks.view[np.lexsort([along, tracks.track])[tracks.start[1:] - 1]]
        at, depth = true.project(tracks.xyz, view), true.depth(tracks.xyz, view)
        found = np.full((3, len(view)), np.nan)
        for v, name in enumerate(true.names):
            deep = np.load((scene / "depth" / name).with_suffix(".npy")).astype(float)
            inverse = 1 / np.where(deep > 0, deep, np.nan)
            size = np.array(inverse.shape[::-1])
            inside = (at > 1 + _PATCH) & (at < size - _PATCH - 1)
            its = np.flatnonzero((view == v) & inside.all(axis=1))
            there, edge, bend = _surface(inverse, at[its] - 0.5)
            found[:, its] = depth[its] - there, edge, bend
        known = np.isfinite(found).all(axis=0)
        sigma = told["deviations"][:, 0] / 100 * extent(true.centres)
        known &= np.isfinite(sigma)
        aligned = np.ones(len(view), bool) if mapped is None else _moved(tracks, views, mapped)
        length = np.diff(tracks.start)
        error, edge, bend = found
        fields = (error, sigma, length, aligned, edge, bend)
        return cls(*(values[known] for values in fields))


def _surface(inverse: np.ndarray, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth (N,) at pixels (N, 2), the distance from the next edge, and the bend of the surface.

    Args:
        inverse: (H, W) inverse depth, which is linear on a plane; NaN where there is none.
        xy: pixels, the first centre is (0, 0).
    """
    x, y = np.rint(xy).astype(int).T

    def off(reach: int) -> np.ndarray:
        """(H, W) how far the middle is off the line between both sides, in the worse direction."""
        values = np.zeros(inverse.shape)
        for axis in (0, 1):
            both = np.roll(inverse, reach, axis) + np.roll(inverse, -reach, axis)
            values = np.maximum(values, np.abs(both - 2 * inverse) / inverse)
        return np.nan_to_num(values, nan=np.inf)

    smooth = off(1) < _FLAT
    edge = cv2.distanceTransform(smooth.astype(np.uint8), cv2.DIST_L2, 5)[y, x]
    slope_x = (inverse[y, x + 1] - inverse[y, x - 1]) / 2
    slope_y = (inverse[y + 1, x] - inverse[y - 1, x]) / 2
    there = inverse[y, x] + slope_x * (xy[:, 0] - x) + slope_y * (xy[:, 1] - y)
    return np.where(smooth[y, x], 1 / there, np.nan), edge, off(_PATCH)[y, x]


def _moved(tracks: Tracks, views: Views, mapped: Path) -> np.ndarray:
    """(T,) points of which a keypoint is not the mapped model's."""
    before = posed_images(read_model(mapped))
    moved = np.zeros(len(tracks.view), bool)
    for v, name in enumerate(views.names):
        old = np.array([point.xy for point in before[name].points2D])
        its = np.flatnonzero(tracks.view == v)
        index = tracks.index[its]
        same = index < len(old)
        same[same] = (old[index[same]] == tracks.xy[its[same]]).all(axis=1)
        moved[its] = ~same
    return np.bincount(tracks.track, moved, len(tracks.ids)) > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    args = parser.parse_args()
    every = [
        PointErrors.of(folder / "refined", folder / "scene", folder / "mapped" / "model")
        for folder in (args.out / str(seed) for seed in args.seeds)
    ]
    error, sigma, length, aligned, edge, bend = (
        np.concatenate([getattr(points, of) for points in every])
        for of in ("error", "sigma", "length", "aligned", "edge", "bend")
    )
    clear = aligned & (edge > 8)
    kinds = {
        "all": np.ones(len(error), bool),
        "as they were mapped": ~aligned,
        "aligned": aligned,
        "aligned, in 2 photos": aligned & (length == 2),
        "aligned, in 3 and 4": aligned & (length > 2) & (length < 5),
        "aligned, in 5 and more": aligned & (length > 4),
        "aligned, on planes": clear & (bend < _PLANE),
        "aligned, on round things": clear & (bend > _BENT),
        "aligned, edge at 2 to 6 px": aligned & (edge > 2) & (edge <= 6),
        "aligned, edge within 2 px": aligned & (edge <= 2),
    }
    print("| points | | error | its size | told | 1 σ | 2 σ | 4 σ |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, its in kinds.items():
        size = np.abs(error[its])
        within = " | ".join(f"{np.mean(size < k * sigma[its]):.0%}" for k in (1, 2, 4))
        print(
            f"| {kind} | {np.count_nonzero(its):,} | {1e3 * np.median(error[its]):+.1f} mm | "
            f"{1e3 * np.median(size):.1f} mm | {1e3 * np.median(sigma[its]):.1f} mm | {within} |"
        )


if __name__ == "__main__":
    main()
