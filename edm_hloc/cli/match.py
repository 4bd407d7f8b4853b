"""`edm-hloc match` and `pairs`: match two photos, or list the pairs of photos to match."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edm_hloc.cli import options, pair_options


def register(command: options.AddCommand) -> None:
    sub = command("match", _match, "match two photos; write the matches and a picture of them")
    sub.add_argument("image0", type=Path, metavar="A", help="a photo")
    sub.add_argument("image1", type=Path, metavar="B", help="another photo")
    sub.add_argument(
        "--out",
        type=Path,
        default=Path("matches.png"),
        help="the picture; the matches go beside it, into an H5 file",
    )
    sub.add_argument(
        "--lines",
        type=options.between(int, 0),
        default=200,
        help="number of matches drawn as lines",
    )
    options.add_matcher(sub)

    sub = command("pairs", _pairs, "write a list of pairs of photos")
    sub.add_argument("images", type=Path, metavar="IMAGES", help="folder of photos")
    sub.add_argument("out", type=Path, metavar="OUT", help="the list, two names per line")
    pair_options.add_pairs(sub, "exhaustive", listed=True)


def _match(args: argparse.Namespace) -> None:
    from edm_hloc import api
    from edm_hloc.images.pictures import check_picture, draw_matches, write_picture
    from edm_hloc.matching.writer import check_raw_pair, write_raw_pair

    check_picture(args.out)
    options.check_output(args.out, args.image0, args.image1)
    h5 = args.out.with_suffix(".h5")
    check_raw_pair(h5)
    matcher = options.make_matcher(args)
    found = api.match(args.image0, args.image1, matcher)
    write_picture(args.out, draw_matches(args.image0, args.image1, found, lines=args.lines))
    write_raw_pair(h5, *names_in_file(args.image0, args.image1), found, dict(matcher.provenance))
    print(f"Matches     {len(found.scores):,}")
    print(f"Written     {args.out} and {h5}")


def names_in_file(photo0: Path, photo1: Path) -> tuple[str, str]:
    """The photos' names in the H5 file, relative to the closest folder that holds both if equal."""
    if photo0.name != photo1.name:
        return photo0.name, photo1.name
    paths = photo0.resolve(), photo1.resolve()
    folder = os.path.commonpath([path.parent for path in paths])
    name0, name1 = (path.relative_to(folder).as_posix() for path in paths)
    return name0, name1


def _pairs(args: argparse.Namespace) -> None:
    from edm_hloc.pairs.files import write_pairs

    options.check_output(args.out, args.image_list)
    write_pairs(args.out, pair_options.list_pairs(args))
    print(f"Written     {args.out}")
