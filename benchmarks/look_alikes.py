"""Count the pairs of photos that disagree in models, and which models are said to have folded.

    python benchmarks/look_alikes.py RUN [RUN …]

RUN is the output folder of `edm-hloc reconstruct`. Prints a row of a Markdown table for each: the
photos of the model, the pairs that look at the same points from the same side, those of them that
show different things there, and whether the model's summary warns; the largest share by which the
pairs of one of its photos contradict the poses; the least share of a photo's matches that fit the
poses, of that of the middle photo; and how many photos are said to be misplaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from edm_hloc.base.colmap import open_database, read_model, verified_pairs
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.mapping.contradictions import (
    doubtful_shares,
    fitting_matches,
    fitting_shares,
    misplaced_photos,
)
from edm_hloc.mapping.look_alikes import many_conflicts, view_agreements
from edm_hloc.mapping.options import MappingOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", type=Path, nargs="+")
    runs = parser.parse_args().runs
    least = MappingOptions().min_inliers
    print(
        "| run | photos | compared | disagree | warned of | contradicted by up to | "
        "least that fits, of the middle | misplaced |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for run in runs:
        database = run / "database.db"
        try:
            model = read_model(run / "model")
            found = view_agreements(model, database)
            misplaced = misplaced_photos([model], database, least)
            with open_database(database) as db:
                counts = verified_pairs(db, least)
                fits = fitting_shares(db, model, counts)
        except EdmHlocError as error:
            sys.exit(f"{parser.prog}: {error}")
        doubts = doubtful_shares(counts, fits)
        fitting = [*fitting_matches(counts, fits).values()] or [0.0]
        fit = f"{min(fitting):.2f} of {np.median(fitting):.2f}"
        below = sum(agreement.disagree for agreement in found)
        warned = "yes" if many_conflicts(found) else "no"
        print(
            f"| {run.name} | {model.num_reg_images()} | {len(found)} | {below} | {warned} | "
            f"{max(doubts.values(), default=0):.0%} | {fit} | {len(misplaced)} |"
        )


if __name__ == "__main__":
    main()
