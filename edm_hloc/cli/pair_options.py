"""Options that say which photos are matched with which, and the pairs chosen by them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.cli.options import between, output_and_masks

if TYPE_CHECKING:
    from edm_hloc.pairs.retrieval import SimilarPhotos
    from edm_hloc.pairs.rules import Pair

MANY_PAIRS = 5000
"""Number of exhaustive pairs above which faster ways of choosing pairs are recommended."""


_WHILE_MATCHING = (
    "auto (all pairs of few photos; of many a few for each photo, with those that look like it and "
    "were taken next to it, then more where these do not connect the photos), retrieval (photos "
    "that look alike), "
)


def add_pairs(sub: argparse.ArgumentParser, default: str = "auto", *, listed: bool = False) -> None:
    """Add the options that `choose_pairs` and `list_pairs` read.

    Args:
        sub: what gets the options.
        default: what the command does without them.
        listed: whether the command only lists the pairs: it has no global descriptors then.
    """
    group = sub.add_argument_group("which photos to match with which")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--pairs",
        metavar="HOW",
        help=f"{'' if listed else _WHILE_MATCHING}exhaustive (all pairs), sequential (photos in "
        "the order of their names, frame_2 before frame_10, or of --image-list), or a file with "
        f"two names per line; by default {default}",
    )
    either.add_argument(
        "--from-model",
        type=Path,
        metavar="MODEL",
        help="instead, pairs from this COLMAP model: for each photo those with the most points in "
        "common, or with the nearest cameras if the model has no points",
    )
    group.add_argument(
        "--partners",
        type=between(int, 1),
        help="partners of each photo; by default "
        + ("20, for --from-model" if listed else "10 for --pairs auto, else 20"),
    )
    if listed:
        sub.set_defaults(retrieval=None)
    else:
        group.add_argument(
            "--retrieval",
            metavar="HOW",
            help="global descriptors for --pairs auto and retrieval: edm, sift or edm+sift (the "
            "default; computed here), megaloc (from torch.hub), or an H5 file of descriptors",
        )
    group.add_argument(
        "--overlap",
        type=between(int, 1),
        help="for --pairs sequential: number of following photos to match each with; 10 by default",
    )
    group.add_argument(
        "--loop-step",
        type=between(int, 1),
        help="for --pairs sequential: also match every N-th photo with all other N-th ones, to "
        "close loops",
    )
    group.add_argument(
        "--image-list",
        type=Path,
        metavar="FILE",
        help="use only the photos that this file names, one a line, in its order",
    )


def add_listed_pairs(sub: argparse.ArgumentParser) -> None:
    """Add PAIRS, a list that `choose_pairs` and `list_pairs` read in place of the options."""
    sub.add_argument("pairs", metavar="PAIRS", help="list with two names per line")
    sub.set_defaults(from_model=None, partners=None, retrieval=None, overlap=None, loop_step=None)
    sub.set_defaults(image_list=None)


def choose_pairs(args: argparse.Namespace) -> list[Pair] | SimilarPhotos:
    """The pairs to match, or with --pairs retrieval the photos to choose them from.

    Prints their number.

    Raises:
        EdmHlocError: an option does not fit, or there are no photos or pairs.
    """
    from edm_hloc.images.find import find_images
    from edm_hloc.pairs.automatic import AutomaticPairs
    from edm_hloc.pairs.selection import PairSelection, select_pairs

    check_pair_options(args)
    default = PairSelection()
    selection = PairSelection(
        args.pairs or default.how,
        args.from_model,
        args.partners,
        args.retrieval or default.retrieval,
        args.overlap or default.overlap,
        args.loop_step,
        args.image_list,
    )
    names = selection.photos(find_images(args.images, output_and_masks(args)))
    photos = f"Photos      {len(names)} in {args.images}"
    every = selection.model is None and selection.how == "exhaustive" and len(names) > 1
    if every:  # said before they are made
        print(f"{photos}, {len(names) * (len(names) - 1) // 2:,} pairs", flush=True)
    pairs = select_pairs(args.images, names, selection)
    if isinstance(pairs, AutomaticPairs):
        print(photos, flush=True)  # their number is said when it is known
        return pairs
    if not isinstance(pairs, list):
        print(f"{photos}, each with {pairs.options.number} like it")
        return pairs
    if not every:
        print(f"{photos}, {len(pairs):,} pairs")
    elif len(pairs) > MANY_PAIRS:
        print(
            f"            These are all pairs of {len(names)} photos. --pairs auto is much "
            "faster, and so is --pairs sequential for photos taken one after the other."
        )
    return pairs


def list_pairs(args: argparse.Namespace) -> list[Pair]:
    """The pairs to match, of a command without an output folder for the files of retrieval.

    Raises:
        EdmHlocError: --pairs auto or retrieval, or as `choose_pairs`.
    """
    if args.pairs is None and args.from_model is None:
        args.pairs = "exhaustive"
    if args.pairs in ("auto", "retrieval"):
        raise EdmHlocError(
            f"--pairs {args.pairs} is for reconstruct, triangulate and match-pairs, which keep the "
            "descriptors and write the list to OUT/pairs.txt. To make a list from a file of "
            "descriptors use edm-hloc retrieve."
        )
    pairs = choose_pairs(args)
    assert isinstance(pairs, list)
    return pairs


def check_pair_options(args: argparse.Namespace, *, by_poses: bool = False) -> None:
    """Refuse options that the chosen rule would ignore.

    Args:
        args: the options.
        by_poses: whether pairs of near cameras are chosen where neither --pairs nor --from-model is
            given.

    Raises:
        EdmHlocError: an option does not fit.
    """
    by_model, in_order = args.from_model is not None, args.pairs == "sequential"
    default = args.pairs is None and not by_model
    alike = args.pairs in ("retrieval", "auto") or (default and not by_poses)
    for option, value, given, needed in (
        (
            "--partners",
            args.partners,
            by_model or alike or default,
            "--from-model and --pairs auto or retrieval",
        ),
        ("--retrieval", args.retrieval, alike, "--pairs auto and retrieval"),
        ("--overlap", args.overlap, in_order, "--pairs sequential"),
        ("--loop-step", args.loop_step, in_order, "--pairs sequential"),
    ):
        if value is not None and not given:
            raise EdmHlocError(f"{option} is for {needed} only: add that, or leave {option} out.")
