"""True errors of meshes of rendered photos.

    python benchmarks/mesh_errors.py OUT --seeds 3 4 5

Renders a town square of 20 m from 20 places at 1024 × 768 px, reconstructs it, makes the mesh
(`edm-hloc mesh`), and compares it with the surfaces that the photos show, once aligned by the
cameras. Printed are the distances of the vertices from these surfaces, in millimetres; the shares
of the vertices within 2 and 5 cm; the share of the surfaces within 5 and 10 cm of a vertex; and the
CPU seconds of the mesh. At the middle distance of 10 m a pixel is 12 mm wide.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from edm_hloc import reconstruct
from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.geometry import homogeneous
from edm_hloc.mapping.frames import frame_change
from edm_hloc.pipelines.mesh import Surfaces
from edm_hloc.synthetic.photo_collection import make_photo_collection

_SIZE = (1024, 768)
_GRID = 0.01  # m between points of the true surfaces
_FARTHEST = 40.0  # m: what is farther is the horizon


def true_surface(scene: Path) -> np.ndarray:
    """(N, 3) points of all surfaces that the photos show, about a centimetre apart."""
    truth = read_model(scene / "truth")
    found = np.zeros((0, 3))
    for name, image in posed_images(truth).items():
        depth = np.load((scene / "depth" / name).with_suffix(".npy"))
        y, x = np.nonzero((depth > 0) & (depth < _FARTHEST))
        pixels: np.ndarray = np.column_stack([x, y]) + 0.5
        rays = np.asarray(truth.cameras[image.camera_id].cam_from_img(pixels))
        points = homogeneous(rays) * depth[y, x, None]
        pose = image.cam_from_world().inverse()
        found = np.concatenate([found, points @ pose.rotation.matrix().T + pose.translation])
        cells = np.floor(found / _GRID).astype(np.int64)
        found = found[np.unique(cells, axis=0, return_index=True)[1]]
    return found


def row(scene: Path) -> list[float]:
    """The figures of one scene, which is made where it is not there."""
    if not (scene / "truth").exists():
        seed = int(scene.name.split("_")[1])
        make_photo_collection(scene, views=20, size=_SIZE, seed=seed, depth_maps=True)
    if not (scene / "run" / "model").exists():
        reconstruct(scene / "images", scene / "run")
    started = time.process_time()
    mesh = Surfaces.of_run(scene / "run" / "model", scene / "images").mesh()
    seconds = time.process_time() - started
    truth, model = read_model(scene / "truth"), read_model(scene / "run" / "model")
    change = frame_change(model, truth, posed_images(truth))
    vertices = change.scale * mesh.vertices @ change.rotation.matrix().T + change.translation
    surface = true_surface(scene)
    off = cKDTree(surface).query(vertices)[0]
    from_surface = cKDTree(vertices).query(surface)[0]
    shares = [np.mean(off < 0.02), np.mean(off < 0.05)]
    shares += [np.mean(from_surface < 0.05), np.mean(from_surface < 0.1)]
    millimetres = (1e3 * np.percentile(off, [50, 90])).tolist()
    return [len(mesh.triangles), *millimetres, *(100 * float(s) for s in shares), seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3], help="of the scenes")
    args = parser.parse_args()
    print(
        "| seed | triangles | error: median, 90 % (mm) | within 2, 5 cm (%) "
        "| covered to 5, 10 cm (%) | CPU s |\n|---|---|---|---|---|---|"
    )
    for seed in args.seeds:
        triangles, middle, most, near, close, fine, coarse, seconds = row(args.out / f"seed_{seed}")
        print(
            f"| {seed} | {triangles:,.0f} | {middle:.0f}, {most:.0f} | {near:.0f}, {close:.0f} "
            f"| {fine:.0f}, {coarse:.0f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
