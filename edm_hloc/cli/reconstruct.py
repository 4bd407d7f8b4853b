"""`edm-hloc reconstruct`, `triangulate` and `match-pairs`: from photos to matches and models."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.text import format_duration
from edm_hloc.cli import mesh, options, pair_options, summaries, workers
from edm_hloc.cli.earth import add_positions
from edm_hloc.cli.handover import add_target, check_target, export_for
from edm_hloc.cli.report import reporting


def register(command: options.AddCommand) -> None:
    sub = command("reconstruct", _reconstruct, "reconstruct a 3D model from a folder of photos")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of photos")
    sub.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the model and all intermediate files"
    )
    pair_options.add_pairs(sub)
    options.add_matcher(sub)
    workers.add_workers(sub)
    workers.add_shards(sub)
    options.add_quantization(sub)
    options.add_mapping(sub)
    add_positions(sub)
    add_target(sub)
    mesh.add_mesh(sub)
    options.add_overwrite(sub)

    sub = command("match-pairs", _match_pairs, "match listed pairs and write hloc's H5 files")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of photos")
    pair_options.add_listed_pairs(sub)
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for features.h5, matches.h5")
    options.add_matcher(sub)
    workers.add_workers(sub)
    workers.add_shards(sub)
    options.add_quantization(sub)
    options.add_overwrite(sub)

    sub = command(
        "triangulate", _triangulate, "triangulate 3D points for a model whose poses are known"
    )
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model with the poses")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of its photos")
    sub.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the model and all intermediate files"
    )
    pair_options.add_pairs(sub, "--from-model MODEL, with the model that is given")
    options.add_matcher(sub)
    workers.add_workers(sub)
    workers.add_shards(sub)
    options.add_quantization(sub)
    options.add_tracks(sub)
    options.add_overwrite(sub)

    sub = command(
        "refine-model",
        _refine_model,
        "refine the points of any COLMAP model in all photos that see them, and its cameras",
    )
    sub.add_argument("model", type=Path, metavar="MODEL", help="COLMAP model with points")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of its photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder of the refined model")
    sub.add_argument(
        "--keep-intrinsics",
        action="store_true",
        help="leave focal lengths and distortion as they are, as of calibrated cameras",
    )
    sub.add_argument(
        "--keep-poses",
        action="store_true",
        help="leave poses and intrinsics as they are, as of surveyed cameras: only points move",
    )
    sub.add_argument(
        "--rig",
        type=Path,
        metavar="FILE",
        help="cameras that are fixed to each other, in the format of COLMAP's rig_config.json: "
        "they keep one pose in their rig, that of the file or one that all frames agree on",
    )


def _reconstruct(args: argparse.Namespace) -> None:
    from edm_hloc.images.intrinsics import load_intrinsics
    from edm_hloc.pipelines.matching import names_of
    from edm_hloc.pipelines.reconstruct import reconstruct

    start = time.monotonic()
    check_target(args)
    mesh.check_mesh(args)
    pairs = pair_options.choose_pairs(args)
    known = None
    if args.known is not None:
        known = load_intrinsics(args.known, names_of(pairs))
    with reporting(args.out):
        config = options.reconstruction_config(args, known)
        run = reconstruct(args.images, args.out, pairs, options.make_matcher(args), config)
        summaries.print_reconstruction(run, time.monotonic() - start)
    if args.target is not None:
        export_for(args, args.out / "model", args.images, args.out / args.target)
    if args.mesh is not None:
        mesh.write(args.out / "model", args.images, args.mesh)


def _triangulate(args: argparse.Namespace) -> None:
    from edm_hloc.base.colmap import check_model
    from edm_hloc.pipelines.reconstruct import triangulate_model

    start = time.monotonic()
    check_model(args.model)
    if args.from_model is None and args.pairs is None:
        args.from_model = args.model
    with reporting(args.out):
        run = triangulate_model(
            args.model,
            args.images,
            args.out,
            pair_options.choose_pairs(args),
            options.make_matcher(args),
            options.reconstruction_config(args),
        )
        summaries.print_reconstruction(run, time.monotonic() - start)


def _match_pairs(args: argparse.Namespace) -> None:
    from edm_hloc.images.masks import find_masks
    from edm_hloc.images.roots import root_text
    from edm_hloc.pipelines.matching import MATCHING_FILES, match_and_quantize, names_of
    from edm_hloc.pipelines.pair_rounds import PairRounds
    from edm_hloc.pipelines.run import Run

    pairs = pair_options.choose_pairs(args)
    matcher, quantization = options.make_matcher(args), options.quantization(args)
    settings = {
        "command": "match-pairs",
        "images": root_text(args.images),
        "quantization": asdict(quantization),
        "masks": None if args.masks is None else root_text(args.masks),
    }
    masks = find_masks(args.masks, names_of(pairs), args.images)
    matching = options.matching_config(args)
    with Run.begin(
        args.out,
        settings,
        matcher,
        MATCHING_FILES,
        overwrite=args.overwrite,
        shards=matching.shards,
    ) as run:
        rounds = PairRounds(run, pairs, args.images, masks, matcher)
        to_match = rounds.find(matching, overwrite=args.overwrite)
        match_and_quantize(run, to_match, matcher, quantization, matching, overwrite=args.overwrite)
    summaries.print_matching(run)
    print(f"Written     {run.out / 'features.h5'} and {run.out / 'matches.h5'}, as hloc reads them")


def _refine_model(args: argparse.Namespace) -> None:
    from edm_hloc.pipelines.run_entries import masks_of_run
    from edm_hloc.tracks.adjustment import Kept
    from edm_hloc.tracks.refine import refine_model
    from edm_hloc.tracks.rounds import BetweenRounds

    if args.rig is not None and args.keep_poses:
        raise EdmHlocError("--rig moves cameras, and --keep-poses does not: leave one of them out.")
    kept = Kept(intrinsics=args.keep_intrinsics, poses=args.keep_poses, rigs=args.rig)
    between = BetweenRounds(masks=masks_of_run(args.model, args.images))
    summary = refine_model(args.model, args.images, args.out, kept, between=between)
    summaries.print_tracks(asdict(summary))
    print(f"Time        {format_duration(summary.seconds)}")
    print(f"Written     {args.out} (COLMAP)")
