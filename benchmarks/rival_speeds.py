"""The part of speed.py that measures other matchers on the same photos, for Table 10."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2

from edm_hloc.images.load import load_image, stored_pixels
from edm_hloc.matchers.base import Matcher

Row = dict[str, object]


def rival_times(
    matchers: Mapping[str, Matcher],
    photos: Sequence[Path],
    once: Callable[[Callable[[], object]], tuple[float, object]],
    repeats: int,
    size: tuple[int, int] = (640, 480),
) -> list[Row]:
    """A row for each matcher: the fastest of some calls on two photos of one size.

    Args:
        matchers: by name.
        photos: two of them.
        once: seconds that a call takes, and its result.
        repeats: number of calls, after one that is not counted.
        size: (width, height) that the photos are resized to.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in (0, 1)]
        for photo, path in zip(photos, paths, strict=True):
            resized = cv2.resize(stored_pixels(photo), size, interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(path), resized[..., ::-1])
        for name, matcher in matchers.items():
            seen = matcher.info.preprocessing
            first, second = (
                load_image(
                    path,
                    resize_max=seen.resize_max,
                    divisor=seen.divisor,
                    grayscale=seen.grayscale,
                )
                for path in paths
            )
            pair = matcher.encode(first), matcher.encode(second)
            found = matcher.match(*pair)
            encode = min(once(partial(matcher.encode, first))[0] for _ in range(repeats))
            match = min(once(partial(matcher.match, *pair))[0] for _ in range(repeats))
            rows.append(
                {
                    f"matcher ({size[0]}×{size[1]})": name,
                    "encode ms an image": round(1e3 * encode, 2),
                    "match ms a pair": round(1e3 * match, 2),
                    "lone pair ms": round(1e3 * (2 * encode + match), 2),
                    "matches": len(found),
                }
            )
    return rows
