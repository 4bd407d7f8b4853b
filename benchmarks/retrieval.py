"""Which descriptors that need no download find the right database photos: of SIFT, or EDM's own.

    python benchmarks/retrieval.py places FOLDER [--k 10]
    python benchmarks/retrieval.py aachen|inloc [--seeds 101 102 103] [--k 8]

`places`: each sub-folder of FOLDER shows one place; every photo is searched for among all others.
Given are the part of queries whose first photo is of the same place, and the part of the first `k`.
Miniatures: overlap is the part of a query's 8 px grid that a database photo truly shows; given is
the overlap of the `k` photos found over that of the best `k`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from edm_hloc.images.find import find_images
from edm_hloc.images.load import load_image
from edm_hloc.matchers.loading import default_device
from edm_hloc.pairs.descriptors import RetrievalImages
from edm_hloc.pairs.local_features import SIFT, LocalFeatures, edm_features
from edm_hloc.pairs.retrieval import images_by_query, most_similar
from edm_hloc.pairs.vlad import vlad_descriptors
from edm_hloc.synthetic.aachen_miniature import make_aachen
from edm_hloc.synthetic.inloc_miniature import make_inloc
from tests.scenes import TruthMatcher

Found = dict[str, list[str]]


def search(
    images: Path, queries: list[str], database: list[str], local: LocalFeatures, k: int
) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "global.h5"
        vlad_descriptors(RetrievalImages(images, queries, database), path, local)
        return images_by_query(
            (query, image) for query, image, _ in most_similar(path, queries, database, k)
        )


def places(folder: Path, local: LocalFeatures, k: int) -> str:
    names = find_images(folder)
    found = search(folder, names, names, local, k)
    right = np.array(
        [[name.split("/")[0] == query.split("/")[0] for name in found[query]] for query in names]
    )
    return f"first right {right[:, 0].mean():.1%}, of the first {k} {right.mean():.1%}"


def miniatures(benchmark: str, methods: dict[str, LocalFeatures], seeds: list[int], k: int) -> None:
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
            for method, local in methods.items():
                found = search(images, queries, database, local, k)
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
    parser.add_argument("what", choices=("places", "aachen", "inloc"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--k", type=int, default=8)
    args = parser.parse_args()
    device = torch.device(default_device())
    methods: dict[str, LocalFeatures] = {"sift": SIFT, "edm": edm_features(None, device)}
    if args.what == "places":
        for method, local in methods.items():
            start = time.process_time()
            result = places(args.folder, local, args.k)
            print(
                f"{method}: {result}; {time.process_time() - start:.0f} s of CPU time", flush=True
            )
    else:
        miniatures(args.what, methods, args.seeds, args.k)


if __name__ == "__main__":
    main()
