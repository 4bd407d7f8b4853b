"""`edm-hloc demo` reconstructs a synthetic scene; `compare` compares two models."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import make_folder, write_whole
from edm_hloc.cli import options, summaries
from edm_hloc.cli.report import reporting


def register(command: options.AddCommand) -> None:
    sub = command(
        "demo", _demo, "reconstruct a synthetic scene and compare it with its ground truth"
    )
    sub.add_argument(
        "out",
        type=Path,
        metavar="OUT",
        nargs="?",
        default=Path("outputs/demo"),
        help="folder for the photos, the model and the report",
    )
    sub.add_argument(
        "--views", type=options.between(int, 2, 1001), default=12, help="number of photos to render"
    )
    sub.add_argument("--seed", type=options.SEED, default=0, help="another one, another scene")
    sub.add_argument("--matcher", choices=options.MATCHERS, default="edm", help="the network")
    sub.add_argument("--weights", help=options.WEIGHTS_HELP)

    sub = command("compare", _compare, "compare a model with a ground-truth model")
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model to judge")
    sub.add_argument(
        "truth",
        type=Path,
        metavar="TRUTH",
        help="COLMAP model with the true cameras; with --images also nerfstudio's transforms.json, "
        "a trajectory of TUM's or KITTI's form, or another file that refine-poses reads",
    )
    sub.add_argument("--images", type=Path, help="folder of the photos")
    sub.add_argument("--json", type=Path, help="also write the numbers to this JSON file")


def _demo(args: argparse.Namespace) -> None:
    from edm_hloc.evaluation.models import compare
    from edm_hloc.images.cameras import CameraOptions
    from edm_hloc.images.find import find_images
    from edm_hloc.pairs.rules import exhaustive
    from edm_hloc.pipelines.reconstruct import ReconstructionConfig, reconstruct
    from edm_hloc.synthetic.photo_collection import make_photo_collection

    start = time.monotonic()
    if (args.out / "run.json").exists() and not any(args.out.glob("scene_*")):
        raise EdmHlocError(f"{args.out} holds another run: choose another folder for the demo.")
    make_folder(args.out)
    matcher = options.make_matcher(args)
    scene = args.out / f"scene_{args.views}_{args.seed}"
    if not (scene / "truth" / "cameras.txt").is_file():
        make_photo_collection(scene, views=args.views, seed=args.seed)
    names = find_images(scene / "images")
    print(f"Scene       {len(names)} rendered photos with their true cameras in {scene}")
    with reporting(args.out):
        run = reconstruct(
            scene / "images",
            args.out,
            exhaustive(names),
            matcher,
            ReconstructionConfig(cameras=CameraOptions(mode="single"), overwrite=True),
        )
        summaries.print_reconstruction(run, time.monotonic() - start)
    print("\nCompared with the true cameras:")
    print(compare(run.out / "model", scene / "truth"))


def _compare(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from edm_hloc.evaluation.models import compare

    if args.json is not None:
        options.check_output(args.json, *args.model.glob("*"), args.truth, *args.truth.glob("*"))
    comparison = compare(args.model, args.truth, args.images)
    print(comparison)
    if args.json is not None:
        write_whole(args.json, json.dumps(asdict(comparison), indent=2, default=str))
