"""`edm-hloc refine-poses`: poses of other programs, refined by the photos' matches."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edm_hloc.base.log import first_few
from edm_hloc.cli import options, pair_options, summaries, workers
from edm_hloc.cli.report import reporting

if TYPE_CHECKING:
    from edm_hloc.interop.poses.files import GivenPoses
    from edm_hloc.pairs.rules import Pair
    from edm_hloc.pipelines.run import Run

_PARTNERS = 20  # of each photo; all pairs are matched where there are no more
_ROTATED = 20.0  # degrees by which the median camera turns only where a convention is wrong, and …
_MOVED = 0.1  # … the share of the extent by which it moves only then


def register(command: options.AddCommand) -> None:
    sub = command(
        "refine-poses", _refine_poses, "refine the poses that another program has of photos"
    )
    sub.add_argument(
        "poses",
        type=Path,
        metavar="POSES",
        help="nerfstudio's transforms.json, Metashape's XML, RealityCapture's CSV, Meshroom's "
        "cameras.sfm, OpenSfM's or ODM's reconstruction.json, Bundler's bundle.out, LLFF's "
        "poses_bounds.npy, a trajectory of TUM's (timestamp tx ty tz qx qy qz qw) or KITTI's "
        "form, poses by the photos' names as edm-hloc localize writes them, or a COLMAP model "
        "with or without points",
    )
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of the photos")
    sub.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the model and all intermediate files"
    )
    sub.add_argument(
        "--refine-intrinsics",
        action="store_true",
        help="refine focal lengths and distortion too, not the poses alone",
    )
    sub.add_argument(
        "--known",
        type=Path,
        metavar="INTRINSICS",
        help="intrinsics in place of those of POSES, in any form that reconstruct takes",
    )
    pair_options.add_pairs(
        sub, f"near cameras and neighbours by name; all pairs of up to {_PARTNERS + 1} photos"
    )
    options.add_matcher(sub)
    workers.add_workers(sub)
    options.add_quantization(sub)
    sub.add_argument("--seed", type=options.SEED, default=0, help="seed of RANSAC")
    options.add_overwrite(sub)


def _refine_poses(args: argparse.Namespace) -> None:
    from dataclasses import replace

    from edm_hloc.images.find import find_images
    from edm_hloc.images.intrinsics import load_intrinsics
    from edm_hloc.interop.poses.files import format_of, read_given_poses
    from edm_hloc.interop.poses.given import PhotosAtHand
    from edm_hloc.pairs.files import read_names
    from edm_hloc.pipelines.refine_poses import PosedPhotos, refine_given_poses

    start = time.monotonic()
    pair_options.check_pair_options(args, by_poses=True)
    format_of(args.poses)
    names = find_images(args.images, options.output_and_masks(args))
    listed = names if args.image_list is None else read_names(args.image_list, names)
    photos = PhotosAtHand(args.images, names)
    known = None if args.known is None else load_intrinsics(args.known, names)
    given = read_given_poses(args.poses, photos, known, listed)
    print(
        f"Poses       of {len(given.model.images)} of {len(listed)} photos, from {args.poses} "
        f"({given.format.name})"
    )
    for text in first_few(given.unposed, "photos"):
        print(f"No pose     {text}")
    write = given.write_again if given.can_be_written() else None
    pairs = _pairs_of(args, given) if args.pairs is None and args.from_model is None else None
    with reporting(args.out):
        config = options.reconstruction_config(args)
        refined = replace(config.mapping, refine_intrinsics=args.refine_intrinsics, seed=args.seed)
        run = refine_given_poses(
            PosedPhotos(given.model, given.source, args.images, write),
            args.out,
            pair_options.choose_pairs(args) if pairs is None else pairs,
            options.make_matcher(args),
            replace(config, mapping=refined),
        )
        _print_poses(run)
        summaries.print_reconstruction(run, time.monotonic() - start)
        again = args.out / "transforms.json"
        copied = f", and as {again}" if write is not None and again.is_file() else ""
        print(f"Poses       in {args.out / 'model'}{copied}; each one in {args.out / 'poses.csv'}")


def _pairs_of(args: argparse.Namespace, given: GivenPoses) -> list[Pair]:
    """All pairs of few posed photos; of many those of near cameras, and neighbours by name."""
    from edm_hloc.pairs.covisibility import for_rough_poses

    pairs = for_rough_poses(given.model, args.poses, args.partners or _PARTNERS)
    print(f"Pairs       {len(pairs):,}, of near cameras and neighbours by name; see --pairs")
    return pairs


def _print_poses(run: Run) -> None:
    poses = run.results["poses"]
    by_state: dict[str, list[dict]] = {}
    for change in poses["changes"]:
        by_state.setdefault(change["state"], []).append(change)
    refined = len(by_state.get("refined", ())) + len(by_state.get("far off", ()))
    print(
        f"Moved       {refined:,} cameras by {100 * poses['moved_median']:.3g} % of their extent "
        f"and {poses['rotated_median']:.3g}° (median), {100 * poses['moved_max']:.3g} % and "
        f"{poses['rotated_max']:.3g}° at most"
    )
    lost = "no matches agree with its pose, or put it anywhere else; --pairs exhaustive or auto may"
    changed = "moved by {share:.3g} %, turned by {rotated:.3g}°"
    for state, title, what in (
        ("far off", "Far off", changed),
        ("registered anew", "Wrong", f"its matches contradict its pose: {changed}"),
        ("lost", "Lost", f"{lost} find its neighbours"),
    ):
        texts = []
        for change in by_state.get(state, ()):
            share = 100 * change["moved"] / max(poses["extent"], 1e-12)
            texts.append(f"{change['name']}: {what.format(share=share, rotated=change['rotated'])}")
        for text in first_few(texts, "in poses.csv"):
            print(f"{title:<12}{text}")
    said = []
    if poses["rotated_median"] > _ROTATED:
        said.append("turned")
    if poses["moved_median"] > _MOVED:
        said.append("moved")
    if said:
        print(
            f"Doubtful    The cameras {' and '.join(said)} by far more than poses are wrong: is "
            "the file's convention (world from camera or camera from world, OpenGL or OpenCV axes) "
            "the one of its format? The model's scale and directions may be wrong, too; edm-hloc "
            "reconstruct does without the poses."
        )
