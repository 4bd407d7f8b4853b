"""The grid of 8 px cells that semi-dense matchers work on; lists cut into blocks or sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

_Item = TypeVar("_Item")

CELL = 8  # pixels of the network's input per coarse cell, along each axis


def cells_of(points: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (N,) of the cells whose grid point (8c, 8r) is nearest.

    Args:
        points: (N, 2) as (x, y), pixels of the network's input; points outside get a border cell.
        shape: (rows, columns, …) of the grid.
    """
    column, row = np.rint(points.T / CELL).astype(np.int64)
    # `clip` takes several times as long.
    return (
        np.minimum(np.maximum(row, 0), shape[0] - 1),
        np.minimum(np.maximum(column, 0), shape[1] - 1),
    )


def cell_numbers(points: np.ndarray) -> np.ndarray:
    """One number for each point's (N, 2) cell."""
    column, row = np.rint(points.T / CELL).astype(np.int64)
    numbers: np.ndarray = (row << 32) + column
    return numbers


def blocks(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover `range(length)`."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def evenly(items: Sequence[_Item], number: int) -> list[_Item]:
    """At most `number` items, evenly over the sequence from the first to the last, in its order."""
    if not items:
        return []
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, number).astype(int))]
