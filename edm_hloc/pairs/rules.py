"""Pairs of images by rule: all of them, or those near each other in a sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edm_hloc.base.errors import EdmHlocError

Pair = tuple[str, str]
"""The names of two images, relative to the image folder."""


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


def exhaustive(names: Sequence[str]) -> list[Pair]:
    """Every image with every other one: n (n − 1) / 2 pairs."""
    names = list(dict.fromkeys(names))
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
