"""InLoc from its folder to a submission: `run(dataset, outputs)`, or as a script.

    python pipelines/inloc.py --dataset datasets/inloc --outputs outputs/inloc

A starting point for scripts of one's own; `edm-hloc inloc` has all the options.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.matchers.registry import NAMES, MatcherName
from edm_hloc.pairs.retrieval import RetrievalOptions
from edm_hloc.pipelines.inloc import InLocDataset, InLocOptions, localize_inloc
from edm_hloc.pipelines.localize import check_any_localized
from edm_hloc.refinement.load import load_matcher


def run(
    dataset: Path,
    outputs: Path,
    options: InLocOptions | None = None,
    matcher: MatcherName = "edm",
    weights: str | None = None,
) -> Path:
    """Localizes all queries of the dataset.

    Args:
        dataset: folder of the dataset.
        outputs: folder for the submission and everything else; a run that is there is continued.
        options: settings of the pipeline; the published ones by default.
        matcher: the network.
        weights: name or path; by default the best on this computer.

    Returns:
        The file to submit.

    Raises:
        EdmHlocError: something is missing in the dataset, or no query was localized; what was
            computed is kept.
    """
    network = load_matcher(matcher, weights=weights)
    record, _, submission = localize_inloc(dataset, outputs, network, options)
    check_any_localized(record)
    return submission


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, default=Path("datasets/inloc"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs/inloc"))
    parser.add_argument("--matcher", choices=NAMES, default="edm", help="the network")
    parser.add_argument("--weights", help="name or path; by default the best on this computer")
    parser.add_argument(
        "--retrieval", default="edm+sift", help="or hloc's pairs-query-netvlad40.txt"
    )
    parser.add_argument("--num_loc", type=int, default=40, help="database photos of a query")
    parser.add_argument("--dry-run", action="store_true", help="only say what is missing")
    args = parser.parse_args()
    options = InLocOptions(RetrievalOptions(args.retrieval, args.num_loc))
    try:
        if args.dry_run:
            data = InLocDataset(args.dataset)
            problems = data.problems() or data.unusable_files()
            if problems:
                sys.exit("Missing or damaged:\n" + "\n".join(problems))
            print("Nothing is missing.")
        else:
            submission = run(args.dataset, args.outputs, options, args.matcher, args.weights)
            print(f"Submission in {submission}")
    except EdmHlocError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
