"""Mends true poses that were made wrong: how near the truth refine-poses gets.

    python benchmarks/noisy_poses.py IMAGES TRUTH OUT [--degrees 2] [--percent 2] [--wrong N]

TRUTH is a COLMAP model with the true cameras of the photos in IMAGES. Each is turned by --degrees
about a random axis and moved by --percent of the extent (the largest distance of two cameras) in a
random direction; --wrong of them are turned by 90° instead. They become OUT/transforms.json, which
`edm-hloc refine-poses` gets. Before and after, the errors of all cameras after alignment.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc import cli
from edm_hloc.base.colmap import centres_of, posed_images, read_model
from edm_hloc.base.geometry import cross_product_matrix, largest_distance
from edm_hloc.evaluation.models import compare
from edm_hloc.interop.exports import nerfstudio_camera

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def turn(axis: np.ndarray, degrees: float) -> np.ndarray:
    """(3, 3) rotation about an axis."""
    K = cross_product_matrix(axis / np.linalg.norm(axis))
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * K + (1 - np.cos(angle)) * K @ K


def write_noisy(truth: Path, path: Path, args: argparse.Namespace) -> None:
    """The true poses with noise as a transforms.json."""
    model = read_model(truth)
    images = posed_images(model)
    rng = np.random.default_rng(args.seed)
    extent = largest_distance(centres_of(images.values()))
    wrong = set(rng.permutation(list(images))[: args.wrong])
    frames = []
    for name, image in images.items():
        axis, step = rng.normal(size=(2, 3))
        T = np.eye(4)
        T[:3] = image.cam_from_world().inverse().matrix()
        T[:3, :3] = turn(axis, 90.0 if name in wrong else args.degrees) @ T[:3, :3]
        T[:3, 3] += args.percent / 100 * extent * step / np.linalg.norm(step)
        intrinsics = nerfstudio_camera(model.cameras[image.camera_id])
        frames.append({"file_path": name, "transform_matrix": (T @ OPENGL).tolist(), **intrinsics})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"frames": frames}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of the photos")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="COLMAP model of true cameras")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for everything")
    parser.add_argument("--degrees", type=float, default=2.0, help="by which cameras are turned")
    parser.add_argument("--percent", type=float, default=2.0, help="of the extent, moved")
    parser.add_argument("--wrong", type=int, default=0, help="cameras that are turned by 90°")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    args, rest = parser.parse_known_args()
    poses = args.out / "transforms.json"
    write_noisy(args.truth, poses, args)
    run = args.out / "run"
    if cli.main(["refine-poses", str(poses), str(args.images), str(run), *rest]):
        raise SystemExit(1)
    for title, model in (("Before", run / "given_poses"), ("After", run / "model")):
        print(f"{title}\n{compare(model, args.truth)}")


if __name__ == "__main__":
    main()
