"""Which database images look like a query: global descriptors, hloc's files of them, exact top-k.

Three sources of descriptors, all in hloc's H5 format (group = image name, `global_descriptor`):
any file that hloc wrote; MegaLoc through torch.hub, which needs the network once; and VLAD over
EDM's own features or over SIFT, with a vocabulary made of the database at hand, which needs
nothing.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from scipy.cluster.vq import kmeans2, vq
from tqdm import tqdm

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.files import write_whole
from edm_hloc.base.h5 import Provenance
from edm_hloc.images.load import load_image
from edm_hloc.models.weights import load as load_weights
from edm_hloc.pairs.descriptors import DescriptorReader, DescriptorWriter
from edm_hloc.pairs.rules import Pair

logger = logging.getLogger(__name__)

LocalFeatures = Callable[[Path], np.ndarray]
"""A photo → its (N, D) float32 local descriptors. Raises ImageError."""

_THREADS = 2  # that read photos
_BLOCK = 2048  # images whose descriptors are in memory at a time, on either side
_SIFT_SIZE, _SIFT_FEATURES = 640, 1500
_EDM_SIZE = 512
_HUB = ("gmberton/MegaLoc", "get_trained_model", 322)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# --------------------------------------------------------------------------- search


def most_similar(
    descriptors: Path, queries: Sequence[str], database: Sequence[str], k: int
) -> list[tuple[str, str, float]]:
    """The `k` database images nearest to each query, best first: query, image, dot product.

    Exact; memory holds two blocks of descriptors. An image is never paired with itself.

    Args:
        descriptors: H5 file with the descriptors of all.
        queries, database: names.
        k: images for each query.

    Raises:
        EdmHlocError: the file cannot be read, a descriptor is missing, or `k` is below 1.
    """
    if k < 1:
        raise EdmHlocError("The number of images to retrieve must be at least 1.")
    found: list[tuple[str, str, float]] = []
    with DescriptorReader(descriptors) as reader:
        for some in _blocks(queries):
            rows = reader.read(some)
            best = np.full((len(some), 0), -np.inf, np.float32)
            place = np.zeros((len(some), 0), np.int64)
            for start in range(0, len(database), _BLOCK):
                names = database[start : start + _BLOCK]
                columns = reader.read(names)
                if columns.shape[1] != rows.shape[1]:
                    raise EdmHlocError(
                        f"The queries have descriptors of length {rows.shape[1]} in {descriptors}, "
                        f"the database of {columns.shape[1]}: they are of two methods."
                    )
                scores = rows @ columns.T
                index = {name: i for i, name in enumerate(names)}
                for i, name in enumerate(some):
                    if name in index:
                        scores[i, index[name]] = -np.inf
                best = np.hstack([best, scores])
                number = np.broadcast_to(np.arange(start, start + len(names)), scores.shape)
                place = np.hstack([place, number])
                order = np.lexsort((place, -best), axis=1)[:, :k]
                best = np.take_along_axis(best, order, axis=1)
                place = np.take_along_axis(place, order, axis=1)
            for i, query in enumerate(some):
                for score, j in zip(best[i].tolist(), place[i].tolist(), strict=True):
                    if score > -np.inf:
                        found.append((query, database[j], score))
    return found


def write_scores(path: Path, found: Iterable[tuple[str, str, float]]) -> None:
    """Writes query, image and score, a line each, beside hloc's list of pairs, which has none."""
    write_whole(path, "".join(f"{a} {b} {score:.6f}\n" for a, b, score in found))


def retrieved(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """The images of each query in the order of the list, each once."""
    images: dict[str, dict[str, None]] = defaultdict(dict)
    for query, image in pairs:
        images[query][image] = None
    return {query: list(names) for query, names in images.items()}


def _blocks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), _BLOCK):
        yield names[start : start + _BLOCK]


# --------------------------------------------------------------------------- VLAD


@dataclass(frozen=True)
class VladConfig:
    """VLAD (Jégou et al., CVPR 2010) with each word's sum normalised (Arandjelović et al., 2013).

    Attributes:
        words: of the vocabulary.
        images: of the database, evenly picked, that make the vocabulary.
        per_image: local descriptors that each of them gives.
        seed: of the vocabulary.
    """

    words: int = 64
    images: int = 200
    per_image: int = 300
    seed: int = 0


