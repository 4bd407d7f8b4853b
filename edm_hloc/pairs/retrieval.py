"""Image retrieval: where the database images of a query come from, and exact nearest neighbours.

The images come from a list of pairs, or from global descriptors: an H5 file that hloc wrote,
MegaLoc (`megaloc.py`), or VLAD over local descriptors (`vlad.py`). `pipelines/retrieval.py` puts
these together and keeps the files in a run's folder.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.grid import blocks
from edm_hloc.base.log import first_few, warn_once
from edm_hloc.base.text import read_text
from edm_hloc.images.intrinsics import listed_name
from edm_hloc.pairs.descriptors import DescriptorReader
from edm_hloc.pairs.files import find_pairs
from edm_hloc.pairs.names import NameFinder
from edm_hloc.pairs.rules import Pair
from edm_hloc.pairs.vlad import VladConfig

logger = logging.getLogger(__name__)

_BLOCK = 2048  # images whose descriptors are in memory at a time, of queries and of the database
BOTH = "edm+sift"
"""Both kinds of VLAD: SIFT's is the same for rotated photos, EDM's needs no keypoints."""


@dataclass(frozen=True)
class RetrievalOptions:
    """Where the database images of each query come from.

    Attributes:
        how: "sift" or "edm" (VLAD over these local descriptors), `BOTH`, or "megaloc", which are
            computed; or the path of a file: a list of pairs as hloc writes it, the query first in
            each line, or an H5 file with the global descriptors of all images.
        number: of database images retrieved for each query.
        vlad: configuration of the VLAD descriptors ("sift" and "edm", alone or both).
    """

    how: str = BOTH
    number: int = 50
    vlad: VladConfig = field(default_factory=VladConfig)

    @property
    def label(self) -> str:
        """The method's name in file names: "netvlad" for the file pairs-query-netvlad50.txt."""
        if not self.is_file:
            return self.how
        stem = Path(self.how).stem.removeprefix("pairs-query-").removeprefix("global-feats-")
        return stem.rstrip("0123456789") or "file"

    @property
    def is_file(self) -> bool:
        """Whether `how` is the path of a file."""
        return self.how not in ("edm", "sift", BOTH, "megaloc")

    @property
    def computed(self) -> Mapping[str, float]:
        """The descriptors to compute, and the share of each in the similarity."""
        return {"edm": 1 / 3, "sift": 2 / 3} if self.how == BOTH else {self.how: 1.0}

    @property
    def is_list(self) -> bool:
        """Whether `how` is the path of a list of pairs."""
        return self.is_file and Path(self.how).suffix != ".h5"

    def check(self) -> None:
        """Raises EdmHlocError if `number` is below 1 or the file is missing."""
        if self.number < 1:
            raise EdmHlocError("The number of images to retrieve must be at least 1.")
        if self.is_file and not Path(self.how).is_file():
            raise EdmHlocError(
                f"No such retrieval file: {self.how}. Give hloc's list of pairs (such as "
                f"pairs-query-netvlad50.txt), an H5 file of global descriptors, or '{BOTH}' to "
                "have the pairs computed here."
            )


def check_retrieval(
    options: RetrievalOptions, queries: Sequence[str], database: Sequence[str]
) -> None:
    """Checks a given file, before hours of other work depend on it.

    Raises:
        EdmHlocError: the file cannot be read, or none of the queries is in it.
    """
    options.check()
    if options.is_list:
        images_in_list(options, queries, database)
    elif options.is_file:
        images_with_descriptor(Path(options.how), queries, database)


@dataclass(frozen=True)
class SimilarPhotos:
    """Pairs that are found by retrieval: each photo with those whose descriptors are nearest.

    Attributes:
        names: of the photos, at least two.
        options: source of the descriptors (not a list of pairs), and number of partners of each
            photo.
    """

    names: tuple[str, ...]
    options: RetrievalOptions = RetrievalOptions(number=20)

    def check(self) -> None:
        """Raises EdmHlocError if there are fewer than two photos or the file cannot be used."""
        if len(self.names) < 2:
            raise EdmHlocError(f"There is no pair to match: there are {len(self.names)} photo(s).")
        if self.options.is_list:
            raise EdmHlocError(
                f"{self.options.how} is no H5 file of global descriptors. A list of pairs goes in "
                "with --pairs."
            )
        check_retrieval(self.options, self.names, self.names)


