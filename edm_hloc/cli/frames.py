"""`edm-hloc frames`: photos from a film."""

from __future__ import annotations

import argparse
from pathlib import Path

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
        f"Next        edm-hloc reconstruct {args.out} OUT --pairs sequential --camera-mode single"
    )
