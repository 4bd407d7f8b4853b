"""Simulated annealing of blocks of pairs: pairs change their block so that fewer photos are in two.

A step moves all pairs of a photo from one block to another, to the one of those near at hand where
the fewest photos are then counted. It is taken if they become no more, and otherwise by chance,
the less likely the later (Kirkpatrick et al., "Optimization by Simulated Annealing", Science 1983).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from edm_hloc.pairs.rules import Pair, names_in

_SLACK = 0.03  # of the pairs of a block, which blocks may have more or fewer
_TEMPERATURE = 1.0  # photos, at the start; it falls to 0
_LOOKS_A_PAIR = 40  # at the block of a partner, in all; five times as many gain a tenth more
_MOST_LOOKS = 20_000_000  # about twenty seconds


def anneal(blocks: Sequence[Sequence[Pair]]) -> list[list[Pair]]:
    """Blocks of about the same sizes that share fewer photos; the same for the same blocks.

    Args:
        blocks: pairs, each in one block.
    """
    names = names_in([pair for block in blocks for pair in block])
    number = {name: i for i, name in enumerate(names)}
    state = _Blocks([[(number[a], number[b]) for a, b in block] for block in blocks], len(names))
    most = min(_MOST_LOOKS, _LOOKS_A_PAIR * sum(map(len, blocks)))
    chance = random.Random(0)
    while state.looks < most:
        shared = [photo for photo, inside in enumerate(state.partners) if len(inside) > 1]
        if not shared:
            break
        chance.shuffle(shared)
        state.looks += len(shared)
        for photo in shared:
            more, source, target = state.best_move(photo, chance)
            temperature = _TEMPERATURE * max(0.0, 1 - state.looks / most)
            if more <= 0 or chance.random() < math.exp(-more / max(temperature, 1e-9)):
                state.move(photo, source, target)
    found: list[list[Pair]] = [[] for _ in blocks]
    for block in blocks:
        for a, b in block:
            found[state.block_of(number[a], number[b])].append((a, b))
    return found


class _Blocks:
    """Which pairs of the photos 0 … N − 1 are in which block.

    Attributes:
        partners: of each photo, by block, its partners there.
        looks: number of times that the block of a partner was looked at.
    """

    def __init__(self, blocks: Sequence[Sequence[tuple[int, int]]], photos: int) -> None:
        self.partners: list[dict[int, set[int]]] = [{} for _ in range(photos)]
        for block, pairs in enumerate(blocks):
            for a, b in pairs:
                self.partners[a].setdefault(block, set()).add(b)
                self.partners[b].setdefault(block, set()).add(a)
        self._sizes = [len(pairs) for pairs in blocks]
        mean = sum(self._sizes) / len(blocks)
        self._least, self._most = mean * (1 - _SLACK), mean * (1 + _SLACK)
        self.looks = 0

    def block_of(self, a: int, b: int) -> int:
        return next(block for block, inside in self.partners[a].items() if b in inside)

    def best_move(self, photo: int, chance: random.Random) -> tuple[float, int, int]:
        """How many photos are counted more after the best move, its source and its target.

        Of equally good ones one is drawn; without any the first number is infinite.
        """
        mine = self.partners[photo]
        best, drawn = (math.inf, -1, -1), 1.0
        for source, inside in mine.items():
            if self._sizes[source] - len(inside) < self._least:
                continue
            near = set(mine).union(*(self.partners[other] for other in inside)) - {source}
            for target in sorted(near):
                if self._sizes[target] + len(inside) > self._most:
                    continue
                self.looks += len(inside)
                more, draw = self._more(inside, source, target) - (target in mine), chance.random()
                if (more, draw) < (best[0], drawn):
                    best, drawn = (more, source, target), draw
        return best

    def _more(self, inside: set[int], source: int, target: int) -> int:
        """How many of the partners come to the target more than leave the source."""
        of = self.partners
        return sum((target not in of[other]) - (len(of[other][source]) == 1) for other in inside)

    def move(self, photo: int, source: int, target: int) -> None:
        """Moves the pairs of a photo."""
        inside = self.partners[photo].pop(source)
        self.partners[photo].setdefault(target, set()).update(inside)
        for other in inside:
            blocks = self.partners[other]
            blocks[source].discard(photo)
            if not blocks[source]:
                del blocks[source]
            blocks.setdefault(target, set()).add(photo)
        self._sizes[source] -= len(inside)
        self._sizes[target] += len(inside)
