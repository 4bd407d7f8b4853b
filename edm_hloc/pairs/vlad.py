"""VLAD: one global descriptor of a photo, aggregated from its local ones.

The vocabulary is made of the database at hand, so that nothing has to be downloaded.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.grid import evenly
from edm_hloc.base.journal import Journal
from edm_hloc.base.log import warn_of_skipped
from edm_hloc.base.progress import track
from edm_hloc.base.threads import single_core_pool
from edm_hloc.images.roots import ImageRoot
from edm_hloc.pairs.descriptors import RetrievalImages, new_descriptors
from edm_hloc.pairs.local_features import LocalFeatures

logger = logging.getLogger(__name__)

_THREADS = 2  # at least; one reads a photo while another waits for a GPU

Elsewhere = Callable[[Sequence[str], np.ndarray], Iterable[tuple[str, bytes]]]


@dataclass(frozen=True)
class VladConfig:
    """VLAD (Jégou et al., CVPR 2010) with each word's residual sum normalised (Arandjelović and
    Zisserman, CVPR 2013).

    Attributes:
        words: size of the vocabulary (k-means centres).
        images: number of database images, evenly spaced in the list, that the vocabulary is made
            of.
        per_image: number of local descriptors, drawn at random, that each of them contributes.
        seed: of the draw and of k-means.
    """

    words: int = 64
    images: int = 200
    per_image: int = 300
    seed: int = 0


def vlad_descriptors(
    images: RetrievalImages,
    out: Path,
    local: LocalFeatures,
    config: VladConfig | None = None,
    made_from: str = "",
    elsewhere: Elsewhere | None = None,
) -> dict[str, str]:
    """Writes VLAD descriptors of all images.

    Args:
        images: queries and database; the vocabulary is made of the database.
        out: H5 file to write, in hloc's format.
        local: local descriptors of a photo.
        config: the vocabulary.
        made_from: fingerprint of all inputs, with which photos that are done are kept when the
            process is killed, see `new_descriptors`.
        elsewhere: photos and vocabulary → name and descriptor, in bytes, of those that other
            processes have described with `describe`.

    Returns:
        The images that were skipped because they cannot be read, with the reason.

    Where no image of the database has local descriptors, all are zero, with a warning.

    Raises:
        EdmHlocError: no image of the database can be read, or the file cannot be written.
    """
    config = config or VladConfig()
    if not made_from and elsewhere is not None:
        raise ValueError("what comes from elsewhere is kept by its fingerprint")
    photos = _Photos(images.root, local)
    provenance = {"retrieval": "vlad", "of": local.name, **asdict(config)}
    with (
        single_core_pool(_threads(), "describe") as pool,
        new_descriptors(out, images.names, provenance, made_from) as kept,
    ):
        words = _words(photos, evenly(images.database, config.images), config, kept, pool)
        todo = [name for name in images.names if name not in kept]
        if elsewhere is not None:
            for name, data in elsewhere(todo, words):
                kept.put(name, data)
                kept.commit()
            todo = [name for name in images.names if name not in kept]
        for name, found in _in_order(pool, photos.extract, todo, "Global descriptors"):
            if found is not None:
                kept.put(name, vlad(found, words))
                kept.commit()
    return photos.skipped


class _Photos:
    """Extracts local descriptors, in any thread.

    Attributes:
        skipped: photos that cannot be read, with the reason.
        at_hand: descriptors that are given out once more, of the vocabulary's images: about a
            megabyte each.
    """

    def __init__(self, root: ImageRoot, local: LocalFeatures) -> None:
        self.root, self.local = root, local
        self.skipped: dict[str, str] = {}
        self.at_hand: dict[str, np.ndarray] = {}

    def extract(self, name: str) -> tuple[str, np.ndarray | None]:
        """The name and the local descriptors (N, D) of a photo."""
        if name in self.at_hand:
            return name, self.at_hand.pop(name)
        try:
            return name, self.local.extract(self.root / name)
        except ImageError as error:
            self.skipped[name] = str(error)
            return name, None


def _words(
    photos: _Photos,
    names: Sequence[str],
    config: VladConfig,
    kept: Journal,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """The vocabulary by descriptors drawn from some photos; what is drawn is kept.

    Raises:
        EdmHlocError: none of the photos can be read.
    """
    rng = np.random.default_rng(config.seed)
    sample = []
    todo = [name for name in names if _sampled(name) not in kept]
    missing = set(todo)
    empty: np.ndarray | None = None  # (0, D), of a photo without local descriptors
    extracted = _in_order(pool, photos.extract, todo, "Vocabulary")
    for name in names:
        found = next(extracted)[1] if name in missing else None
        empty = found if found is not None and not len(found) else empty
        if found is not None and len(found):
            photos.at_hand[name] = found
            # all draws are made again in a run that goes on
            rows = rng.permutation(len(found))[: config.per_image]
            sample.append(found[rows])
            drawn = np.asarray(found[rows], np.float32)
            kept.put(_sampled(name), np.int64(len(found)).tobytes() + drawn.tobytes())
            kept.commit()
        elif _sampled(name) in kept:
            data = kept.get(_sampled(name))
            length = int(np.frombuffer(data, np.int64, 1)[0])
            rows = rng.permutation(length)[: config.per_image]
            sample.append(np.frombuffer(data, np.float32, offset=8).reshape(len(rows), -1))
    next(extracted, None)  # ends its progress
    if sample:
        return vocabulary(np.concatenate(sample), config)
    if empty is None:
        raise EdmHlocError(
            f"No image of the database in {photos.root} gives a descriptor. "
            f"{next(iter(photos.skipped.values()), '')}"
        )
    logger.warning(
        "No photo in %s has a keypoint (%s): by these, all look equally alike.",
        photos.root,
        photos.local.name,
    )
    return np.zeros((1, empty.shape[1]), np.float32)


def describe(
    root: ImageRoot, names: Sequence[str], local: LocalFeatures, words: np.ndarray
) -> Iterator[tuple[str, bytes]]:
    """Name and VLAD descriptor, (words · D,) float32 in bytes, of photos.

    The bits are those of `vlad_descriptors`. Photos that cannot be read are left out with a
    warning.

    Args:
        root: what the names are relative to.
        names: of the photos.
        local: local descriptors of a photo.
        words: (words, D) float32 vocabulary.
    """

    def extract(name: str) -> tuple[str, np.ndarray | None]:
        try:
            return name, vlad(local.extract(root / name), words)
        except ImageError as error:
            warn_of_skipped([str(error)])
            return name, None

    with single_core_pool(_threads(), "describe") as pool:
        for name, found in _in_order(pool, extract, names, "Global descriptors"):
            if found is not None:
                yield name, found.tobytes()


def _threads() -> int:
    """Threads that read photos and extract local descriptors, each on one core: a network rounds
    differently with another number of threads."""
    return max(_THREADS, torch.get_num_threads())


def _sampled(name: str) -> str:
    """The entry of what a photo contributes to the vocabulary: no photo has such a name."""
    return f"\0sample {name}"


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[str], tuple[str, Any]],
    names: Sequence[str],
    title: str,
    ahead: int = 8,
) -> Iterator[tuple[str, Any]]:
    """Results in the order of `names`; at most `ahead` are computed before they are needed, so
    that memory does not grow with the number of images."""
    rest = iter(names)
    waiting = [pool.submit(work, name) for name in islice(rest, ahead)]
    for _ in track(names, title, "photo"):
        result = waiting.pop(0).result()
        waiting += [pool.submit(work, name) for name in islice(rest, 1)]
        yield result


def vocabulary(descriptors: np.ndarray, config: VladConfig) -> np.ndarray:
    """(words, D) float32 k-means centres of (N, D) local descriptors; at most N / 4 words."""
    count = max(1, min(config.words, len(descriptors) // 4))
    rng = np.random.default_rng(config.seed)
    first = descriptors[rng.permutation(len(descriptors))[:count]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a cluster that is empty
        centres, _ = kmeans2(descriptors.astype(np.float32), first, iter=15, minit="matrix")
    return np.asarray(centres, np.float32)


def vlad(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """VLAD descriptor of a photo.

    Args:
        descriptors: (N, D) local descriptors.
        words: (W, D) vocabulary.

    Returns:
        (W · D,) float32 of length 1; zeros where there are no local descriptors.
    """
    sums = np.zeros(words.shape, np.float32)
    if len(descriptors):
        nearest, _ = vq(descriptors.astype(np.float32), words)
        np.add.at(sums, nearest, descriptors - words[nearest])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    flat = sums.ravel()
    return flat / max(float(np.linalg.norm(flat)), 1e-12)
