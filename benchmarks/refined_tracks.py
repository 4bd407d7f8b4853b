"""Errors of cameras before and after the refinement of tracks, on rendered photos with exact truth.

    python benchmarks/refined_tracks.py OUT --seeds 3 4 [--unknown] [--distortion K]

For each seed, OUT/SEED/scene holds the photos of a rendered square and their true cameras,
OUT/SEED/mapped what `edm-hloc reconstruct --tracks none` makes of them with the true intrinsics,
and OUT/SEED/refined what `edm-hloc refine-model --keep-intrinsics` makes of that model; with
`--unknown` both find the intrinsics themselves, of each photo by itself. With `--distortion` the
photos get the radial distortion K of COLMAP's SIMPLE_RADIAL camera. Printed are
the medians of the cameras' errors, the CPU time of the refinement, the root mean square of the true
errors along all axes over the standard deviations in OUT/SEED/refined_uncertainty.json, and the
shares within one and two of these; and these shares of the points, of which the true depth is known
in the photo that sees them from the middle of their directions, by the longest of their deviations
in OUT/SEED/refined_points_uncertainty.npz. Points at the outline of things do not count.
What is there is kept, but the refined models are made anew.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from point_errors import PointErrors

from edm_hloc import cli
from edm_hloc.base.colmap import read_model
from edm_hloc.evaluation.models import compare
from edm_hloc.images.load import stored_pixels
from edm_hloc.synthetic.photo_collection import make_photo_collection
from edm_hloc.synthetic.photo_truth import write_photo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--unknown", action="store_true", help="intrinsics are not given")
    parser.add_argument("--distortion", type=float, default=0.0, metavar="K")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        folder = args.out / str(seed)
        scene, mapped, refined = (folder / name for name in ("scene", "mapped", "refined"))
        truth, images = scene / "truth", str(scene / "images")
        if not (truth / "cameras.txt").is_file():
            straight = not args.distortion
            make_photo_collection(scene, views=args.views, seed=seed, depth_maps=straight)
            if args.distortion:
                distort(scene, args.distortion)
        known = ["--camera-mode", "per-image"] if args.unknown else ["--known", str(truth)]
        kept = [] if args.unknown else ["--keep-intrinsics"]
        _run("reconstruct", images, str(mapped), "--tracks", "none", *known)
        start = time.process_time()
        _run("refine-model", str(mapped / "model"), images, str(refined), *kept)
        seconds = time.process_time() - start
        for title, model in (("mapped", mapped / "model"), ("refined", refined)):
            c = compare(model, truth)
            rows.append(
                f"{seed:>4}  {title:<8} {c.points:>7,} {c.mean_track_length:>7.2f} "
                f"{c.mean_reprojection_error:>9.3f} {c.rotation_median:>10.4f} "
                f"{c.position_median:>10.4f}"
            )
        rows[-1] += f" {seconds:>8.1f}"
        assert c.told is not None
        for ratio, shares in (
            (c.told.position_ratio, c.told.position_within),
            (c.told.rotation_ratio, c.told.rotation_within),
        ):
            rows[-1] += f"  {ratio:.2f} ({' '.join(f'{share:.0%}' for share in shares)})"
        if (scene / "depth").is_dir():
            points = PointErrors.of(refined, scene)
            ratio = points.error / points.sigma
            rows[-1] += "  " + " ".join(f"{np.mean(np.abs(ratio) < k):.0%}" for k in (1, 2))
    print("seed  model     points   track  error px  rotation °  position %  CPU s", end="")
    print("  position/σ        rotation/σ        points")
    print("\n".join(rows))


def distort(scene: Path, k: float) -> None:
    """Gives the photos of a scene without depth maps radial distortion, and its true cameras."""
    truth, wide = read_model(scene / "truth"), scene / "distorted"
    shutil.rmtree(scene / "truth")  # a scene without it is made anew
    for camera in truth.cameras.values():
        x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        straight = pycolmap.Camera(camera.todict())
        camera.model = pycolmap.CameraModelId.SIMPLE_RADIAL
        camera.params = [*straight.params, k]
        rays = camera.cam_from_img(np.stack([x.ravel(), y.ravel()], axis=1))
        from_ = straight.img_from_cam(np.column_stack([rays, np.ones(len(rays))])) - 0.5
        u, v = from_.T.reshape(2, *x.shape).astype(np.float32)
        for image in truth.images.values():
            if image.camera_id == camera.camera_id:
                photo = stored_pixels(scene / "images" / image.name)
                bent = cv2.remap(photo, u, v, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT)
                write_photo(wide / image.name, bent[..., ::-1])
    shutil.rmtree(scene / "images")
    wide.rename(scene / "images")
    (scene / "truth").mkdir()
    truth.write_text(scene / "truth")


def _run(*arguments: str) -> None:
    if cli.main(arguments):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