def compute_descriptors(
    image_root: Path,
    database: Sequence[str],
    queries: Sequence[str],
    out: Path,
    local: LocalFeatures,
    config: VladConfig | None = None,
    provenance: Provenance | None = None,
) -> dict[str, str]:
    """Writes VLAD descriptors of all images; gives why images have none, by name.

    Args:
        image_root: folder of the images.
        database: images that make the vocabulary.
        queries: more images.
        out: H5 file to write, hloc's format.
        local: local descriptors of a photo.
        config: the vocabulary.
        provenance: stored in the file.

    Raises:
        EdmHlocError: no image of the database can be read, or the file cannot be written.
    """
    config = config or VladConfig()
    skipped: dict[str, str] = {}

    def extract(name: str) -> tuple[str, np.ndarray | None]:
        try:
            return name, local(image_root / name)
        except ImageError as error:
            skipped[name] = str(error)
            return name, None

    rng = np.random.default_rng(config.seed)
    step = max(1, len(database) // config.images)
    sample = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for _, found in _progress(pool, extract, database[::step][: config.images], "Vocabulary"):
            if found is not None and len(found):
                rows = rng.permutation(len(found))[: config.per_image]
                sample.append(found[rows])
        if not sample:
            raise EdmHlocError(
                f"No image of the database in {image_root} gives a descriptor. "
                f"{next(iter(skipped.values()), '')}"
            )
        words = vocabulary(np.concatenate(sample), config)
        names = list(dict.fromkeys([*database, *queries]))
        with DescriptorWriter(out, provenance or {}) as writer:
            for name, found in _progress(pool, extract, names, "Global descriptors"):
                if found is not None:
                    writer.add(name, vlad(found, words))
    for reason in skipped.values():
        logger.warning("Skipping a photo: %s", reason)
    return skipped


def _progress(
    pool: ThreadPoolExecutor,
    work: Callable[[str], tuple[str, Any]],
    names: Sequence[str],
    title: str,
    ahead: int = 8,
) -> Iterator[tuple[str, Any]]:
    """Results in order, with a few ahead in threads: all at once would fill the memory."""
    rest = iter(names)
    waiting = [pool.submit(work, name) for name in islice(rest, ahead)]
    for _ in tqdm(names, desc=title, unit="photo", disable=None):
        result = waiting.pop(0).result()
        waiting += [pool.submit(work, name) for name in islice(rest, 1)]
        yield result


def vocabulary(descriptors: np.ndarray, config: VladConfig) -> np.ndarray:
    """(words, D) float32 centres of (N, D) local descriptors; fewer words where N is small."""
    count = max(1, min(config.words, len(descriptors) // 4))
    rng = np.random.default_rng(config.seed)
    first = descriptors[rng.permutation(len(descriptors))[:count]]
    centres, _ = kmeans2(descriptors.astype(np.float32), first, iter=15, minit="matrix")
    return np.asarray(centres, np.float32)


def vlad(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """(N, D) local descriptors → (words · D,) float32 of length 1; zeros where there are none."""
    sums = np.zeros(words.shape, np.float32)
    if len(descriptors):
        nearest, _ = vq(descriptors.astype(np.float32), words)
        np.add.at(sums, nearest, descriptors - words[nearest])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    flat = sums.ravel()
    return flat / max(float(np.linalg.norm(flat)), 1e-12)


# --------------------------------------------------------------------------- local descriptors


def sift_features(path: Path) -> np.ndarray:
    """RootSIFT: (N, 128)."""
    image = load_image(path, resize_max=_SIFT_SIZE, divisor=8)
    grey = (image.tensor[0].numpy() * 255).round().astype(np.uint8)
    sift: Any = cv2.SIFT.create(nfeatures=_SIFT_FEATURES)
    _, found = sift.detectAndCompute(grey, None)
    if found is None:
        return np.zeros((0, 128), np.float32)
    found = found / np.maximum(found.sum(axis=1, keepdims=True), 1e-12)
    return np.sqrt(found).astype(np.float32)


def edm_features(device: torch.device) -> tuple[LocalFeatures, str]:
    """Features of EDM's backbone, one of length 1 for every 16 px, and the weights' SHA-256.

    The best weights on this computer are taken, whatever the matcher is.
    """
    model, weights = load_weights(None, device)

    @torch.inference_mode()
    def local(path: Path) -> np.ndarray:
        image = load_image(path, resize_max=_EDM_SIZE, divisor=32)
        x16 = model.backbone(image.tensor[None].to(device))[1]
        rows = torch.nn.functional.normalize(x16[0].flatten(1).T.float(), dim=1)
        return rows.cpu().numpy()

    return local, weights.sha256


# --------------------------------------------------------------------------- MegaLoc


def hub_descriptors(
    image_root: Path, names: Sequence[str], out: Path, device: torch.device
) -> dict[str, str]:
    """Writes MegaLoc's descriptors (8,448 numbers) of all images; gives why images have none.

    torch.hub downloads code and weights at the first call.

    Args:
        image_root, names: the images.
        out: H5 file to write, hloc's format.
        device: of the network.

    Raises:
        EdmHlocError: the network cannot be loaded, or the file not be written.
    """
    name, entry, size = _HUB
    try:
        model = torch.hub.load(name, entry, trust_repo=True)
    except Exception as error:  # anything from no network to a missing module
        raise EdmHlocError(
            f"MegaLoc cannot be loaded from github.com/{name} ({error}). Without "
            "network take --retrieval sift, or a file of descriptors made elsewhere."
        ) from error
    model = model.eval().to(device)
    mean, std = (torch.tensor(v)[:, None, None] for v in _IMAGENET)
    skipped: dict[str, str] = {}
    with DescriptorWriter(out, {"retrieval": "megaloc"}) as writer, torch.inference_mode():
        for photo in tqdm(names, desc="Global descriptors", unit="photo", disable=None):
            try:
                image = load_image(image_root / photo, resize_max=None, grayscale=False, divisor=1)
            except ImageError as error:
                skipped[photo] = str(error)
                logger.warning("Skipping a photo: %s", error)
                continue
            square = torch.nn.functional.interpolate(
                ((image.tensor - mean) / std)[None], (size, size), mode="bilinear", antialias=True
            )
            writer.add(photo, model(square.to(device))[0].float().cpu().numpy())
    return skipped


def select_names(
    names: Sequence[str], prefixes: Sequence[str] = (), listed: Collection[str] | None = None
) -> list[str]:
    """The names that are in a list, or begin with one of `prefixes`; all without either.

    Raises:
        EdmHlocError: there is none.
    """
    if listed is not None:
        wanted = set(listed)
        chosen = [name for name in names if name in wanted]
    else:
        chosen = [name for name in names if name.startswith(tuple(prefixes) or "")]
    if not chosen:
        raise EdmHlocError(
            f"No image begins with {' or '.join(prefixes) or 'that'}; names are like "
            f"{next(iter(names), 'nothing')!r}."
        )
    return chosen
