"""The retrieval step of a run: the database images of each query, or pairs of similar photos.

OUT/global-feats-HOW.h5     global descriptors, where they are computed (hloc's format)
OUT/pairs-query-HOWk.txt    database images of each query, most similar first (hloc's list)
OUT/scores-query-HOWk.txt   the same with similarities, where descriptors were compared
OUT/scores-HOWk.txt         for each photo the most similar others, with similarities
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edm_hloc.base.errors import ImageError
from edm_hloc.base.fingerprint import fingerprint_of
from edm_hloc.base.log import warn_of_skipped, warn_once
from edm_hloc.images.known import KnownPhotos
from edm_hloc.images.load import load_photo
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matchers.base import Matcher
from edm_hloc.models.weights import WeightsInfo, weights_sha256
from edm_hloc.pairs.descriptors import RetrievalImages
from edm_hloc.pairs.files import write_pairs, write_scores
from edm_hloc.pairs.local_features import SIFT, edm_features
from edm_hloc.pairs.megaloc import MEGALOC_SHA256, megaloc_descriptors
from edm_hloc.pairs.retrieval import (
    RetrievalOptions,
    SimilarPhotos,
    images_by_query,
    images_in_list,
    images_with_descriptor,
    most_similar,
)
from edm_hloc.pairs.rules import Pair, exhaustive, sequential, unique_pairs
from edm_hloc.pairs.vlad import vlad_descriptors
from edm_hloc.pipelines.run import Run
from edm_hloc.pipelines.spreading import spread_descriptors

logger = logging.getLogger(__name__)


def retrieve(
    run: Run, options: RetrievalOptions, images: RetrievalImages, matcher: Matcher | None = None
) -> dict[str, list[str]]:
    """The database images of each query, most similar first; a step of `run`.

    Its record gets the queries that have none as their photo cannot be read, with the reason, even
    where descriptors of an earlier run are used.

    Args:
        run: the run in whose folder the files go.
        options: source and number of the images.
        images: queries and database.
        matcher: computed descriptors use its device and, where it is EDM, its weights; None for
            the CPU and the default weights.

    Raises:
        EdmHlocError: a file cannot be read, or none of the queries is in it.
    """
    options.check()
    name = f"query-{options.label}{options.number}.txt"
    list_path, scores_path = run.out / f"pairs-{name}", run.out / f"scores-{name}"
    queries, database = images.queries, images.database
    if options.is_list:
        found = images_in_list(options, queries, database)
        unknown = {image for partners in found.values() for image in partners} - set(database)
        if unknown:
            logger.warning(
                "%s names %d images that are not in the database, such as %s.",
                options.how,
                len(unknown),
                min(unknown),
            )
    elif not options.is_file and len(database) <= options.number:
        found = {query: list(database) for query in queries}
    else:
        found = _by_descriptors(run, options, images, matcher, scores_path)
    missing = [query for query in queries if query not in found]
    run.results["retrieval"] = {"skipped": _unreadable(images.root, missing)}
    if missing:
        logger.warning(
            "%d of %d queries have no retrieved image and cannot be localized, such as %s.",
            len(missing),
            len(queries),
            missing[0],
        )
    given = options.is_file and list_path.exists() and list_path.samefile(options.how)
    if not given:
        run.claim(list_path.name)
        write_pairs(list_path, [(q, image) for q, partners in found.items() for image in partners])
    return found


def _unreadable(root: ImageRoot, names: Sequence[str]) -> dict[str, str]:
    """Why photos cannot be used, by name; those that can be are left out."""
    problems = {}
    for name in names:
        try:
            load_photo(root / name)
        except ImageError as error:
            problems[name] = str(error)
    return problems


def similar_pairs(
    run: Run, photos: SimilarPhotos, image_root: Path, matcher: Matcher | None = None
) -> list[Pair]:
    """The pairs of photos with the most similar descriptors, each once; a step of `run`.

    A photo without a descriptor (it cannot be read, or is not in the given file) is paired with
    its neighbours by name, so that the matching step reports what is wrong with it.

    Args:
        run: the run in whose folder the files go.
        photos: their names, source of the descriptors and number of partners.
        image_root: folder of the photos.
        matcher: as for `retrieve`.

    Raises:
        EdmHlocError: the descriptors cannot be computed or read.
    """
    names, options = photos.names, photos.options
    if not options.is_file and options.number >= len(names) - 1:
        return exhaustive(names)
    found = ranked_photos(run, photos, image_root, matcher)
    similar = [(photo, other) for photo, others in found.items() for other in others]
    return unique_pairs([*similar, *pairs_of_missing(names, found)])


def ranked_photos(
    run: Run, photos: SimilarPhotos, image_root: Path, matcher: Matcher | None = None
) -> dict[str, list[str]]:
    """For each photo the others with the most similar descriptors, best first; as `similar_pairs`.

    A photo without a descriptor is left out.
    """
    names, options = photos.names, photos.options
    scores_path = run.out / f"scores-{options.label}{options.number}.txt"
    images = RetrievalImages(image_root, queries=names, database=names)
    return _by_descriptors(run, options, images, matcher, scores_path)


def pairs_of_missing(names: Sequence[str], found: Mapping[str, object]) -> list[Pair]:
    """Pairs of the photos without a descriptor with their neighbours by name, with a warning."""
    missing = [name for name in names if name not in found]
    if missing:
        logger.warning(
            "%d photos have no global descriptor, such as %s: they are paired with their "
            "neighbours by name.",
            len(missing),
            missing[0],
        )
    without = set(missing)
    return [pair for pair in sequential(names, 2) if not without.isdisjoint(pair)]


def _by_descriptors(
    run: Run,
    options: RetrievalOptions,
    images: RetrievalImages,
    matcher: Matcher | None,
    scores_path: Path,
) -> dict[str, list[str]]:
    """Nearest neighbours by global descriptors, which are computed first if they are not given."""
    if options.is_file:
        descriptors = {Path(options.how): 1.0}
    else:
        descriptors = {}
        skipped: dict[str, str] = {}
        for how, share in options.computed.items():
            path, unreadable = _compute_descriptors(run, options, how, images, matcher)
            descriptors[path] = share
            skipped.update(unreadable)  # the same photos for each kind
        warn_of_skipped(skipped.values())
    known = set(images.names).intersection(
        *(images_with_descriptor(path, images.queries, images.database) for path in descriptors)
    )
    queries = [query for query in images.queries if query in known]
    database = [image for image in images.database if image in known]
    if options.is_file and len(database) < len(images.database) and queries != database:
        missing = next(image for image in images.database if image not in known)
        warn_once(
            f"{options.how} has descriptors of {len(database)} of the {len(images.database)} "
            f"photos to search; {missing}, for one, is never retrieved."
        )
    found = most_similar(descriptors, queries, database, options.number)
    run.claim(scores_path.name)
    write_scores(scores_path, found)
    return images_by_query((query, image) for query, image, _ in found)


def _compute_descriptors(
    run: Run,
    options: RetrievalOptions,
    how: str,
    images: RetrievalImages,
    matcher: Matcher | None,
) -> tuple[Path, dict[str, str]]:
    """The file of descriptors of one kind, made in a step of its own: again if photos, method or
    the network's weights changed. And the photos that it could not read, with the reason."""
    skipped: dict[str, str] = {}
    descriptors = run.out / f"global-feats-{how}.h5"
    device = torch.device("cpu") if matcher is None else matcher.info.device
    used = None if matcher is None else matcher.info.weights
    weights = used.path if isinstance(used, WeightsInfo) else None

    def compute() -> dict[str, Any]:
        if how == "megaloc":
            found = megaloc_descriptors(images, descriptors, device, made_from=made_from)
        else:
            local = edm_features(weights, device) if how == "edm" else SIFT
            method = {"how": how, "sha256": local.name}
            if isinstance(used, WeightsInfo) and matcher is not None and matcher.recipe is not None:
                method["weights"] = matcher.recipe.anywhere().weights
            spread = partial(spread_descriptors, run, images.root, method, made_from)
            elsewhere = spread if run.shards else None
            found = vlad_descriptors(images, descriptors, local, options.vlad, made_from, elsewhere)
        skipped.update(found)
        return {}

    stamps = KnownPhotos(run.out / "raw_matches").noted(images.root, images.names)
    depends_on: list[Any] = [stamps, images.database, how, asdict(options.vlad), "upright"]
    if how == "edm":
        depends_on.append(weights_sha256(weights))
    elif how == "megaloc":
        depends_on.append(MEGALOC_SHA256)
    made_from = fingerprint_of([depends_on, images.names])
    run.step(f"descriptors of {how}", depends_on, [descriptors], compute)
    return descriptors, skipped
