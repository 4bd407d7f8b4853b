"""Options that several commands share, and the configurations built from them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from edm_hloc.base.errors import EdmHlocError

if TYPE_CHECKING:
    import pycolmap

    from edm_hloc.keypoints.quantization import QuantizationConfig
    from edm_hloc.matchers.base import Matcher
    from edm_hloc.matching.engine import MatchingConfig
    from edm_hloc.pipelines.reconstruct import ReconstructionConfig
    from edm_hloc.refinement.load import MatcherRecipe

MATCHERS = ("edm", "eloftr", "loftr")
"""`edm_hloc.matchers.registry.NAMES`, repeated because its import takes seconds."""
WEIGHTS_HELP = "name (see: edm-hloc weights list) or path; by default the best on this computer"


Command = Callable[[argparse.Namespace], None]


class AddCommand(Protocol):
    """Adds a command to the parser and returns the command's own parser."""

    def __call__(self, name: str, function: Command, text: str) -> argparse.ArgumentParser: ...


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help where there is one to tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default in ([], ()):
            return action.help
        return super()._get_help_string(action)


Number = TypeVar("Number", int, float)


def between(kind: type[Number], least: float, below: float = math.inf) -> Callable[[str], Number]:
    """A type for argparse: numbers in [least, below)."""

    def read(text: str) -> Number:
        value = kind(text)
        if not least <= value < below:
            limit = f" and below {below:,}" if below < math.inf else ""
            raise argparse.ArgumentTypeError(f"must be at least {least:,}{limit}, not {text}")
        return value

    read.__name__ = kind.__name__  # argparse names it when the text is not a number
    return read


