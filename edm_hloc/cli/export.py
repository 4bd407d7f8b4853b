"""`edm-hloc export`: write the network as ONNX graphs, for ONNX Runtime and TensorRT."""

from __future__ import annotations

import argparse
from pathlib import Path

from edm_hloc.base.files import make_folder
from edm_hloc.base.progress import StepProgress
from edm_hloc.cli import options


def register(command: options.AddCommand) -> None:
    sub = command("export", _export, "write EDM as two ONNX graphs, and check them against PyTorch")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for encode.onnx and match.onnx")
    sub.add_argument("--weights", help=options.WEIGHTS_HELP)
    sub.add_argument(
        "--topk",
        type=options.between(int, 1, 3841),
        default=2048,
        help="number of matches per pair, which is fixed in the graph; TensorRT allows up to 3840",
    )
    sub.add_argument("--half", action="store_true", help="store weights and features in fp16")
    sub.add_argument(
        "--refined",
        choices=("best", "image0", "image1"),
        default="best",
        help="image whose keypoints are refined from the 8 px grid; best: the more certain one",
    )


def _export(args: argparse.Namespace) -> None:
    from edm_hloc.models import weights
    from edm_hloc.models.onnx_export import OnnxConfig, export

    make_folder(args.out)
    model, info = weights.load(args.weights)
    print(f"Weights     {info}")
    config = OnnxConfig(topk=args.topk, half=args.half, refined=args.refined)
    with StepProgress("Exporting"):
        summary = export(model, info, args.out, config)
    print(
        f"Checked     features within {summary.feature_error:.1e} of the largest of PyTorch's; "
        f"{100 * summary.in_common:.1f} % of the matches are the same, "
        f"to {summary.keypoint_error:.1e} px"
    )
    for path in summary.paths:
        print(f"Written     {path} ({path.stat().st_size / 1e6:.1f} MB)")
