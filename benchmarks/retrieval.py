"""Which descriptors that need no download find the right photos: of SIFT, EDM's own, or both.

    python benchmarks/retrieval.py places FOLDER [--k 10]
    python benchmarks/retrieval.py model IMAGES --model MODEL [--k 7]
    python benchmarks/retrieval.py aachen|inloc [--seeds 101 102 103] [--k 8]

`places`: each sub-folder of FOLDER shows one place; every photo is searched for among all others.
Given are the part of queries whose first photo is of the same place, and the part of the first `k`.
`model`: every photo of a COLMAP model is searched for among all others. Overlap is the part of its
points that lie in another photo and are seen there within 45°, the smaller one of both directions;
given is the overlap of the `k` photos found over that of the best `k`.
Miniatures: the same, but overlap is the part of a query's 8 px grid that a database photo truly
shows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc.base.colmap import centres_of, posed_images, read_model
from edm_hloc.base.frames import from_colmap, inside
from edm_hloc.images.find import find_images
from edm_hloc.images.load import load_image
from edm_hloc.matchers.loading import default_device
from edm_hloc.pairs.descriptors import RetrievalImages
from edm_hloc.pairs.local_features import SIFT, edm_features
from edm_hloc.pairs.names import NameFinder
from edm_hloc.pairs.retrieval import BOTH, RetrievalOptions, images_by_query, most_similar
from edm_hloc.pairs.vlad import vlad_descriptors
from edm_hloc.synthetic.aachen_miniature import make_aachen
from edm_hloc.synthetic.inloc_miniature import make_inloc
from tests.scenes import TruthMatcher

METHODS = ("sift", "edm", BOTH)
Found = dict[str, list[str]]


def search(
    images: Path, queries: Sequence[str], database: Sequence[str], k: int
) -> dict[str, Found]:
    """The first `k` answers by each method, best first."""
    kinds = {"sift": SIFT, "edm": edm_features(None, torch.device(default_device()))}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, local in kinds.items():
            start = time.process_time()
            described = RetrievalImages(images, queries, database)
            vlad_descriptors(described, Path(folder) / f"{kind}.h5", local)
            seconds = (time.process_time() - start) / len(described.names)
            print(f"{kind}: {1000 * seconds:.0f} ms of CPU time a photo", flush=True)
        for method in METHODS:
            shares = RetrievalOptions(method).computed
            files = {Path(folder) / f"{kind}.h5": share for kind, share in shares.items()}
            similar = most_similar(files, queries, database, k)
            found[method] = images_by_query((query, image) for query, image, _ in similar)
    return found


def places(folder: Path, k: int) -> None:
    names = find_images(folder)
    for method, found in search(folder, names, names, k).items():
        right = np.array(
            [[n.split("/")[0] == query.split("/")[0] for n in found[query]] for query in names]
        )
        print(
            f"{method}: first right {right[:, 0].mean():.1%}, of the first {k} {right.mean():.1%}"
        )


def model(images: Path, path: Path, k: int) -> None:
    truth = read_model(path)
    posed = posed_images(truth)
    files = NameFinder(find_images(images))
    names = {file: name for name in posed if (file := files.find(name)) is not None}
    overlaps = overlap_in_model(truth, [posed[name] for name in names.values()])
    index = {name: i for i, name in enumerate(names)}
    best = np.sort(overlaps, axis=1)[:, : -k - 1 : -1].sum()
    for method, found in search(images, list(names), list(names), k).items():
        got = sum(overlaps[index[a], index[b]] for a, others in found.items() for b in others)
        print(f"{method}: {got / best:.1%} of the overlap of the best {k}, {len(names)} photos")


def overlap_in_model(
    model: pycolmap.Reconstruction, images: Sequence[pycolmap.Image]
) -> np.ndarray:
    """(N, N) part of the points of one image that lie in another, the smaller of both ways."""
    overlap = np.zeros((len(images), len(images)))
    centres = centres_of(images)
    for i, image in enumerate(images):
        ids = image.get_observation_points2D()
        points = np.array([model.points3D[p.point3D_id].xyz for p in ids]).reshape(-1, 3)
        for j, other in enumerate(images):
            if i == j or not len(points):
                continue
            camera = model.cameras[other.camera_id]
            seen = points @ other.cam_from_world().matrix()[:, :3].T
            seen += other.cam_from_world().translation
            pixels = np.full((len(points), 2), -1.0)
            front = seen[:, 2] > 0
            if front.any():
                pixels[front] = camera.img_from_cam(seen[front])
            rays = [points - centres[n] for n in (i, j)]
            lengths = np.prod([np.linalg.norm(ray, axis=1) for ray in rays], axis=0)
            near = (rays[0] * rays[1]).sum(axis=1) > np.cos(np.radians(45)) * lengths
            overlap[i, j] = (near & inside(from_colmap(pixels), camera.width, camera.height)).mean()
    return np.minimum(overlap, overlap.T)


def miniatures(benchmark: str, seeds: Sequence[int], k: int) -> None:
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            data = Path(name)
            if benchmark == "aachen":
                make_aachen(data, 24, (6, 6), seed=seed, depth_maps=True)
                images = data / "images_upright"
            else:
                make_inloc(data, 48, 12, seed=seed, depth_maps=True)
                images = data
            everything = [n for n in find_images(images) if not n.startswith(("depth", "truth"))]
            queries = [n for n in everything if n.startswith("query")]
            database = [n for n in everything if not n.startswith("query")]
            truth = TruthMatcher(data, images=images.relative_to(data).as_posix())
            features = {
                n: truth.encode(load_image(images / n, resize_max=None)) for n in everything
            }
            overlap = {
                (q, d): len(truth.match(features[q], features[d]).scores)
                for q in queries
                for d in database
            }
            for method, found in search(images, queries, database, k).items():
                for query in queries:
                    best = sum(sorted((overlap[query, d] for d in database), reverse=True)[:k])
                    group = query.split("/")[1]
                    share = sum(overlap[query, d] for d in found[query]) / max(1, best)
                    shares[method, group].append(share)
    for (method, group), values in shares.items():
        mean = f"{np.mean(values):.1%} of the overlap of the best {k}"
        print(f"{method}, {group}: {mean}, {len(values)} queries")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("places", "model", "aachen", "inloc"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--k", type=int, default=8)
    args = parser.parse_args()
    if args.what == "places":
        places(args.folder, args.k)
    elif args.what == "model":
        model(args.folder, args.model, args.k)
    else:
        miniatures(args.what, args.seeds, args.k)


if __name__ == "__main__":
    main()
