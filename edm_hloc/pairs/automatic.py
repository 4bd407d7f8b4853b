"""Pairs by themselves: all of few photos; of many a few for each, then more where these are thin.

The first pairs of a photo are with those that look most like it, and with its neighbours in time
and in space. Once they are matched, the pairs that agree make a graph of the photos. Photos with
few partners get those that at least two of their partners have, and where they are very few those
next in similarity; parts of the graph that nothing connects, or one photo alone, get the pairs
across that look most alike. This is repeated a few times, without the photos whose last further
pairs were all in vain.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from edm_hloc.pairs.retrieval import RetrievalOptions, SimilarPhotos
from edm_hloc.pairs.rules import Pair, unique_pairs

FEW_PHOTOS = 20
"""Number of photos up to which all pairs are matched: they are about as many as would be chosen."""
PARTNERS = 10
"""Number of partners by default, see `AutomaticPairs`."""
RANKED = 40  # photos that look like each one, of which the pairs are chosen
ROUNDS = 4  # at most, the first pairs included
_ENOUGH = 3  # partners with which a photo can be registered: more come from these alone
_SHARED = 2  # partners in common; of pairs with one, a tenth to a quarter agree
_ACROSS = 10  # pairs tried in one round to connect a part of the photos to the others
_HANGING = 3  # photos of a part that a single photo connects: of fewer each has few partners


class AllOfFew(list[Pair]):
    """All pairs of few photos, which nobody has asked for: copies of photos may be left out."""


@dataclass(frozen=True)
class AutomaticPairs(SimilarPhotos):
    """Photos whose pairs are chosen while they are matched.

    Attributes:
        names: of the photos.
        options: source of the descriptors, and how many photos that look like each are ranked.
        partners: number of partners that a photo is to have whose matches agree. Fewer look alike
            among its first pairs: three quarters of them.
    """

    options: RetrievalOptions = field(default_factory=lambda: RetrievalOptions(number=RANKED))
    partners: int = PARTNERS

    def first(self, ranked: Mapping[str, Sequence[str]], near: Sequence[Pair]) -> list[Pair]:
        """The pairs to match first.

        Args:
            ranked: for each photo the others that look like it, most similar first.
            near: pairs of neighbours in time and in space.
        """
        number = max(1, 3 * self.partners // 4)
        alike = ((a, b) for a, others in ranked.items() for b in others[:number])
        return unique_pairs([*alike, *near])

    def further(
        self,
        ranked: Mapping[str, Sequence[str]],
        rounds: Sequence[Mapping[Pair, bool]],
        left_out: Collection[str] = (),
    ) -> list[Pair]:
        """Pairs to match next, where those tried leave photos with few partners or in parts.

        Args:
            ranked: as for `first`.
            rounds: the pairs of `first`, then those that this has given, round by round, and
                whether the matches of each agree.
            left_out: photos that cannot be read.
        """
        tried = {pair: agree for pairs in rounds for pair, agree in pairs.items()}
        in_vain = _in_vain(rounds[1:])
        names = [name for name in self.names if name not in left_out]
        known = {frozenset(pair) for pair in tried}
        partners: dict[str, set[str]] = defaultdict(set)
        for (a, b), agree in tried.items():
            if agree:
                partners[a].add(b)
                partners[b].add(a)
        rank = {a: {b: i for i, b in enumerate(others)} for a, others in ranked.items()}
        new: dict[frozenset[str], Pair] = {}
        wanted = Counter({name: self.partners - len(partners[name]) for name in names})
        for name in sorted(names, key=lambda n: (len(partners[n]), n)):
            few = len(partners[name]) < _ENOUGH
            if in_vain[name] > int(few):  # those with very few partners ask once more
                continue
            shared = Counter(far for near in partners[name] for far in partners[near])
            places = rank.get(name, {})
            candidates = [other for other in shared if few or shared[other] >= _SHARED]
            if few:
                candidates += [other for other in places if other not in shared]
            candidates.sort(key=lambda n: (-shared[n], places.get(n, RANKED), n))
            for other in candidates:
                if wanted[name] <= 0:
                    break
                key = frozenset((name, other))
                if other != name and other in wanted and key not in known and key not in new:
                    new[key] = (name, other)
                    wanted.subtract(key)
        graph = _graph(names, partners)
        parts = [*_parts(graph)[1:], *_hanging(graph)]
        across = _across(parts, ranked, known | new.keys(), frozenset(names))
        return unique_pairs([*new.values(), *across])


def _in_vain(rounds: Sequence[Mapping[Pair, bool]]) -> Counter[str]:
    """By photo, in how many of its last rounds none of the pairs agrees that it asked for."""
    number = Counter[str]()
    for pairs in rounds:
        found = {name for (name, _), agree in pairs.items() if agree}
        for name in {name for name, _ in pairs}:
            number[name] = 0 if name in found else number[name] + 1
    return number


def _parts(graph: nx.Graph) -> list[list[str]]:
    """The connected parts of a graph, the largest first."""
    found = map(sorted, nx.connected_components(graph))
    return sorted(found, key=lambda part: (-len(part), part))


def _hanging(graph: nx.Graph) -> list[list[str]]:
    """The parts of a graph that single photos connect to the largest one, without these photos.

    A model cannot be carried on across one photo whose points are seen on either side alone.
    """
    rest = _parts(graph.subgraph(set(graph) - set(nx.articulation_points(graph))))
    return [part for part in rest[1:] if len(part) >= _HANGING]


def _graph(names: Sequence[str], partners: Mapping[str, set[str]]) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(names)
    graph.add_edges_from(
        (name, other) for name in names for other in partners.get(name, ()) if other in graph
    )
    return graph


def _across(
    parts: Sequence[Sequence[str]],
    ranked: Mapping[str, Sequence[str]],
    known: Collection[frozenset[str]],
    readable: Collection[str],
) -> Iterator[Pair]:
    """Pairs of readable photos that may connect each part to the others, most alike first."""
    for part in parts:
        inside = set(part)
        found = [
            (place, name, other)
            for name in part
            for place, other in enumerate(ranked.get(name, ()))
            if other not in inside and other in readable and frozenset((name, other)) not in known
        ]
        for _, name, other in sorted(found)[:_ACROSS]:
            yield name, other
