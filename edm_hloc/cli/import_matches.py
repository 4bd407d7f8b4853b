"""`edm-hloc import-matches`: a model from the matches of any other matcher."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli import options, summaries
from edm_hloc.cli.earth import add_positions
from edm_hloc.cli.report import reporting


def register(command: options.AddCommand) -> None:
    sub = command(
        "import-matches", _import_matches, "make a model from the matches of another matcher"
    )
    sub.add_argument(
        "matches",
        type=Path,
        metavar="MATCHES",
        help="folder with a file of matched points for each pair (npz, npy, txt, csv, torch, pkl), "
        "called A__B for the photos A and B; or an H5 file",
    )
    sub.add_argument(
        "out", type=Path, metavar="OUT", help="folder for the model and all intermediate files"
    )
    sub.add_argument("--images", type=Path, required=True, help="folder of the photos")
    group = sub.add_argument_group("matches")
    group.add_argument(
        "--origin",
        choices=("centre", "corner"),
        default="centre",
        help="where the points' (0, 0) is: at the centre of the top-left pixel (as of SuperPoint, "
        "DISK and hloc's files), or at its outer corner (COLMAP; RoMa, DKM)",
    )
    group.add_argument(
        "--upright",
        action="store_true",
        help="the points are of the photos as their EXIF orientation shows them, which OpenCV "
        "does by itself; otherwise of the pixels as stored",
    )
    group.add_argument(
        "--refine",
        choices=("photometric", "none"),
        default="photometric",
        help="photometric: bring the matches to corners of the photos, where those of all pairs "
        "meet, and align the photos around them; none: the points as they are",
    )
    group.add_argument(
        "--resize",
        type=options.between(int, 32),
        default=1024,
        help="longest side of the photos in which matches are refined, in px",
    )
    options.add_machine(group)
    options.add_quantization(sub)
    options.add_mapping(sub)
    add_positions(sub)
    options.add_overwrite(sub)


def _import_matches(args: argparse.Namespace) -> None:
    from edm_hloc.images.find import find_images
    from edm_hloc.images.intrinsics import load_intrinsics
    from edm_hloc.interop.imported_matches import ImportConfig, PointFrame, load_imported
    from edm_hloc.pairs.rules import names_in
    from edm_hloc.pipelines.reconstruct import reconstruct

    start = time.monotonic()
    if args.out.exists() and args.matches.exists() and args.out.samefile(args.matches):
        raise EdmHlocError(
            f"{args.out} holds the matches, which could not be told from the files of the run: "
            f"give another folder as OUT, such as {args.out / 'out'}."
        )
    photos = find_images(args.images, [*options.output_and_masks(args), args.matches])
    frame = PointFrame(args.origin, args.upright)
    how = ImportConfig(frame, args.refine, args.resize, args.device)
    matcher, pairs = load_imported(args.matches, args.images, photos, how, [args.out])
    names = names_in(pairs)
    print(f"Photos      {len(photos)} in {args.images}, {len(names)} of them with matches")
    print(f"Matches     {len(pairs):,} pairs of {args.matches}")
    known = None if args.known is None else load_intrinsics(args.known, names)
    with reporting(args.out):
        config = options.reconstruction_config(args, known)
        run = reconstruct(args.images, args.out, pairs, matcher, config)
        summaries.print_reconstruction(run, time.monotonic() - start)
