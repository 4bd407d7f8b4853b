"""`edm-hloc frames` and `views`: photos from a film, and from panoramas."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from edm_hloc.cli import options
from edm_hloc.cli.streams import complain


def register(command: options.AddCommand) -> None:
    sub = command("frames", _frames, "write sharp, evenly spaced frames of a film as photos")
    sub.add_argument("film", type=Path, metavar="FILM", help="the film")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the frames")
    sub.add_argument(
        "--step",
        type=options.between(float, 0.005, 1),
        default=0.08,
        help="movement of the picture from one frame to the next, as a share of its longer side",
    )

    sub = command("views", _views, "cut panoramas of all directions into views, as of a lens")
    sub.add_argument("panoramas", type=Path, metavar="PANORAMAS", help="folder of the panoramas")
    sub.add_argument("out", type=Path, metavar="OUT", help="folder for the views")
    sub.add_argument(
        "--directions",
        type=options.between(int, 3, 36),
        default=6,
        help="number of views of a panorama, each of 90 degrees, around the horizon",
    )


def _frames(args: argparse.Namespace) -> None:
    from edm_hloc.images.films import extract_frames

    try:
        found = extract_frames(args.film, args.out, args.step)
    except KeyboardInterrupt:
        complain(
            f"\nedm-hloc: interrupted. {args.out} holds the frames up to here; the same command "
            "begins again at the start of the film."
        )
        raise SystemExit(130) from None
    length = f" in {found.seconds:.0f} s" if found.seconds else ""
    print(f"Frames      {len(found.written):,} of {found.frames:,}{length}, in {args.out}")
    if found.cuts:
        print(
            f"Cuts        {found.cuts}, where the picture changes at once (at a cut, or between "
            "two of few frames a second): photos before and after may not connect"
        )
    if len(found.written) < 3:
        print(
            "            Too few for a model: the film is short, or the camera hardly moves. "
            "A smaller --step gives more"
        )
    print(
        f"Next        edm-hloc reconstruct {quote(str(args.out))} OUT --pairs sequential "
        "--camera-mode single"
    )


def _views(args: argparse.Namespace) -> None:
    from edm_hloc.images.find import find_images
    from edm_hloc.images.panoramas import RIG, cut_panoramas

    names = find_images(args.panoramas, [args.out])
    try:
        cut = cut_panoramas(args.panoramas, names, args.out, args.directions)
    except KeyboardInterrupt:
        complain(
            f"\nedm-hloc: interrupted. {args.out} holds the views up to here; the same command "
            "goes on."
        )
        raise SystemExit(130) from None
    print(
        f"Views       {len(cut.views)} of each of {len(cut.names):,} panoramas, {cut.side} × "
        f"{cut.side} px, in {args.out}"
    )
    views, rig = quote(str(args.out)), quote(str(args.out / RIG))
    print(f'Next        edm-hloc reconstruct {views} OUT --known "{cut.intrinsics}"')
    print(
        f"            edm-hloc refine-model OUT/model {views} RIGID --keep-intrinsics --rig {rig}"
    )
