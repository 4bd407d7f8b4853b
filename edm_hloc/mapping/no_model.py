"""Why the verified pairs of a database give no model, and what to try."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edm_hloc.base.colmap import open_database, verified_pairs
from edm_hloc.mapping.verification import VerificationSummary


def explain_no_model(database: Path) -> str:
    """A message for the user: the counts of the database, and what to try.

    Raises:
        EdmHlocError: there is no database, or a damaged one.
    """
    with open_database(Path(database)) as db:
        found = VerificationSummary.of(db)
        names = {image.image_id: image.name for image in db.read_all_images()}
        inliers = Counter(dict.fromkeys(names, 0))
        for pair, number in verified_pairs(db).items():
            for image_id in pair:
                inliers[image_id] += number
    fewest = sorted(inliers.items(), key=lambda item: (item[1], item[0]))[:5]
    weakest = ", ".join(f"{names[image_id]} ({number:,})" for image_id, number in fewest)
    facts = (
        f"No model could be made of the {len(names):,} photos: {found.pairs:,} of their pairs have "
        f"matches, {found.matches:,} in all; {found.verified_pairs:,} pairs were verified, with "
        f"{found.inliers:,} matches. Photos with the fewest verified matches: {weakest}."
    )
    if not found.matches:
        advice = (
            "Nothing was matched: check that the pairs name photos that overlap, and that the "
            "weights belong to the matcher."
        )
    elif not found.verified_pairs:
        advice = (
            "The matches of no pair agree with one geometry: check that the photos show the same "
            "things from not too different places, try a larger image size or other weights, or "
            "reduced copies of photos that are much larger than the matcher's input."
        )
    else:
        advice = (
            "The verified pairs do not suffice to start from: take photos from more places "
            "(turning on the spot gives no depth), match more pairs, give known intrinsics, or "
            "try the other mapper."
        )
    return f"{facts} {advice}"


def explain_turning(database: Path) -> str:
    """A message for the user whose camera turned without moving."""
    with open_database(Path(database)) as db:
        found = VerificationSummary.of(db)
    return (
        f"The camera turned without moving: a rotation explains the {found.verified_pairs:,} "
        f"verified pairs of these photos ({found.inliers:,} matches) as well as any motion could. "
        "Such photos hold no depth, so no model is given. Take photos from different places, "
        "with a step of about a tenth of the distance to the scene in between; those of one place "
        "make a panorama."
    )
