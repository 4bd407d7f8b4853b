"""Options of verification, mapping and triangulation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edm_hloc.base.settings import check_range

Mapper = Literal["incremental", "global"]


@dataclass(frozen=True)
class MappingOptions:
    """Options of verification, mapping and triangulation that a user may have to change.

    Attributes:
        mapper: COLMAP's mapper: "incremental", which is robust, or "global", which is faster on
            many photos.
        max_error: inlier threshold in pixels of the original photos, for the distance of a
            keypoint from its epipolar line and for the reprojection error of a 3D point. Keypoints
            found in reduced photos are less accurate by the factor of reduction: raise it for
            photos much larger than the matcher's input. The global mapper has its own threshold
            for the reprojection error, 4 px and a hundredth of the focal length.
        min_inliers: minimum number of inliers of a verified pair.
        min_tri_angle: minimum triangulation angle of a 3D point in degrees; the global mapper
            takes no less than 1.5.
        two_view_points: keep 3D points whose track has two images only. Semi-dense matchers find
            most points in one pair only; these points stabilise the poses and make the model two
            to three times as large, with shorter tracks on average.
        refine_intrinsics: refine focal length and distortion of the cameras that are not known.
            The global mapper can do so for all cameras or for none. Where the incremental mapper
            fails with distortion, as on photos taken in straight forward motion, it is run again
            without.
        one_camera: where photos of one size, of which nothing else is known, have a camera each,
            the incremental mapper tries one camera for all of a size as well, and keeps it if they
            fit it no worse, or if no believable model is found otherwise. Where photos share a
            camera and fit cameras of their own far better, they are mapped again with these, by
            either mapper.
        seed: of all random numbers. With one thread the incremental mapper is deterministic, the
            global one nearly so.
        threads: number of threads; -1 for all cores.

    Raises:
        EdmHlocError: a number is out of its range.
    """

    mapper: Mapper = "incremental"
    max_error: float = 4.0
    min_inliers: int = 30
    min_tri_angle: float = 1.5
    two_view_points: bool = True
    refine_intrinsics: bool = True
    one_camera: bool = True
    seed: int = 0
    threads: int = -1

    def __post_init__(self) -> None:
        check_range("MappingOptions.max_error", self.max_error, 1e-3)
        check_range("MappingOptions.seed", self.seed, 0, 2**31)

    def of_verification(self) -> dict[str, Any]:
        """The options that decide the verified pairs of a database, for its fingerprint."""
        return {
            "max_error": self.max_error,
            "min_inliers": self.min_inliers,
            "seed": self.seed,
        }

    def of_mapping(self) -> dict[str, Any]:
        """The options that decide a model, for its fingerprint: all but the number of threads."""
        return {name: value for name, value in asdict(self).items() if name != "threads"}
