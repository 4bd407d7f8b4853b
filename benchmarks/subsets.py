"""Models of few of a collection's photos, compared with the model of all, and what is said of them.

    python benchmarks/subsets.py IMAGES MODEL OUT [--rounds 2] [--seed 1]

MODEL has the true cameras, or those of `edm-hloc reconstruct` on all photos. In each round three
sets of 5 to 15 of its photos are reconstructed by the bare command, as far as it is not done: some
spread evenly over the photos in the order of their names, some in a row, some at random. Each
prints a row of a Markdown table: the photos of the set and of its model; the largest error of the
rotation of a photo, that is the median over the others of the relative rotation's; the share of the
verified matches that fit the model; and whether the summary names misplaced or contested photos, or
photos of one place that show different things, doubts the model, says that something turned before
a background that was kept, or that pairs were left out of the model. The last line counts the
models of which some photo is more than 3° off, those of them with a warning, and the warnings of
the others.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from reconstruct_rows import heading, reconstruct, row

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.mapping.contradictions import MIN_FITTING
from edm_hloc.pairs.rules import in_natural_order

FEWEST, MOST = 5, 15
WRONG = 3.0  # degrees
NO_MODEL = 1  # exit status of an error, unlike those of Ctrl-C and SIGTERM


def sets_of(names: Sequence[str], rounds: int, seed: int) -> Iterator[tuple[str, list[str]]]:
    """A name for each set, and the photos in it."""
    draw = random.Random(seed)
    for turn in range(1, rounds + 1):
        number = draw.randint(FEWEST, min(MOST, len(names)))
        first = draw.randrange(len(names))
        spread = [names[(first + k * len(names) // number) % len(names)] for k in range(number)]
        yield f"spread-{turn}", spread
        number = draw.randint(FEWEST, min(MOST, len(names)))
        first = draw.randint(0, len(names) - number)
        yield f"in-a-row-{turn}", list(names[first : first + number])
        number = draw.randint(FEWEST, min(MOST, len(names)))
        yield f"at-random-{turn}", draw.sample(list(names), number)


def rotation_errors(model: Path, truth: Path) -> np.ndarray:
    """(N,) degrees: of each photo the median error of the rotations relative to the others."""
    found, true = posed_images(read_model(model)), posed_images(read_model(truth))
    names = sorted(found.keys() & true.keys())
    between = np.array(
        [
            true[name].cam_from_world().rotation.matrix().T
            @ found[name].cam_from_world().rotation.matrix()
            for name in names
        ]
    )
    cosines = (np.einsum("aij,bij->ab", between, between) - 1) / 2
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    np.fill_diagonal(angles, np.nan)
    return np.asarray(np.nanmedian(angles, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    names = in_natural_order(posed_images(read_model(args.model)))
    print(heading(("photos", "of", "in the model", "largest error °", "matches fit", "said")))
    wrong = warned = false = 0
    for name, photos in sets_of(names, args.rounds, args.seed):
        folder = args.out / f"seed-{args.seed}" / name
        for photo in photos:
            copy = folder / "images" / photo
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not copy.exists():
                shutil.copy2(args.images / photo, copy)
        try:
            results = reconstruct(folder / "images", folder / "out", [])
        except SystemExit as stopped:
            if stopped.code != NO_MODEL:
                raise
            print(row((name, str(len(photos)), "0", "", "", "no model")))
            continue
        mapped, conflicts = results["mapped"], results["conflicts"]["pairs"]
        largest = rotation_errors(folder / "out/model", args.model).max()
        said = [f"{len(mapped['misplaced'])} misplaced"] if mapped["misplaced"] else []
        said += ["doubtful"] if mapped["fitting"] < MIN_FITTING else []
        said += [f"{len(mapped['contested'])} contested"] if mapped["contested"] else []
        said += [f"{len(conflicts)} pairs show different things"] if conflicts else []
        said += ["something turned"] if results.get("background", {}).get("kept") else []
        wrong += largest > WRONG
        warned += largest > WRONG and bool(said)
        false += largest <= WRONG and bool(said)
        said += [f"{len(mapped['look_alikes'])} pairs left out"] if mapped["look_alikes"] else []
        registered, fitting = str(mapped["components"][0]), f"{mapped['fitting']:.2f}"
        cells = (name, str(len(photos)), registered, f"{largest:.2f}", fitting, ", ".join(said))
        print(row(cells), flush=True)
    print(f"{wrong} wrong, {warned} of them with a warning; {false} others with a warning")


if __name__ == "__main__":
    main()
