"""Lists of pairs by what photos look like: a query with the database, or all with one another.

OUT/global-feats-HOW.h5     global descriptors, where they are computed (hloc's file)
OUT/pairs-query-HOWk.txt    database images of each query, best first (hloc's list)
OUT/scores-query-HOWk.txt   the same with scores, where they were computed
OUT/scores-HOWk.txt         photos that look most like each photo, best first, with scores
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.find import image_stamps
from edm_hloc.pairs.descriptors import DescriptorReader
from edm_hloc.pairs.retrieval import (
    VladConfig,
    compute_descriptors,
    edm_features,
    hub_descriptors,
    most_similar,
    retrieved,
    sift_features,
    write_scores,
)
from edm_hloc.pairs.rules import Pair, exhaustive, read_pairs, sequential, unique_pairs, write_pairs
from edm_hloc.pipelines.run import Run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrievalOptions:
    """Where the database images of each query come from.

    Attributes:
        how: "sift", "edm" or "megaloc", which are computed; or a file: hloc's list of pairs, the
            query first, or H5 with hloc's global descriptors of all images.
        number: of images a query.
        vlad: the descriptors that are computed without a network.
    """

    how: str = "sift"
    number: int = 50
    vlad: VladConfig = field(default_factory=VladConfig)

    @property
    def label(self) -> str:
        """For file names: "netvlad" for pairs-query-netvlad50.txt, the kind for computed ones."""
        if not self.is_file:
            return self.how
        stem = Path(self.how).stem.removeprefix("pairs-query-").removeprefix("global-feats-")
        return stem.rstrip("0123456789") or "file"

    @property
    def is_file(self) -> bool:
        return self.how not in ("edm", "sift", "megaloc")

    def check(self) -> None:
        """Raises EdmHlocError if the file is missing, before hours of other work."""
        if self.number < 1:
            raise EdmHlocError("The number of images to retrieve must be at least 1.")
        if self.is_file and not Path(self.how).is_file():
            raise EdmHlocError(
                f"No such retrieval file: {self.how}. Give hloc's list of pairs (such as "
                "pairs-query-netvlad50.txt), an H5 file of global descriptors, or 'sift' to have "
                "the pairs computed here."
            )


def check_retrieval(
    options: RetrievalOptions, queries: Sequence[str], database: Sequence[str]
) -> None:
    """Raises EdmHlocError if a file is given that cannot be read or holds none of the queries."""
    options.check()
    if options.is_file and Path(options.how).suffix == ".h5":
        _described(Path(options.how), queries, database)
    elif options.is_file:
        _listed(options, queries, database)


def _listed(
    options: RetrievalOptions, queries: Sequence[str], database: Sequence[str]
) -> dict[str, list[str]]:
    """The images that hloc's list has of each query. Raises EdmHlocError if it has none."""
    found = retrieved(read_pairs(Path(options.how), [*queries, *database]))
    found = {q: found[q][: options.number] for q in queries if q in found}
    if not found:
        raise EdmHlocError(
            f"{options.how} lists none of the {len(queries)} queries. Names must be relative to "
            f"the image folder, like {queries[0]!r}."
        )
    return found


def _described(descriptors: Path, queries: Sequence[str], database: Sequence[str]) -> set[str]:
    """The images in an H5 file. Raises EdmHlocError if no query or no other is among them."""
    with DescriptorReader(descriptors) as reader:
        known = set(reader.names())
    if known.isdisjoint(queries) or known.isdisjoint(database):
        raise EdmHlocError(
            f"{descriptors} has no descriptors of these images, queries or database; its names are "
            f"like {min(known, default='nothing')!r}."
        )
    return known


