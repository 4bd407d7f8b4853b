"""What each number of a reconstruction's options does: one scene, one option changed at a time.

    python benchmarks/presets.py OUT [--views 9] [--seed 0]

Renders a scene with known cameras, reconstructs it with each setting (and `--tracks none`, as the
options are of the steps before) and prints a Markdown table; OUT keeps the scene and the models.
docs/presets.md explains the options.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reconstruct_rows import MODEL_COLUMNS, heading, model_cells, reconstruct, row

from edm_hloc.evaluation.models import compare
from edm_hloc.synthetic.photo_collection import make_photo_collection

# One list of settings for each folder of matches: those of one share them.
SETTINGS = (
    (
        "",
        "--position mean",
        "--position bin",
        "--max-error 1 --cell-size 1",
        "--max-error 4 --cell-size 4",
        "--max-error 2 --cell-size 8",
        "--max-keypoints 16384",
        "--max-keypoints 1000",
        "--camera-mode per-image",
    ),
    ("--refine none", "--refine none --position bin"),
    ("--network-size 960",),
    ("--network-size 512",),
    ("--resize 640",),
    ("--resize 480",),
    ("--threshold 0.05",),
    ("--threshold 0.5",),
    ("--topk 500",),
)
COLUMNS = (
    "setting",
    "s a pair",
    "keypoints",
    "matches",
    "registered",
    *MODEL_COLUMNS,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--views", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="edm_s")
    args = parser.parse_args()
    scene = args.out / f"scene_{args.views}_{args.seed}"
    if not (scene / "truth" / "cameras.txt").is_file():
        make_photo_collection(scene, views=args.views, size=(960, 720), seed=args.seed)
    print(heading(COLUMNS))
    for number, settings in enumerate(SETTINGS):
        out, seconds = args.out / f"model_{number}", 0.0
        for setting in settings:
            mode = [] if "--camera-mode" in setting else ["--camera-mode", "single"]
            words = [*setting.split(), *mode, "--weights", args.weights, "--tracks", "none"]
            run = reconstruct(scene / "images", out, words)
            matching = run["matching"]
            if matching["matched"]:
                seconds = matching["seconds"] / matching["matched"]
            keypoints, found = run["keypoints"], compare(out / "model", scene / "truth")
            cells = (
                setting or "defaults",
                f"{seconds:.2f}",
                f"{keypoints['keypoints'] / keypoints['images']:,.0f}",
                f"{keypoints['matches']:,}",
                f"{found.registered} of {found.images}",
                *model_cells(found, found, digits=3),
            )
            print(row(cells), flush=True)


if __name__ == "__main__":
    main()
