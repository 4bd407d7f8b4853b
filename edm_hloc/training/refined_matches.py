"""Training pairs from what `edm-hloc reconstruct` wrote: refined matches that its model confirms.

The points of a sparse model lie where its tracks are. The refined matches of a pair are many times
as many, and the photometric alignment has placed each of them to a fraction of a pixel, so that
they teach the fine stage on real photos. Those that do not agree with the model's poses are left
out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import from_colmap, to_colmap
from edm_hloc.base.geometry import epipolar_errors, essential_matrix, homogeneous
from edm_hloc.base.matches import Matches
from edm_hloc.training.scene_types import SupervisedImage, TrainingScene, photo_of_model

Array = np.ndarray
MIN_MATCHES = 100  # that agree with the model, for two photos to be a training pair
MAX_ERROR = 1 / 1280  # epipolar, in longer sides of the photo: half a pixel at 640 px


def reconstruction_scenes(out: Path, images: Path) -> list[TrainingScene]:
    """One scene with the matched pairs of photos of a reconstruction.

    Args:
        out: folder that `edm-hloc reconstruct` has written, with `model` and `raw_matches`.
        images: folder of the photos.

    Raises:
        EdmHlocError: `out` has no model or no matches, or no pair with enough of them.
    """
    try:
        from edm_hloc.base.colmap import posed_images, read_model
        from edm_hloc.images.sizes import fit_model
        from edm_hloc.matching.reader import RawMatchReader
    except ImportError as error:
        raise EdmHlocError("training on a reconstruction needs pycolmap") from error

    model = read_model(out / "model")  # in pixels of the photos that were matched
    fitted, _ = fit_model(read_model(out / "model"), images, f"the model {out / 'model'}")
    posed, of_stored = posed_images(model), posed_images(fitted)
    reader = RawMatchReader(out / "raw_matches")  # stays open: its index is read once

    def agreeing(pair: tuple[str, str]) -> tuple[Matches, Array]:
        """The matches of a pair that agree with its poses, and its T_0to1 (4, 4)."""
        matches = reader.read(*pair)
        T0, T1 = (np.vstack([posed[n].cam_from_world().matrix(), [0, 0, 0, 1]]) for n in pair)
        T_0to1: Array = T1 @ np.linalg.inv(T0)
        rays, sides = [], []
        for name, points in zip(pair, (matches.keypoints0, matches.keypoints1), strict=True):
            camera = model.cameras[posed[name].camera_id]
            rays.append(homogeneous(camera.cam_from_img(to_colmap(points))))
            sides.append(max(camera.width, camera.height) / camera.mean_focal_length())
        errors = epipolar_errors(rays[0], rays[1], essential_matrix(T_0to1))
        kept = np.all([e < MAX_ERROR * s for e, s in zip(errors, sides, strict=True)], axis=0)
        return matches[kept], T_0to1

    def photo(name: str, points: Array) -> SupervisedImage:
        matched = model.cameras[posed[name].camera_id]
        camera = fitted.cameras[of_stored[name].camera_id]
        factors = np.divide((camera.width, camera.height), (matched.width, matched.height))
        points = from_colmap(to_colmap(points.astype(np.float64)) * factors)
        return photo_of_model(images / name, camera, points)

    stored = [pair for pair in reader.pairs() if all(name in posed for name in pair)]
    pairs = [pair for pair in stored if len(agreeing(pair)[0]) >= MIN_MATCHES]
    if not pairs:
        raise EdmHlocError(
            f"no two photos of {out} have {MIN_MATCHES} matches that agree with its model; "
            "training needs a reconstruction with overlapping photos"
        )

    def read(number: int) -> tuple[SupervisedImage, SupervisedImage, Array]:
        a, b = pairs[number]
        matches, T = agreeing((a, b))
        return photo(a, matches.keypoints0), photo(b, matches.keypoints1), T

    return [TrainingScene(len(pairs), read)]
