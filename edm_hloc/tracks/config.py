"""The settings of the refinement of tracks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackConfig:
    """Settings of `refine.refine_tracks`; lengths are in pixels of the photos.

    The defaults were chosen by the errors of cameras on rendered scenes (docs/tracks.md).

    Attributes:
        patch_radii: of each round; patches are squares of 2·radius + 1 pixels of the photo that
            shows the point at the middle scale, weighted by a Gaussian.
        damping: of the alignment, as a share of the squared contrast of a patch: holds points where
            they are along the directions in which their patches do not tell them.
        max_shift: farthest that a point moves along each axis of its patch in a round.
        iterations: Gauss–Newton iterations of the alignment in each round.
        min_correlation: minimum correlation of a patch with the mean of the others of its track.
        min_new_correlation: the same for a photo that was not matched with the others.
        min_texture: smallest gradient of a track's mean patch along any direction, in contrasts of
            the patch per pixel: points on edges and plain walls have smaller ones.
        outlier: observations that move farther than so many times the median are dropped, and so
            are those whose reprojection error is as large after the adjustment.
        max_photos: photos of a track that its mean is made of, spread in viewpoint; the others are
            aligned to it.
        max_side: longest side that photos are reduced to.
        neighbours: nearest points that a local plane is fitted to.
        photo_bytes: memory for the photos that are held at a time; twice as much for a moment while
            they are exchanged.
    """

    patch_radii: tuple[int, ...] = (7, 5)
    damping: float = 0.0025
    max_shift: float = 2.0
    iterations: int = 6
    min_correlation: float = 0.8
    min_new_correlation: float = 0.9
    min_texture: float = 0.1
    outlier: float = 4.0
    max_photos: int = 16
    max_side: int = 2048
    neighbours: int = 16
    photo_bytes: int = 1 << 30
