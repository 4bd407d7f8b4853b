"""Warnings that are logged once per process, and lists of them that stay short."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning, unless this process has logged the same text before."""
    logger.warning("%s", text)


def first_few(texts: Iterable[str], rest: str, most: int = 5) -> list[str]:
    """The first texts of a list, and one on the number of the others.

    Args:
        texts: in the order of their worth.
        rest: what the others are, and where they are found; may be empty.
        most: number of texts that are given as they are.
    """
    every = list(texts)
    left = len(every) - most
    return [*every[:most], f"and {left:,} more {rest}".rstrip()] if left > 0 else every


def warn_of_skipped(reasons: Iterable[str]) -> None:
    """Warns of photos that are left out, of the first of them with the reason."""
    for text in first_few(reasons, "photos"):
        logger.warning("Skipping a photo: %s", text)