def retrieve(
    run: Run,
    options: RetrievalOptions,
    image_root: Path,
    queries: Sequence[str],
    database: Sequence[str],
    device: torch.device | str = "cpu",
) -> dict[str, list[str]]:
    """The database images of each query, best first; a step of `run`.

    Args:
        run: which it belongs to.
        options: where they come from.
        image_root: folder of all images.
        queries, database: names.
        device: of a network that computes descriptors.

    Raises:
        EdmHlocError: a file cannot be read, or none of the queries is in it.
    """
    options.check()
    name = f"query-{options.label}{options.number}.txt"
    listed, scored = run.out / f"pairs-{name}", run.out / f"scores-{name}"
    given = Path(options.how)
    if options.is_file and given.suffix != ".h5":
        found = _listed(options, queries, database)
        unknown = {image for images in found.values() for image in images} - set(database)
        if unknown:
            logger.warning(
                "%s names %d images that are not in the database, such as %s.",
                given,
                len(unknown),
                min(unknown),
            )
    elif not options.is_file and len(database) <= options.number:
        found = {query: list(database) for query in queries}
    else:
        found = _by_descriptors(
            run, options, image_root, queries, database, torch.device(device), scored
        )
    missing = [query for query in queries if query not in found]
    if missing:
        logger.warning(
            "%d of %d queries have no retrieved image and cannot be localized, such as %s.",
            len(missing),
            len(queries),
            missing[0],
        )
    pairs = [(query, image) for query, images in found.items() for image in images]
    if not (options.is_file and listed.exists() and listed.samefile(given)):
        write_pairs(listed, pairs)
    return found


def _by_descriptors(
    run: Run,
    options: RetrievalOptions,
    image_root: Path,
    queries: Sequence[str],
    database: Sequence[str],
    device: torch.device,
    scored: Path,
) -> dict[str, list[str]]:
    descriptors = Path(options.how)
    if not options.is_file:
        descriptors = run.out / f"global-feats-{options.how}.h5"
        everything = list(dict.fromkeys([*database, *queries]))

        def compute() -> dict[str, Any]:
            if options.how == "megaloc":
                hub_descriptors(image_root, everything, descriptors, device)
            else:
                local, of = (
                    edm_features(device) if options.how == "edm" else (sift_features, "sift")
                )
                made_by = {"retrieval": "vlad", "of": of, **asdict(options.vlad)}
                compute_descriptors(
                    image_root, database, queries, descriptors, local, options.vlad, made_by
                )
            return {}

        stamps = image_stamps(image_root, everything)
        depends_on = [stamps, database, options.how, asdict(options.vlad)]
        run.step("descriptors", depends_on, [descriptors], compute)
    known = _described(descriptors, queries, database)
    found = most_similar(
        descriptors,
        [query for query in queries if query in known],
        [image for image in database if image in known],
        options.number,
    )
    write_scores(scored, found)
    return retrieved((query, image) for query, image, _ in found)


# --------------------------------------------------------------------------- all with one another


@dataclass(frozen=True)
class SimilarPhotos:
    """Stands for a list of pairs: each photo with those that look most like it.

    Attributes:
        names: of the photos, two at least.
        options: where the likeness comes from, no list of pairs; how many photos each is paired
            with.
    """

    names: tuple[str, ...]
    options: RetrievalOptions = RetrievalOptions("edm", 20)

    def check(self) -> None:
        """Raises EdmHlocError if there is nothing to pair, or a file that cannot be used."""
        if len(self.names) < 2:
            raise EdmHlocError(f"There is no pair to match: there are {len(self.names)} photo(s).")
        if self.options.is_file and Path(self.options.how).suffix != ".h5":
            raise EdmHlocError(
                f"{self.options.how} is no H5 file of global descriptors. A list of pairs goes in "
                "with --pairs."
            )
        check_retrieval(self.options, self.names, self.names)


def similar_pairs(
    run: Run, photos: SimilarPhotos, image_root: Path, device: torch.device | str = "cpu"
) -> list[Pair]:
    """The pairs of photos that look most like one another, each once; a step of `run`.

    A photo without a descriptor, which cannot be read or is not in the file, is paired with those
    next to it by name, so that matching tells what there is to tell of it.

    Raises:
        EdmHlocError: the descriptors cannot be computed or read.
    """
    names, options = photos.names, photos.options
    if not options.is_file and options.number >= len(names) - 1:
        return exhaustive(names)
    scored = run.out / f"scores-{options.label}{options.number}.txt"
    found = _by_descriptors(run, options, image_root, names, names, torch.device(device), scored)
    missing = [name for name in names if name not in found]
    if missing:
        logger.warning(
            "%d photos have no global descriptor, such as %s: they are paired with their "
            "neighbours by name.",
            len(missing),
            missing[0],
        )
    without = set(missing)
    beside = [pair for pair in sequential(names, 2) if not without.isdisjoint(pair)]
    likely = [(photo, other) for photo, others in found.items() for other in others]
    return unique_pairs([*likely, *beside])
