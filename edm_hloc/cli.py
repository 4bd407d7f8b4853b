"""The command line `edm-hloc`: arguments in, a summary out; the work is done elsewhere."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edm_hloc import __version__
from edm_hloc.errors import EdmHlocError

if TYPE_CHECKING:
    from edm_hloc.dense import DenseConfig
    from edm_hloc.keypoints import QuantizationConfig
    from edm_hloc.matchers.edm import EDMMatcher
    from edm_hloc.pairs import Pair
    from edm_hloc.reconstruct import Run

MANY_PAIRS = 5000  # from here on the user is told of faster ways

# Modules that bring torch and pycolmap are imported by the commands that need them, so that
# --help and wrong arguments answer at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 an error the user can mend, 130 Ctrl-C."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if args.command is _train:
        args.arguments = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    # Before torch is imported: threads that wait must not take the cores from those that decode
    # photos, nor from other programs (on a busy computer a pair took half the time).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _log_to_terminal(args.verbose)
    try:
        args.command(args)
    except EdmHlocError as error:
        print(f"edm-hloc: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nedm-hloc: interrupted. What was finished is kept; the same command goes on "
            "from there.",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # the reader of our output, say `head`, has left
        sys.stderr.close()
        return 1
    return 0


# --- arguments -----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edm-hloc",
        description="From photographs to a 3D model and camera poses with the EDM matcher.",
        epilog="Each command explains itself: edm-hloc COMMAND --help",
    )
    parser.add_argument("--version", action="version", version=f"edm_hloc {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="say more on the way")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            parents=[common],
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(command=function)
        return sub

    sub = command("reconstruct", _reconstruct, "from a folder of photos to a 3D model")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the model and all else")
    _add_pairs(sub)
    _add_matcher(sub)
    _add_quantization(sub)
    _add_mapping(sub)
    _add_overwrite(sub)

    sub = command("match", _match, "match two photos; write the matches and a picture of them")
    sub.add_argument("image0", type=Path, metavar="A")
    sub.add_argument("image1", type=Path, metavar="B")
    sub.add_argument("--out", type=Path, default=Path("matches.png"), help="the picture")
    sub.add_argument("--lines", type=int, default=300, help="matches that get a line")
    _add_matcher(sub)

    sub = command("match-pairs", _match_pairs, "match listed pairs into hloc's H5 files")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of photos")
    sub.add_argument("pairs_file", type=Path, metavar="PAIRS", help="two names a line")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for features.h5, matches.h5")
    _add_matcher(sub)
    _add_quantization(sub)
    _add_overwrite(sub)

    sub = command("triangulate", _triangulate, "3D points for a model whose poses are known")
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model with the poses")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of its photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the model and all else")
    _add_pairs(sub)
    _add_matcher(sub)
    _add_quantization(sub)
    _add_overwrite(sub)

    sub = command("pairs", _pairs, "write a list of pairs of photos")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="the list, two names a line")
    _add_pairs(sub)

    sub = command("compare", _compare, "compare a model with another one, taken as the truth")
    sub.add_argument("model", type=Path, metavar="MODEL")
    sub.add_argument("truth", type=Path, metavar="TRUTH")
    sub.add_argument("--json", type=Path, help="also write the numbers there")

    sub = command("demo", _demo, "reconstruct a synthetic scene and compare it with its truth")
    sub.add_argument("out", type=Path, metavar="OUT", nargs="?", default=Path("outputs/demo"))
    sub.add_argument("--views", type=int, default=12, help="number of photos to render")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--weights", help=_WEIGHTS_HELP)

    # The trainer reads its own arguments, --help included.
    sub = commands.add_parser("train", help="train the network, or go on training", add_help=False)
    sub.set_defaults(command=_train, verbose=True)

    sub = command("weights", _weights, "list, download or check trained weights")
    sub.add_argument("action", choices=("list", "pull", "verify"))
    sub.add_argument("name", nargs="?", help="of the weights; for pull and verify")
    return parser


_WEIGHTS_HELP = "name (see: edm-hloc weights list) or path; by default the best on this computer"


def _add_pairs(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("which photos to match with which")
    group.add_argument(
        "--pairs",
        default="exhaustive",
        metavar="HOW",
        help="exhaustive, sequential (photos in the order of their names), or a file with two "
        "names a line",
    )
    group.add_argument(
        "--from-model",
        type=Path,
        metavar="MODEL",
        help="instead, partners that see most points in common in this COLMAP model, or the "
        "nearest cameras where it has no points",
    )
    group.add_argument("--partners", type=int, default=20, help="a photo, for --from-model")
    group.add_argument("--overlap", type=int, default=10, help="next photos, for sequential")
    group.add_argument(
        "--loop-step",
        type=int,
        help="for sequential: also match every so many photos with one another, to close loops",
    )


def _add_matcher(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("matching")
    group.add_argument("--weights", help=_WEIGHTS_HELP)
    group.add_argument("--resize", type=int, default=1024, help="longest side matched, in px")
    group.add_argument("--threshold", type=float, help="least confidence; default by the weights")
    group.add_argument("--topk", type=int, help="most matches a pair; default by the size")
    group.add_argument("--device", help="cuda, mps or cpu; by default the fastest there is")
    group.add_argument(
        "--cache", type=float, default=2.0, metavar="GB", help="memory for encoded photos"
    )


def _add_quantization(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("keypoints (lengths in px of the original photo)")
    group.add_argument("--max-error", type=float, default=2.0, help="how far points are merged")
    group.add_argument("--cell-size", type=float, default=2.0, help="at most one keypoint a cell")
    group.add_argument("--max-keypoints", type=int, default=8192, help="a photo; 0: no limit")
    group.add_argument(
        "--position",
        choices=("mean", "bin"),
        default="mean",
        help="keypoints at the mean of their points, or at the centre of a bin as hloc",
    )


def _add_mapping(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("cameras and mapping")
    group.add_argument(
        "--known",
        type=Path,
        metavar="INTRINSICS",
        help="known intrinsics, kept as they are: a COLMAP model or its cameras.txt, or a list "
        "with 'name MODEL width height parameters' a line",
    )
    group.add_argument(
        "--camera-mode",
        choices=("auto", "single", "per-folder", "per-image"),
        default="auto",
        help="photos that share a camera; auto goes by their EXIF data",
    )
    group.add_argument("--camera-model", default="SIMPLE_RADIAL", help="COLMAP's name of it")
    group.add_argument("--mapper", choices=("incremental", "global"), default="incremental")
    group.add_argument("--seed", type=int, default=0, help="of the random parts of the geometry")


def _add_overwrite(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--overwrite", action="store_true", help="do everything again, whatever OUT holds"
    )


# --- commands -----------------------------------------------------------------------------------


def _make_matcher(args: argparse.Namespace) -> EDMMatcher:
    from edm_hloc.matchers.base import Preprocessing
    from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig

    if getattr(args, "resize", 1024) < 32:
        raise EdmHlocError("--resize must be at least 32 px.")
    matcher = EDMMatcher(
        EDMMatcherConfig(
            weights=args.weights,
            preprocessing=Preprocessing(resize_max=getattr(args, "resize", 1024)),
            threshold=getattr(args, "threshold", None),
            topk=getattr(args, "topk", None),
            device=getattr(args, "device", None),
        )
    )
    print(f"Weights     {matcher.weights}, on {matcher.device}")
    return matcher


def _dense_config(args: argparse.Namespace) -> DenseConfig:
    from edm_hloc.dense import DenseConfig

    return DenseConfig(cache_bytes=int(args.cache * 1e9))


def _quantization(args: argparse.Namespace) -> QuantizationConfig:
    from edm_hloc.keypoints import QuantizationConfig

    try:
        return QuantizationConfig(
            max_error=args.max_error,
            cell_size=args.cell_size,
            max_kps=args.max_keypoints or None,
            position=args.position,
        )
    except ValueError as error:
        raise EdmHlocError(f"Wrong quantization: {error}.") from None


def _list_pairs(args: argparse.Namespace) -> list[Pair]:
    from edm_hloc import pairs
    from edm_hloc.images import find_images

    names = find_images(args.images)
    if args.from_model is not None:
        found = pairs.from_model(args.from_model, args.partners)
        known = set(names)
        listed = [pair for pair in found if known.issuperset(pair)]
    elif args.pairs == "exhaustive":
        listed = pairs.exhaustive(names)
    elif args.pairs == "sequential":
        listed = pairs.sequential(names, args.overlap, args.loop_step)
    else:
        listed = pairs.from_file(Path(args.pairs), names)
    print(f"Photos      {len(names)} in {args.images}, {len(listed):,} pairs")
    if not listed:
        raise EdmHlocError(f"There is no pair to match: {args.images} holds {len(names)} photo(s).")
    if args.pairs == "exhaustive" and args.from_model is None and len(listed) > MANY_PAIRS:
        print(
            f"            All pairs of {len(names)} photos are many; for photos taken one after "
            "the other, --pairs sequential is much faster."
        )
    return listed


def _reconstruct(args: argparse.Namespace) -> None:
    from edm_hloc.reconstruct import reconstruct
    from edm_hloc.sfm import CameraOptions, MappingOptions, load_intrinsics

    start = time.monotonic()
    pairs = _list_pairs(args)
    known = None
    if args.known is not None:
        known = load_intrinsics(args.known, sorted({name for pair in pairs for name in pair}))
    run = reconstruct(
        args.images,
        args.out,
        pairs,
        _make_matcher(args),
        quantization=_quantization(args),
        dense=_dense_config(args),
        cameras=CameraOptions(args.camera_mode, args.camera_model, known),
        mapping=MappingOptions(mapper=args.mapper, seed=args.seed),
        overwrite=args.overwrite,
    )
    _print_reconstruction(run, time.monotonic() - start)


def _triangulate(args: argparse.Namespace) -> None:
    from edm_hloc.reconstruct import triangulate_model

    start = time.monotonic()
    if args.from_model is None and args.pairs == "exhaustive":
        args.from_model = args.model
    run = triangulate_model(
        args.model,
        args.images,
        args.out,
        _list_pairs(args),
        _make_matcher(args),
        quantization=_quantization(args),
        dense=_dense_config(args),
        overwrite=args.overwrite,
    )
    _print_reconstruction(run, time.monotonic() - start)


def _match_pairs(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    from edm_hloc.reconstruct import Run, match_and_quantize

    args.pairs, args.from_model = str(args.pairs_file), None
    pairs = _list_pairs(args)
    matcher, quantization = _make_matcher(args), _quantization(args)
    settings = {
        "images": str(args.images),
        "matcher": dict(matcher.provenance),
        "quantization": asdict(quantization),
    }
    run = Run.begin(args.out, settings, overwrite=args.overwrite)
    match_and_quantize(
        run,
        args.images,
        pairs,
        matcher,
        quantization,
        _dense_config(args),
        overwrite=args.overwrite,
    )
    _print_matching(run)
    print(f"Written     {run.out / 'features.h5'} and {run.out / 'matches.h5'}, as hloc reads them")


def _match(args: argparse.Namespace) -> None:
    from edm_hloc.images import load_image
    from edm_hloc.report.pictures import draw_matches, write_picture
    from edm_hloc.store import RawMatches, write_raw_pair

    matcher = _make_matcher(args)
    p = matcher.preprocessing
    encoded = [
        matcher.encode(load_image(path, resize_max=p.resize_max, divisor=p.divisor))
        for path in (args.image0, args.image1)
    ]
    found = matcher.match(*encoded)
    h5 = args.out.with_suffix(".h5")
    names = args.image0.name, args.image1.name
    if names[0] == names[1]:
        names = args.image0.as_posix().lstrip("./"), args.image1.as_posix().lstrip("./")
    write_picture(args.out, draw_matches(args.image0, args.image1, *found, lines=args.lines))
    write_raw_pair(h5, *names, RawMatches(*found), dict(matcher.provenance))
    print(f"Matches     {len(found.scores):,}")
    print(f"Written     {args.out} and {h5}")


def _pairs(args: argparse.Namespace) -> None:
    from edm_hloc.pairs import write_pairs

    write_pairs(args.out, _list_pairs(args))
    print(f"Written     {args.out}")


def _compare(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from edm_hloc.evaluation.models import compare

    comparison = compare(args.model, args.truth)
    print(comparison)
    if args.json is not None:
        try:
            args.json.write_text(json.dumps(asdict(comparison), indent=2, default=str), "utf-8")
        except OSError as error:
            raise EdmHlocError(f"Cannot write {args.json}: {error.strerror}.") from error


def _demo(args: argparse.Namespace) -> None:
    from edm_hloc.evaluation.models import compare
    from edm_hloc.images import find_images
    from edm_hloc.pairs import exhaustive
    from edm_hloc.reconstruct import reconstruct
    from edm_hloc.sfm import CameraOptions
    from edm_hloc.synthetic.dataset import make_photo_collection

    start = time.monotonic()
    matcher = _make_matcher(args)
    scene = args.out / f"scene_{args.views}_{args.seed}"
    if not (scene / "truth" / "cameras.txt").is_file():
        make_photo_collection(scene, views=args.views, seed=args.seed)
    names = find_images(scene / "images")
    print(f"Scene       {len(names)} rendered photos with their true cameras in {scene}")
    run = reconstruct(
        scene / "images",
        args.out,
        exhaustive(names),
        matcher,
        cameras=CameraOptions(mode="single"),
        overwrite=True,
    )
    _print_reconstruction(run, time.monotonic() - start)
    print("\nCompared with the true cameras:")
    print(compare(run.out / "model", scene / "truth"))


def _train(args: argparse.Namespace) -> None:
    try:
        from edm_hloc.training.trainer import main as train
    except ModuleNotFoundError as error:
        raise EdmHlocError(f"Training needs {error.name}: pip install 'edm_hloc[train]'.") from None
    train(args.arguments)


def _weights(args: argparse.Namespace) -> None:
    from edm_hloc.models import weights

    if args.action != "list" and args.name is None:
        raise EdmHlocError(f"Which weights? Known names: {', '.join(weights.REGISTRY)}.")
    if args.action == "list":
        for entry in weights.REGISTRY.values():
            state = f"at {entry.path}" if entry.path.is_file() else "not on this computer"
            print(f"{entry.name:<12}{entry.architecture:<7}{entry.licence:<12}{state}")
            print(f"{'':<12}{entry.description}; takes images {entry.preprocessing}")
    elif args.action == "pull":
        print(f"Weights     {args.name} are at {weights.pull(args.name)}")
    else:
        print(f"Weights     {args.name} are as they should be: SHA-256 {weights.verify(args.name)}")


# --- summaries ----------------------------------------------------------------------------------


def _print_matching(run: Run) -> None:
    matching, keypoints = run.results["matching"], run.results["keypoints"]
    done = f"{matching['matched']:,} pairs"
    if matching["resumed"]:
        done += f" now, {matching['resumed']:,} before"
    speed = ""
    if matching["matched"]:
        speed = f" ({matching['seconds'] / matching['matched']:.2f} s a pair)"
    print(f"Matched     {done}; {matching['encoded']} photos encoded{speed}")
    for reason in matching["skipped"].values():
        print(f"Skipped     {reason}")
    if matching["skipped_pairs"]:
        print(f"            with {matching['skipped_pairs']} of the pairs")
    if matching["rotated"]:
        print(
            f"Rotated     {len(matching['rotated'])} photos carry an EXIF orientation, which is "
            f"ignored, e.g. {matching['rotated'][0]}"
        )
    per_photo = keypoints["keypoints"] / max(1, keypoints["images"])
    print(f"Keypoints   {per_photo:,.0f} a photo; {keypoints['matches']:,} matches")


def _print_reconstruction(run: Run, seconds: float) -> None:
    _print_matching(run)
    verified = run.results["verified"]
    print(
        f"Verified    {verified['verified_pairs']:,} of {verified['pairs']:,} pairs, "
        f"{verified['inliers']:,} of {verified['matches']:,} matches"
    )
    mapped = run.results["mapped"]
    statistics = mapped["statistics"]
    print(
        f"Model       {statistics['registered']} of {mapped['images']} photos, "
        f"{statistics['points']:,} points, track length {statistics['mean_track_length']:.2f}, "
        f"reprojection error {statistics['mean_reprojection_error']:.2f} px"
    )
    missing = mapped["unregistered"]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        print(f"Missing     {', '.join(missing[:5])}{more}")
    if len(mapped["components"]) > 1:
        sizes = ", ".join(str(size) for size in mapped["components"])
        print(f"Parts       the photos fall into separate models of {sizes}; the largest is kept")
    peak = run.peak_memory_mib
    memory = "" if peak is None else f"; peak memory {peak / 1024:.1f} GiB"
    print(f"Time        {_duration(seconds)}{memory}")
    print(f"Written     {run.out / 'model'} (COLMAP), and beside it the files of every step")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


class _TqdmHandler(logging.StreamHandler):
    """Prints log lines above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


def _log_to_terminal(verbose: bool) -> None:
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root = logging.getLogger("edm_hloc")
    root.handlers = [handler]
    root.setLevel(logging.INFO if verbose else logging.WARNING)
