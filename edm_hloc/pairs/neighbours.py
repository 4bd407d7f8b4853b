"""Pairs of photos that were taken one after the other, or near each other."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial import cKDTree

from edm_hloc.images.capture import Capture
from edm_hloc.pairs.rules import Pair, in_natural_order

_FOLLOWING = 2  # photos that each one is paired with in time
_NEAREST = 4  # photos that each one is paired with in space
_LONGEST_PAUSE = 600.0  # s between two photos of one walk
_LARGEST_STEP = 10  # between the numbers in the names of two photos of one walk
_EARTH = 6_371_000.0  # m, radius


def near_in_time(names: Sequence[str], captures: Mapping[str, Capture]) -> list[Pair]:
    """Each photo with the two that the same camera took next.

    The order is that of the EXIF times. Photos without one are in the natural order of their names
    if these are numbered: IMG_9 is followed by IMG_10, but a.jpg not by b.jpg, nor 12.jpg by
    98.jpg.

    Args:
        names: of the photos.
        captures: when each was taken.
    """
    rows: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for name in in_natural_order(names):
        capture = captures.get(name, Capture())
        if capture.seconds is not None:
            rows["time", capture.camera].append((capture.seconds, name))
        elif number := re.search(r"(\d{1,9})\D*$", posixpath.splitext(name)[0]):  # not of .jp2
            rows["number", name[: number.start()]].append((float(number[1]), name))
    pairs = []
    for (of, _), row in rows.items():
        longest = _LONGEST_PAUSE if of == "time" else _LARGEST_STEP
        row.sort(key=lambda entry: entry[0])  # equal times stay in the order of the names
        for i, (start, name) in enumerate(row):
            following = row[i + 1 : i + 1 + _FOLLOWING]
            pairs += [(name, other) for end, other in following if end - start <= longest]
    return pairs


def near_in_space(names: Sequence[str], captures: Mapping[str, Capture]) -> list[Pair]:
    """Each photo with the four that were taken nearest to it, by GPS; heights do not count.

    Args:
        names: of the photos.
        captures: where each was taken; those without a place are left out.
    """
    known = [(name, place) for name in names if (place := captures.get(name, Capture()).place)]
    if len(known) < 2:
        return []
    latitude, longitude = np.radians([place for _, place in known]).T
    across = np.cos(latitude)
    on_globe = _EARTH * np.stack(
        [across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=1
    )
    if np.ptp(on_globe, axis=0).max() < 1.0:  # m: all at one place, as where GPS was guessed
        return []
    count = min(_NEAREST + 1, len(known))  # one is the photo itself
    _, nearest = cKDTree(on_globe).query(on_globe, k=count)
    return [
        (name, known[other][0])
        for (name, _), others in zip(known, nearest, strict=True)
        for other in others.tolist()
        if known[other][0] != name
    ]