# --------------------------------------------------------------------------- lists of pairs


def images_in_list(
    options: RetrievalOptions, queries: Sequence[str], database: Sequence[str]
) -> dict[str, list[str]]:
    """The first `options.number` images that a list of pairs has for each of the queries.

    Args:
        options: with the path of the list.
        queries, database: names of the images; see `NameFinder` for how the list may write them.
            The list may name other images too.

    Raises:
        EdmHlocError: the list cannot be read, or has none of the queries.
    """
    pairs = find_pairs(Path(options.how), NameFinder(queries), NameFinder(database))
    found = images_by_query(pairs)
    found = {q: found[q][: options.number] for q in queries if q in found}
    known = frozenset(database)
    if not found and known.intersection(image for image, _ in pairs):
        raise EdmHlocError(
            f"{options.how} has database images in its first column, such as {pairs[0][0]!r}: "
            "exchange the columns, so that each line has a query and then a database image."
        )
    if not found:
        raise EdmHlocError(
            f"{options.how} lists none of the {len(queries)} queries. Names must be relative to "
            f"the image folder, like {queries[0]!r}."
        )
    if unknown := sorted({name for images in found.values() for name in images} - known):
        logger.warning(
            "%s lists %d images that are none of the %d database images, such as %r, beside %r: "
            "no query is matched with them.",
            options.how,
            len(unknown),
            len(database),
            unknown[0],
            database[0],
        )
    return found


