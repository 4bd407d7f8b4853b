"""The match graph of a page: photos as rows and columns, pairs as cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from edm_hloc.report.facts import RunFacts
from edm_hloc.report.packing import pack

MAX_CELLS = 1200  # along the longer side; with more photos a cell stands for several


def match_graph(facts: RunFacts, notes: list[str]) -> dict[str, Any] | None:
    """The pairs as the page's script draws them; None if there is no pair.

    Args:
        facts: the run.
        notes: gets a sentence if cells stand for several photos.
    """
    if not len(facts.pairs):
        return None
    queries = facts.kind == "localization"
    number = rows = columns = len(facts.names)
    offset = 0
    if queries:
        rows = offset = facts.query_count
        columns = number - rows
        if columns <= 0:
            return None
    longer = max(rows, columns)
    joined = -(-longer // MAX_CELLS)
    kept = np.arange(len(facts.pairs))
    if joined > 1:
        notes.append(f"A cell of the match graph stands for {joined} × {joined} photos.")
        row, column = (facts.pairs - [0, offset]).T // joined
        kept = _best_of_each_cell(facts, row * (longer // joined + 1) + column)
    counts = np.stack([facts.matches[kept], facts.inliers[kept]])
    small = counts.max() < 1 << 15
    return {
        "rows": rows,
        "columns": columns,
        "offset": offset,
        "joined": joined,
        "symmetric": not queries,
        "pairs": pack(facts.pairs[kept].astype("<u2" if number < 65536 else "<u4").tobytes()),
        "wide": number >= 65536,
        "large": not small,
        "matches": pack(counts[0].astype("<i2" if small else "<i4").tobytes()),
        "inliers": pack(counts[1].astype("<i2" if small else "<i4").tobytes()),
        "order": _connected_order(facts) if not queries and joined == 1 else None,
    }


def _best_of_each_cell(facts: RunFacts, cells: np.ndarray) -> np.ndarray:
    """Index of the pair with the most inliers, then the most matches, of each distinct cell.

    Args:
        facts: the run.
        cells: (P,) number of the cell that each pair lies in.
    """
    order = np.lexsort((facts.matches, np.maximum(facts.inliers, 0)))
    last = len(order) - 1 - np.unique(cells[order][::-1], return_index=True)[1]
    return np.asarray(order[last])


def _connected_order(facts: RunFacts) -> list[int] | None:
    """An order in which photos with many common matches are neighbours.

    Connected components come one after the other, the largest first; within each the reverse
    Cuthill–McKee order keeps the cells near the diagonal. None if no pair has enough inliers.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee

    number = len(facts.names)
    weight = facts.inliers if facts.verified else facts.matches
    strong = weight >= max(facts.min_inliers, 1)
    if not strong.any():
        return None
    a, b = facts.pairs[strong].T
    graph = coo_array((np.ones(len(a)), (a, b)), (number, number)).tocsr()
    graph = graph + graph.T
    order = reverse_cuthill_mckee(graph.tocsr(), symmetric_mode=True)
    component = connected_components(graph, directed=False)[1]
    sizes = np.bincount(component)
    place = np.lexsort((component[order], -sizes[component[order]]))
    return [int(i) for i in order[place]]
