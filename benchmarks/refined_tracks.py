"""Errors of cameras before and after the refinement of tracks, on rendered photos with exact truth.

    python benchmarks/refined_tracks.py OUT --seeds 3 4

For each seed, OUT/SEED/scene holds the photos of a rendered square and their true cameras,
OUT/SEED/mapped what `edm-hloc reconstruct` makes of them with the true intrinsics,
and OUT/SEED/refined what `edm-hloc refine-model --keep-intrinsics` makes of that model. Printed are
the medians of the cameras' errors and the CPU time of the refinement. What is there is kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from edm_hloc import cli
from edm_hloc.evaluation.models import compare
from edm_hloc.synthetic.photo_collection import make_photo_collection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--views", type=int, default=10)
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        folder = args.out / str(seed)
        scene, mapped, refined = (folder / name for name in ("scene", "mapped", "refined"))
        truth, images = scene / "truth", str(scene / "images")
        if not (truth / "cameras.txt").is_file():
            make_photo_collection(scene, views=args.views, seed=seed)
        _run("reconstruct", images, str(mapped), "--known", str(truth))
        start = time.process_time()
        _run("refine-model", str(mapped / "model"), images, str(refined), "--keep-intrinsics")
        seconds = time.process_time() - start
        for title, model in (("mapped", mapped / "model"), ("refined", refined)):
            c = compare(model, truth)
            rows.append(
                f"{seed:>4}  {title:<8} {c.points:>7,} {c.mean_track_length:>7.2f} "
                f"{c.mean_reprojection_error:>9.3f} {c.rotation_median:>10.4f} "
                f"{c.position_median:>10.4f}"
            )
        rows[-1] += f" {seconds:>8.1f}"
    print("seed  model     points   track  error px  rotation °  position %  CPU s")
    print("\n".join(rows))


def _run(*arguments: str) -> None:
    if cli.main(arguments):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