def images_by_query(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """The second images of each first one in the order of the list, without repeats."""
    images: dict[str, dict[str, None]] = defaultdict(dict)
    for query, image in pairs:
        images[query][image] = None
    return {query: list(names) for query, names in images.items()}


# --------------------------------------------------------------------------- descriptors


def images_with_descriptor(
    descriptors: Path, queries: Sequence[str], database: Sequence[str]
) -> set[str]:
    """The images that have a descriptor in an H5 file, maybe under another name.

    Raises:
        EdmHlocError: it cannot be read, or has no query or no database image.
    """
    with DescriptorReader(descriptors) as reader:
        known = set(reader.find(queries, database))
        example = reader.names()[0]
    if known.isdisjoint(queries) or known.isdisjoint(database):
        raise EdmHlocError(
            f"{descriptors} has no descriptors of these images, queries or database; its names are "
            f"like {example!r}, those of the images like {queries[0]!r} and {database[0]!r}."
        )
    return known


def most_similar(
    descriptors: Path | Mapping[Path, float],
    queries: Sequence[str],
    database: Sequence[str],
    k: int,
) -> list[tuple[str, str, float]]:
    """The `k` nearest database images of each query by the dot product of global descriptors.

    The search is exact. Two blocks of descriptors are in memory at a time. An image is never
    paired with itself, and one whose descriptor is not finite with none. Those whose descriptor is
    zero are equally similar to all. Warnings tell of both.

    Args:
        descriptors: H5 file with the descriptors of all of them, maybe under other names; or
            several, and the share of each in the sum of the products.
        queries, database: names.
        k: number of images for each query.

    Returns:
        (query, image, dot product), the queries in their order, the largest product first.

    Raises:
        EdmHlocError: the file cannot be read, a descriptor is missing, or `k` is below 1.
    """
    if k < 1:
        raise EdmHlocError("The number of images to retrieve must be at least 1.")
    found: list[tuple[str, str, float]] = []
    shares = {descriptors: 1.0} if isinstance(descriptors, Path) else descriptors
    with ExitStack() as opened:
        readers = [(opened.enter_context(DescriptorReader(p)), s) for p, s in shares.items()]
        joined = _JoinedDescriptors(readers, queries, database)
        for query_block in blocks(len(queries), _BLOCK):
            some = queries[query_block]
            rows, rows_finite = joined.read(some)
            best = np.full((len(some), 0), -np.inf, np.float32)
            place = np.zeros((len(some), 0), np.int64)
            for block in blocks(len(database), _BLOCK):
                names = database[block]
                columns, columns_finite = joined.read(names)
                if columns.shape[1] != rows.shape[1]:
                    raise EdmHlocError(
                        f"The queries have descriptors of length {rows.shape[1]} in "
                        f"{', '.join(map(str, shares))}, "
                        f"the database of {columns.shape[1]}: they are of two methods."
                    )
                scores = rows @ columns.T
                scores[~np.logical_and.outer(rows_finite, columns_finite)] = -np.inf
                index = {name: i for i, name in enumerate(names)}
                for i, name in enumerate(some):
                    if name in index:
                        scores[i, index[name]] = -np.inf
                best = np.hstack([best, scores])
                number = np.broadcast_to(np.arange(block.start, block.stop), scores.shape)
                place = np.hstack([place, number])
                order = np.lexsort((place, -best), axis=1)[:, :k]
                best = np.take_along_axis(best, order, axis=1)
                place = np.take_along_axis(place, order, axis=1)
            for i, query in enumerate(some):
                for score, j in zip(best[i].tolist(), place[i].tolist(), strict=True):
                    if score > -np.inf:
                        found.append((query, database[j], score))
    files = " and ".join(map(str, shares))
    if joined.zero:
        images = first_few(joined.zero, "images")
        warn_once(
            f"{files}: descriptors that are all zero, by which these images are equally similar to "
            f"all others: {', '.join(images)}. Compute them again, unless the images are blank."
        )
    if joined.not_finite:
        images = first_few(joined.not_finite, "images")
        warn_once(
            f"{files}: descriptors that are not finite, by which these images get no pair: "
            f"{', '.join(images)}. Compute these descriptors again."
        )
    return found


class _JoinedDescriptors:
    """Descriptors of several files side by side, whose products are weighted sums of theirs.

    Args:
        readers: of the files, each with its share in the sum.
        queries, database: names of the images.

    Attributes:
        zero, not_finite: names of the images that were read whose descriptors are so.
    """

    def __init__(
        self,
        readers: Sequence[tuple[DescriptorReader, float]],
        queries: Sequence[str],
        database: Sequence[str],
    ) -> None:
        self._readers = [(r, share, r.find(queries, database)) for r, share in readers]
        self.zero: dict[str, None] = {}
        self.not_finite: dict[str, None] = {}

    def read(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors (N, D), and (N,) bool whether they are finite; 0 where they are not."""
        rows = np.hstack(
            [
                reader.read([written.get(name, name) for name in names]) * np.float32(share**0.5)
                for reader, share, written in self._readers
            ]
        )
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        self.not_finite.update(dict.fromkeys(itertools.compress(names, ~finite)))
        self.zero.update(dict.fromkeys(itertools.compress(names, np.asarray(~rows.any(axis=1)))))
        rows[~finite] = 0
        return rows, finite


def select_names(
    names: Sequence[str], prefixes: Sequence[str] = (), listed: Path | None = None
) -> list[str]:
    """The names that are in a list, else those that begin with one of `prefixes`, else all.

    Args:
        names: of the images at hand.
        prefixes: of some of them.
        listed: file with a name a line, behind which there may be more, as intrinsics; comments
            begin with "#".

    Raises:
        EdmHlocError: none is left, or the list cannot be read.
    """
    if listed is not None:
        return _in_list(names, listed)
    chosen = [name for name in names if name.startswith(tuple(prefixes) or "")]
    if not chosen:
        raise EdmHlocError(
            f"No image begins with {' or '.join(prefixes) or 'that'}; names are like "
            f"{next(iter(names), 'nothing')!r}."
        )
    return chosen


def _in_list(names: Sequence[str], path: Path) -> list[str]:
    finder, wanted, unknown = NameFinder(names), set(), []
    for line in map(str.strip, read_text(path, "list of names").split("\n")):
        if not line:
            continue
        name = finder.find(line) or finder.find(listed_name(line))
        if name is not None:
            wanted.add(name)
        elif not line.startswith("#"):
            unknown.append(line[:100])
    finder.report(path)
    if not wanted:
        raise EdmHlocError(
            f"{path} names none of the {len(names)} images: it names "
            f"{unknown[0] if unknown else 'nothing'!r}, and theirs are like "
            f"{next(iter(names), 'nothing')!r}."
        )
    if unknown:
        logger.warning(
            "%s names %d images that are not there, such as %r.", path, len(unknown), unknown[0]
        )
    return [name for name in names if name in wanted]
