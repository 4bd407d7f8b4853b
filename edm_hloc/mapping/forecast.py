"""How long mapping on chosen tracks is going to take, before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edm_hloc.base.colmap import open_database
from edm_hloc.base.progress import say
from edm_hloc.base.text import format_duration

# In times that choosing tracks takes for a match, which tells how fast the machine is now.
_OF_CHOSEN = 47.0  # mapper, for each keypoint of the chosen tracks
_OF_ALL = 6.0  # completion, for each keypoint
_WORTH_SAYING = 20.0  # seconds; a step of fewer needs no forecast


def forecast(database: Path, kept: Mapping[int, np.ndarray], choosing: float) -> float:
    """The seconds that mapper and completion are going to take; within a factor of two.

    Args:
        database: COLMAP database with verified pairs.
        kept: what `thin_database` has returned.
        choosing: seconds that it took.
    """
    with open_database(database) as db:
        matches = sum(db.read_two_view_geometry_num_inliers()[1])
        keypoints = db.num_keypoints()
    work = _OF_CHOSEN * sum(map(len, kept.values())) + _OF_ALL * keypoints
    return choosing / max(1, matches) * work


def say_forecast(photos: int, seconds: float) -> None:
    """Says it, where it is worth a line."""
    if seconds > _WORTH_SAYING:
        say(
            f"Mapping {photos:,} photos is going to take about {format_duration(seconds)}, at the "
            "pace at which their tracks were chosen"
        )
