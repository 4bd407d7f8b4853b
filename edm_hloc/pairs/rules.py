"""Pairs of images by rule: all of them, or those near each other in a sequence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from edm_hloc.base.errors import EdmHlocError

Pair = tuple[str, str]
"""The names of two images, relative to the image folder."""


MOST_PAIRS = 20_000_000
"""Number of exhaustive pairs above which none are made: they would take gigabytes, and weeks."""


def unique_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs in their order, without self pairs and repeats; (b, a) repeats (a, b)."""
    seen: dict[Pair, Pair] = {}
    for a, b in pairs:
        if a != b:
            seen.setdefault((a, b) if a < b else (b, a), (a, b))
    return list(seen.values())


def names_in(pairs: Iterable[Pair]) -> list[str]:
    """The images of all pairs, each once, sorted."""
    return sorted({name for pair in pairs for name in pair})


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted as a person would, with numbers by their value: frame_2 before frame_10."""

    def key(name: str) -> tuple[str, str]:
        return re.sub("[0-9]+", _with_length, name), name

    return sorted(names, key=key)


def _with_length(digits: re.Match[str]) -> str:
    """A number such that the order of the text is that of the values."""
    value = digits[0].lstrip("0")
    return f"{len(value):04d}{value}"


def exhaustive(names: Sequence[str]) -> list[Pair]:
    """Every image with every other one: n (n − 1) / 2 pairs.

    Raises:
        EdmHlocError: these are more than could be matched, or held in memory.
    """
    names = list(dict.fromkeys(names))
    number = len(names) * (len(names) - 1) // 2
    if number > MOST_PAIRS:
        raise EdmHlocError(
            f"All pairs of {len(names):,} photos are {number:,}, which would take weeks even on a "
            "fast GPU: match each photo with those like it (--pairs retrieval), with its "
            "neighbours (--pairs sequential), or give a list of pairs."
        )
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def sequential(names: Sequence[str], overlap: int = 10, loop_step: int | None = None) -> list[Pair]:
    """Each image of a video or a walk with those that follow it.

    Args:
        names: images in the order in which they were taken.
        overlap: number of following images each one is paired with.
        loop_step: for loop closure, also pair every `loop_step`-th image with every other such
            image; None for no loop closure.

    Raises:
        EdmHlocError: `overlap` or `loop_step` is below 1.
    """
    if overlap < 1 or (loop_step is not None and loop_step < 1):
        raise EdmHlocError("Sequential pairs need an overlap and a loop step of at least 1.")
    names = list(dict.fromkeys(names))
    near = [(a, b) for i, a in enumerate(names) for b in names[i + 1 : i + 1 + overlap]]
    return unique_pairs(near + (exhaustive(names[::loop_step]) if loop_step else []))