def filled(text: str) -> str:
    """A type for argparse: a text that is not empty, which pathlib takes for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError(
            "is empty: is a variable of the shell not set? The current folder is '.'"
        )
    return text


SEED = between(int, 0, 2**31)
"""A type for argparse: seeds that COLMAP accepts."""


def add_matcher(sub: argparse.ArgumentParser, *, resize: bool = True) -> None:
    """Add the options that `make_matcher` and `matching_config` read.

    Args:
        resize: whether --resize is among them.
    """
    group = sub.add_argument_group("matching")
    group.add_argument("--matcher", choices=MATCHERS, default="edm", help="the network")
    group.add_argument("--weights", help=WEIGHTS_HELP)
    if resize:
        group.add_argument(
            "--resize", type=int, default=1024, help="longest side of the photos for matching, px"
        )
    threshold_help = "minimum confidence of a match; the default depends on the weights"
    group.add_argument("--threshold", type=between(float, 0, 1), help=threshold_help)
    topk_help = "maximum number of matches per pair; the default depends on the size"
    group.add_argument("--topk", type=between(int, 1), help=topk_help)
    group.add_argument(
        "--refine",
        choices=("photometric", "none"),
        default="photometric",
        help="photometric: match pairs with few matches a second time, and refine all matches by "
        "aligning the photos around them; none: the matches of the network",
    )
    group.add_argument(
        "--network-size",
        type=between(int, 32),
        help="longest side of what the network sees of photos that are refined at --resize; 704 by "
        "default for edm_s, 832 for other weights",
    )
    group.add_argument(
        "--onnx",
        type=Path,
        metavar="FOLDER",
        help="output of edm-hloc export: encode photos with ONNX Runtime, which is faster on a CPU",
    )
    add_machine(group)


def add_machine(group: argparse._ActionsContainer) -> None:
    """Add --device and --cache."""
    group.add_argument("--device", help="cuda, mps or cpu; by default the fastest available")
    group.add_argument(
        "--cache",
        type=between(float, 0, 10**6),
        default=2.0,
        metavar="GB",
        help="memory for the features of photos",
    )


def add_quantization(sub: argparse.ArgumentParser) -> None:
    """Add the options that `quantization` reads, and --masks."""
    group = sub.add_argument_group("keypoints (lengths in px of the original photo)")
    group.add_argument(
        "--max-error",
        type=float,
        default=2.0,
        help="largest distance by which a point is moved to a keypoint",
    )
    group.add_argument(
        "--cell-size",
        type=float,
        default=2.0,
        help="side of the square cells that hold at most one keypoint each; no less than "
        "--max-error",
    )
    group.add_argument(
        "--max-keypoints",
        type=int,
        default=8192,
        help="maximum number of keypoints per photo; 0: no limit",
    )
    group.add_argument(
        "--position",
        choices=("adjusted", "mean", "bin"),
        default="adjusted",
        help="where keypoints lie: adjusted to the matches of all pairs, at the mean of their "
        "points, or at the centre of a bin as in hloc",
    )
    group.add_argument(
        "--masks",
        type=Path,
        help="folder with an image NAME.png for each photo NAME, black where matches are ignored; "
        "or one such image for all photos",
    )


def add_mapping(sub: argparse.ArgumentParser) -> None:
    """Add the options of cameras and of mapping that `reconstruction_config` reads."""
    group = sub.add_argument_group("cameras and mapping")
    group.add_argument(
        "--known",
        type=Path,
        metavar="INTRINSICS",
        help="known intrinsics, which are kept fixed: a COLMAP model or its cameras.txt, a list "
        "with 'name MODEL width height parameters' per line, OpenCV's calibration, or "
        "'MODEL width height parameters' for all photos, as it is or in a file; --mapper global "
        "needs every photo's",
    )
    group.add_argument(
        "--camera-mode",
        choices=("auto", "single", "per-folder", "per-image"),
        default="auto",
        help="which photos share a camera; auto: those whose EXIF data name the same one, and "
        "those of one size whose EXIF data tell no focal length, where one camera fits them all",
    )
    group.add_argument(
        "--camera-model",
        default="auto",
        help="name of the camera model in COLMAP; auto: SIMPLE_RADIAL, and RADIAL with a principal "
        "point of its own where the photos determine it; OPENCV_FISHEYE for fisheye lenses",
    )
    group.add_argument(
        "--mapper",
        choices=("incremental", "global"),
        default="incremental",
        help="COLMAP's mapper: incremental registers one photo after the other, global all at once",
    )
    group.add_argument("--seed", type=SEED, default=0, help="seed of RANSAC and of mapping")
    add_tracks(group, "default, but not with --position-priors")


_ALIGNED_POINTS = (
    "align all photos of each 3D point to each other in the end, and adjust what is not given once "
    "more: more exact cameras and points, and a fraction of the reprojection error"
)
ALIGNED_QUERIES = (
    "align each localized query to the photos of the model with most inliers, at up to 4,000 "
    "points that they see, and take its pose from that, which is more exact"
)


def add_tracks(
    sub: argparse._ActionsContainer, default: str = "", what: str = _ALIGNED_POINTS
) -> None:
    """Add --tracks.

    Args:
        sub: what gets the option.
        default: when the commands that make a model of their own refine; others do when asked to.
        what: what the command does then.
    """
    when = f" ({default})" if default else ""
    sub.add_argument(
        "--tracks",
        choices=("refine", "none"),
        default=None if default else "none",
        help=f"refine{when}: {what}",
    )


def add_overwrite(sub: argparse.ArgumentParser) -> None:
    """Add --overwrite."""
    sub.add_argument(
        "--overwrite",
        action="store_true",
        help="discard what earlier runs have made in OUT and do everything again",
    )


def make_matcher(args: argparse.Namespace) -> Matcher:
    """Load the matcher that the options ask for, and print its weights.

    Raises:
        EdmHlocError: an option does not fit, or the weights cannot be loaded.
    """
    matcher = matcher_recipe(args).load(getattr(args, "device", None))
    print(f"Weights     {matcher.info.weights}, on {matcher.info.device}")
    return matcher


def matcher_recipe(args: argparse.Namespace) -> MatcherRecipe:
    """What the options make a matcher from; a command may lack any of them but --weights."""
    from edm_hloc.refinement.load import MatcherRecipe

    onnx = getattr(args, "onnx", None)
    return MatcherRecipe(
        getattr(args, "matcher", "edm"),
        args.weights,
        getattr(args, "resize", 1024),
        getattr(args, "threshold", None),
        getattr(args, "topk", None),
        getattr(args, "refine", "photometric"),
        None if onnx is None else str(onnx),
        getattr(args, "network_size", None),
    )


def matching_config(args: argparse.Namespace) -> MatchingConfig:
    """The configuration of matching: the size of the cache, and the number of processes."""
    from edm_hloc.matching.engine import MatchingConfig

    return MatchingConfig(
        cache_bytes=int(args.cache * 1e9),
        workers=_number_of_workers(args),
        ray=getattr(args, "ray", None),
        device=args.device,
        shards=getattr(args, "shards", None) or 0,
    )


def _number_of_workers(args: argparse.Namespace) -> int:
    """The number of workers; with --ray 0 for as many as there is room for."""
    asked = getattr(args, "workers", None)
    if getattr(args, "ray", None) is not None:
        return asked if isinstance(asked, int) else 0
    if asked == "auto":
        from edm_hloc.pipelines.workers import automatic_workers

        return automatic_workers(args.device)
    return asked or 1


def reconstruction_config(
    args: argparse.Namespace, known: Mapping[str, pycolmap.Camera] | None = None
) -> ReconstructionConfig:
    """The configuration of the commands that make a model.

    Args:
        args: the options; those of cameras, mapping and positions may be missing.
        known: known intrinsics by the photo's name.
    """
    from edm_hloc.images.cameras import CameraOptions
    from edm_hloc.mapping.options import MappingOptions
    from edm_hloc.pipelines.reconstruct import ReconstructionConfig

    cameras, mapping = CameraOptions(), MappingOptions()
    tracks = getattr(args, "tracks", "none")
    if hasattr(args, "mapper"):
        given = {} if args.camera_model == "auto" else {"model": args.camera_model, "lenses": False}
        cameras = CameraOptions(args.camera_mode, known=known, **given)
        mapping = MappingOptions(mapper=args.mapper, seed=args.seed)
    return ReconstructionConfig(
        keypoints=quantization(args),
        matching=matching_config(args),
        cameras=cameras,
        mapping=mapping,
        masks=args.masks,
        positions=getattr(args, "positions", "gps"),
        position_priors=getattr(args, "position_priors", None),
        refine_tracks=None if tracks is None else tracks == "refine",
        overwrite=args.overwrite,
    )


def quantization(args: argparse.Namespace) -> QuantizationConfig:
    """The configuration of keypoints.

    Raises:
        EdmHlocError: a value is out of range.
    """
    from edm_hloc.keypoints.quantization import QuantizationConfig

    return QuantizationConfig(
        max_error=args.max_error,
        cell_size=args.cell_size,
        max_kps=args.max_keypoints or None,
        position=args.position,
    )


def check_output(out: Path, *read: Path | None) -> None:
    """Refuses an output file that is one of the files the command reads.

    Args:
        out: the file that is going to be written.
        read: those that are read; None for an option that is not given.

    Raises:
        EdmHlocError: it would be written over.
    """
    for path in read:
        if path is not None and path.exists() and out.exists() and out.samefile(path):
            raise EdmHlocError(f"{out} is read and would be written over: choose another name.")


def output_and_masks(args: argparse.Namespace) -> list[Path]:
    """The folders that are not searched for photos: those of the output and of the masks."""
    folders = (getattr(args, "out", None), getattr(args, "masks", None))
    return [folder for folder in folders if folder is not None]
