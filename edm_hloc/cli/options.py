"""Options that several commands share, and the objects made of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edm_hloc.base.errors import EdmHlocError

if TYPE_CHECKING:
    import pycolmap

    from edm_hloc.keypoints.quantization import QuantizationConfig
    from edm_hloc.matchers.base import Matcher
    from edm_hloc.matchers.registry import MatcherName
    from edm_hloc.matching.engine import MatchingConfig
    from edm_hloc.pairs.retrieval import SimilarPhotos
    from edm_hloc.pairs.rules import Pair
    from edm_hloc.pipelines.reconstruct import ReconstructionConfig

MANY_PAIRS = 5000  # from here on the user is told of faster ways
MATCHERS = ("edm", "eloftr", "loftr")  # edm_hloc.matchers.registry.NAMES
WEIGHTS_HELP = "name (see: edm-hloc weights list) or path; by default the best on this computer"


Command = Callable[[argparse.Namespace], None]


class AddCommand(Protocol):
    """Adds a command to the parser; gives its own parser."""

    def __call__(self, name: str, function: Command, text: str) -> argparse.ArgumentParser: ...


Number = TypeVar("Number", int, float)


def between(kind: type[Number], least: float, below: float = math.inf) -> Callable[[str], Number]:
    """Reads an argument that is a number from `least` on and smaller than `below`."""

    def read(text: str) -> Number:
        value = kind(text)
        if not least <= value < below:
            limit = f" and below {below:,}" if below < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be at least {least:,}{limit}, not {text}")
        return value

    read.__name__ = kind.__name__  # argparse says it where the text is no number at all
    return read


SEED = between(int, 0, 2**31)  # COLMAP's range


def add_pairs(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("which photos to match with which")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--pairs",
        metavar="HOW",
        help="exhaustive (which is the default), sequential (photos in the order of their names), "
        "retrieval (photos that look alike), or a file with two names a line",
    )
    either.add_argument(
        "--from-model",
        type=Path,
        metavar="MODEL",
        help="instead, partners that see most points in common in this COLMAP model, or the "
        "nearest cameras where it has no points",
    )
    group.add_argument(
        "--partners",
        type=between(int, 1),
        help="a photo, for --from-model and --pairs retrieval; 20 by default",
    )
    group.add_argument(
        "--retrieval",
        metavar="HOW",
        help="for --pairs retrieval: edm (which is the default) or sift (computed here), megaloc "
        "(torch.hub), or an H5 file of global descriptors",
    )
    group.add_argument(
        "--overlap", type=between(int, 1), help="next photos, for sequential; 10 by default"
    )
    group.add_argument(
        "--loop-step",
        type=between(int, 1),
        help="for sequential: also match every so many photos with one another, to close loops",
    )


def add_matcher(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("matching")
    group.add_argument("--matcher", choices=MATCHERS, default="edm", help="the network")
    group.add_argument("--weights", help=WEIGHTS_HELP)
    group.add_argument("--resize", type=int, default=1024, help="longest side matched, in px")
    group.add_argument(
        "--threshold", type=between(float, 0, 1), help="least confidence; default by the weights"
    )
    group.add_argument(
        "--topk", type=between(int, 1), help="most matches a pair; default by the size"
    )
    group.add_argument(
        "--refine",
        choices=("photometric", "none"),
        default="photometric",
        help="look again at pairs with few matches, and move points to where the photos around "
        "them agree best; or leave the network's",
    )
    group.add_argument("--device", help="cuda, mps or cpu; by default the fastest there is")
    group.add_argument(
        "--onnx",
        type=Path,
        metavar="FOLDER",
        help="of edm-hloc export: ONNX Runtime encodes the photos, faster than PyTorch on a CPU",
    )
    group.add_argument(
        "--cache",
        type=between(float, 0),
        default=2.0,
        metavar="GB",
        help="memory for encoded photos",
    )


def add_quantization(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("keypoints (lengths in px of the original photo)")
    group.add_argument("--max-error", type=float, default=2.0, help="how far points are merged")
    group.add_argument("--cell-size", type=float, default=2.0, help="at most one keypoint a cell")
    group.add_argument("--max-keypoints", type=int, default=8192, help="a photo; 0: no limit")
    group.add_argument(
        "--position",
        choices=("adjusted", "mean", "bin"),
        default="adjusted",
        help="keypoints where the matches of all pairs agree, at the mean of their points, or at "
        "the centre of a bin as hloc",
    )
    group.add_argument(
        "--masks",
        type=Path,
        help="folder with an image NAME.png for the photo NAME, black where nothing counts",
    )


def add_mapping(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("cameras and mapping")
    group.add_argument(
        "--known",
        type=Path,
        metavar="INTRINSICS",
        help="known intrinsics, kept as they are: a COLMAP model or its cameras.txt, or a list "
        "with 'name MODEL width height parameters' a line; for --mapper global of all photos",
    )
    group.add_argument(
        "--camera-mode",
        choices=("auto", "single", "per-folder", "per-image"),
        default="auto",
        help="photos that share a camera; auto goes by their EXIF data",
    )
    group.add_argument("--camera-model", default="SIMPLE_RADIAL", help="COLMAP's name of it")
    group.add_argument("--mapper", choices=("incremental", "global"), default="incremental")
    group.add_argument("--seed", type=SEED, default=0, help="of the random parts of the geometry")


def add_overwrite(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--overwrite", action="store_true", help="do everything again, whatever OUT holds"
    )


def make_matcher(args: argparse.Namespace) -> Matcher:
    from edm_hloc.matchers.base import Preprocessing
    from edm_hloc.refinement.load import load_matcher

    if getattr(args, "resize", 1024) < 32:
        raise EdmHlocError("--resize must be at least 32 px.")
    name: MatcherName = getattr(args, "matcher", "edm")
    settings: dict[str, Any] = {
        "weights": args.weights,
        "preprocessing": Preprocessing(resize_max=getattr(args, "resize", 1024)),
        "threshold": getattr(args, "threshold", None),
        "topk": getattr(args, "topk", None),
        "device": getattr(args, "device", None),
        "onnx": getattr(args, "onnx", None),
    }
    matcher = load_matcher(name, getattr(args, "refine", "photometric"), **settings)
    print(f"Weights     {matcher.info.weights}, on {matcher.info.device}")
    return matcher


def dense_config(args: argparse.Namespace) -> MatchingConfig:
    from edm_hloc.matching.engine import MatchingConfig

    return MatchingConfig(cache_bytes=int(args.cache * 1e9))


def reconstruction_config(
    args: argparse.Namespace, known: Mapping[str, pycolmap.Camera] | None = None
) -> ReconstructionConfig:
    """Settings of the commands that make a model; `triangulate` has no options for cameras.

    Args:
        known: known intrinsics by the photo's name.
    """
    from edm_hloc.images.cameras import CameraOptions
    from edm_hloc.mapping.options import MappingOptions
    from edm_hloc.pipelines.reconstruct import ReconstructionConfig

    cameras, mapping = CameraOptions(), MappingOptions()
    if hasattr(args, "mapper"):
        cameras = CameraOptions(args.camera_mode, args.camera_model, known)
        mapping = MappingOptions(mapper=args.mapper, seed=args.seed)
    return ReconstructionConfig(
        keypoints=quantization(args),
        matching=dense_config(args),
        cameras=cameras,
        mapping=mapping,
        masks=args.masks,
        overwrite=args.overwrite,
    )


def quantization(args: argparse.Namespace) -> QuantizationConfig:
    from edm_hloc.keypoints.quantization import QuantizationConfig

    try:
        return QuantizationConfig(
            max_error=args.max_error,
            cell_size=args.cell_size,
            max_kps=args.max_keypoints or None,
            position=args.position,
        )
    except ValueError as error:
        raise EdmHlocError(f"Wrong quantization: {error}.") from None


def choose_pairs(args: argparse.Namespace) -> list[Pair] | SimilarPhotos:
    """The pairs, or the photos that retrieval is to find them among; prints their number."""
    from edm_hloc.images.find import find_images
    from edm_hloc.pairs.selection import PairSelection, select_pairs

    _check_pair_options(args)
    default = PairSelection()
    selection = PairSelection(
        args.pairs or default.how,
        args.from_model,
        args.partners or default.partners,
        args.retrieval or default.retrieval,
        args.overlap or default.overlap,
        args.loop_step,
    )
    names = find_images(args.images)
    pairs = select_pairs(names, selection)
    photos = f"Photos      {len(names)} in {args.images}"
    if not isinstance(pairs, list):
        print(f"{photos}, each with {selection.partners} like it")
        return pairs
    print(f"{photos}, {len(pairs):,} pairs")
    every = selection.model is None and selection.how == "exhaustive"
    if every and len(pairs) > MANY_PAIRS:
        print(
            f"            All pairs of {len(names)} photos are many. --pairs retrieval is much "
            "faster, and so is --pairs sequential for photos taken one after the other."
        )
    return pairs


def list_pairs(args: argparse.Namespace) -> list[Pair]:
    """The pairs, where retrieval cannot find them since there is no folder for its files."""
    if args.pairs == "retrieval":
        raise EdmHlocError(
            "--pairs retrieval is for reconstruct, triangulate and match-pairs, which keep the "
            "descriptors and leave the list in OUT/pairs.txt. From a file of descriptors "
            "edm-hloc retrieve makes a list."
        )
    pairs = choose_pairs(args)
    assert isinstance(pairs, list)
    return pairs


def _check_pair_options(args: argparse.Namespace) -> None:
    by_model, in_order = args.from_model is not None, args.pairs == "sequential"
    alike = args.pairs == "retrieval"
    for option, value, given, needed in (
        ("--partners", args.partners, by_model or alike, "--from-model and --pairs retrieval"),
        ("--retrieval", args.retrieval, alike, "--pairs retrieval"),
        ("--overlap", args.overlap, in_order, "--pairs sequential"),
        ("--loop-step", args.loop_step, in_order, "--pairs sequential"),
    ):
        if value is not None and not given:
            raise EdmHlocError(f"{option} is for {needed} only: add that, or leave {option} out.")
