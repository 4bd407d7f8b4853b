"""From a folder of photos to a COLMAP model: `run(images, outputs)`, or as a script.

    python pipelines/sfm.py --images datasets/my_photos --outputs outputs/my_photos

A starting point for your own scripts; `edm-hloc reconstruct` has all the options.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.find import find_images
from edm_hloc.matchers.registry import NAMES, MatcherName
from edm_hloc.pairs.rules import exhaustive
from edm_hloc.pipelines.reconstruct import reconstruct
from edm_hloc.pipelines.run import Run
from edm_hloc.refinement.load import load_matcher


def run(
    images: Path, outputs: Path, weights: str | None = None, matcher: MatcherName = "edm"
) -> Run:
    """Matches all pairs of the photos in `images` and reconstructs them into `outputs`.

    Raises:
        EdmHlocError: invalid input, or no model. Finished steps are kept.
    """
    network = load_matcher(matcher, weights=weights)
    return reconstruct(images, outputs, exhaustive(find_images(images)), network)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=Path("datasets/photos"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs/sfm"))
    parser.add_argument("--matcher", choices=NAMES, default="edm", help="the network")
    parser.add_argument("--weights", help="name or path; by default the best on this computer")
    args = parser.parse_args()
    try:
        made = run(args.images, args.outputs, args.weights, args.matcher)
    except EdmHlocError as error:
        sys.exit(f"{error}")
    statistics = made.results["mapped"]["statistics"]
    print(f"{statistics} in {args.outputs / 'model'}")


if __name__ == "__main__":
    main()
