"""Which images to match: lists of pairs by rule, from a file, from a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pycolmap
from scipy.sparse import csr_array

from edm_hloc.base.colmap import posed_images, read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole

logger = logging.getLogger(__name__)

Pair = tuple[str, str]

_BLOCK = 256  # rows of an images × images table that are in memory at a time
_MAX_ROTATION = 30.0  # degrees between two cameras that look about the same way


def unique_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs in their order without self pairs and repeated ones; (b, a) repeats (a, b)."""
    seen: dict[Pair, Pair] = {}
    for a, b in pairs:
        if a != b:
            seen.setdefault((a, b) if a < b else (b, a), (a, b))
    return list(seen.values())


def names_in(pairs: Iterable[Pair]) -> list[str]:
    """The images of pairs, each once, sorted."""
    return sorted({name for pair in pairs for name in pair})


# --------------------------------------------------------------------------- by rule


def exhaustive(names: Sequence[str]) -> list[Pair]:
    """Every image with every other: n (n − 1) / 2 pairs."""
    names = list(dict.fromkeys(names))
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def sequential(names: Sequence[str], overlap: int = 10, loop_step: int | None = None) -> list[Pair]:
    """Pairs of a video or a walk: each image with those that follow it.

    Args:
        names: images in the order they were taken.
        overlap: how many following images each is paired with.
        loop_step: also pair every `loop_step`-th image with every other such image, so that a walk
            that comes back is closed; None for no loop closure.

    Raises:
        EdmHlocError: `overlap` or `loop_step` is below 1.
    """
    if overlap < 1 or (loop_step is not None and loop_step < 1):
        raise EdmHlocError("Sequential pairs need an overlap and a loop step of at least 1.")
    names = list(dict.fromkeys(names))
    near = [(a, b) for i, a in enumerate(names) for b in names[i + 1 : i + 1 + overlap]]
    return unique_pairs(near + (exhaustive(names[::loop_step]) if loop_step else []))


# --------------------------------------------------------------------------- files


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Writes one pair a line, two names with a space between them as hloc does.

    A pair whose names hold white space gets a tab between them; hloc reads no such names.

    Raises:
        EdmHlocError: a name holds a tab or a line break, or the file cannot be written.
    """
    lines = []
    for pair in pairs:
        if any("\t" in name or name.splitlines() != [name] for name in pair):
            raise EdmHlocError(f"{pair} cannot be stored in a list of pairs: rename the image.")
        separator = "\t" if any(c.isspace() for name in pair for c in name) else " "
        lines.append(f"{pair[0]}{separator}{pair[1]}\n")
    write_whole(path, "".join(lines))


def read_pairs(path: Path, names: Iterable[str] = ()) -> list[Pair]:
    """Reads a file of pairs, one a line, as it is: also pairs of unknown images, also repeated.

    The two names are separated by a tab or, as in hloc's files, by white space. Where names hold
    spaces themselves and there is no tab, the known `names` tell where the first one ends.

    Raises:
        EdmHlocError: no such file, or a line that does not hold two names.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EdmHlocError(f"Cannot read the list of pairs {path}: {error}.") from error
    known = frozenset(names)
    pairs = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        pair = _split(line, known)
        if pair is None:
            raise EdmHlocError(
                f"{path}, line {number}: expected two image names, got {line.strip()!r}. "
                "Separate names that hold spaces by a tab."
            )
        pairs.append(pair)
    return pairs


def _split(line: str, known: frozenset[str]) -> Pair | None:
    words = [word for word in line.rstrip("\r").split("\t") if word]
    if len(words) == 2:
        words = [
            word if word in known or word.strip() not in known else word.strip() for word in words
        ]
    else:
        line = line.strip()
        words = line.split()
        if len(words) > 2:
            ways = [(line[:i], line[i + 1 :]) for i, c in enumerate(line) if c.isspace()]
            ways = [way for way in ways if known.issuperset(way)]
            return ways[0] if len(ways) == 1 else None
    return (words[0], words[1]) if len(words) == 2 else None


def from_file(path: Path, names: Iterable[str]) -> list[Pair]:
    """The pairs of a file (see `read_pairs`) whose images are among `names`, without repeats.

    Pairs of unknown images are left out with a warning.

    Raises:
        EdmHlocError: as `read_pairs`; or no pair is left.
    """
    known = frozenset(names)
    return among(known, unique_pairs(read_pairs(path, known)), path)


def among(names: Iterable[str], pairs: Sequence[Pair], path: Path) -> list[Pair]:
    """The pairs whose images are among `names`; the others, of `path`, are left out with a warning.

    Raises:
        EdmHlocError: no pair is left.
    """
    known = frozenset(names)
    unknown = [name for name in names_in(pairs) if name not in known]
    found = [pair for pair in pairs if known.issuperset(pair)]
    if not found:
        hint = f" It names {unknown[0]!r}, which is not there." if unknown else ""
        raise EdmHlocError(
            f"{path} holds no pair of the images at hand.{hint} Names must be relative to the "
            "image folder, with '/'."
        )
    if unknown:
        logger.warning(
            "%s: %d pairs left out, %d of their images are not there: %s%s",
            path,
            len(pairs) - len(found),
            len(unknown),
            ", ".join(unknown[:5]),
            " …" if len(unknown) > 5 else "",
        )
    return found


# --------------------------------------------------------------------------- from a model


def from_model(model: Path, num_matched: int) -> list[Pair]:
    """`from_covisibility` for a model with points, `from_poses` for one without.

    Raises:
        EdmHlocError: as those two.
    """
    reconstruction = read_model(model)
    if reconstruction.num_points3D():
        return _covisible(reconstruction, model, num_matched)
    return _near(reconstruction, model, num_matched)


def from_covisibility(model: Path, num_matched: int) -> list[Pair]:
    """Each image of a COLMAP model with the `num_matched` that share most 3D points with it.

    Raises:
        EdmHlocError: the model cannot be read or no two images share a point.
    """
    return _covisible(read_model(model), model, num_matched)


def _covisible(
    reconstruction: pycolmap.Reconstruction, model: Path, num_matched: int
) -> list[Pair]:
    names, sees = visibility(reconstruction)
    shared_by_image = sees.T.tocsr()
    pairs = []
    for rows in _blocks(len(names)):
        shared = (sees[rows] @ shared_by_image).toarray()
        shared[np.arange(len(shared)), rows] = 0
        pairs += _best(names, rows, shared.astype(np.float64), num_matched, at_least=1)
    if not pairs:
        raise EdmHlocError(
            f"No two images of {model} share a 3D point. Take pairs from its poses instead."
        )
    return unique_pairs(pairs)


def from_poses(model: Path, num_matched: int, max_rotation: float = _MAX_ROTATION) -> list[Pair]:
    """Each image of a COLMAP model with the `num_matched` nearest that look about the same way.

    Args:
        model: folder of the model; it need not have points.
        num_matched: how many images each is paired with.
        max_rotation: largest angle between two cameras' orientations, degrees.

    Raises:
        EdmHlocError: the model cannot be read or no two cameras look about the same way.
    """
    return _near(read_model(model), model, num_matched, max_rotation)


def _near(
    reconstruction: pycolmap.Reconstruction,
    model: Path,
    num_matched: int,
    max_rotation: float = _MAX_ROTATION,
) -> list[Pair]:
    images = posed_images(reconstruction)
    names = list(images)
    centres = np.array([image.projection_center() for image in images.values()]).reshape(-1, 3)
    centres -= centres.mean(axis=0) if len(names) else 0.0
    rotations = np.array(
        [image.cam_from_world().rotation.matrix().ravel() for image in images.values()]
    ).reshape(-1, 9)
    min_trace = 1.0 + 2.0 * np.cos(np.deg2rad(min(max_rotation, 180.0))) - 1e-9
    pairs = []
    for rows in _blocks(len(names)):
        # trace of R_i R_jᵀ is 1 + 2 cos of the angle between the two
        far = rotations[rows] @ rotations.T < min_trace
        distance = np.linalg.norm(centres[rows, None] - centres[None], axis=2)
        distance[far] = np.inf
        distance[np.arange(len(distance)), rows] = np.inf
        pairs += _best(names, rows, -distance, num_matched, at_least=-np.finfo(np.float64).max)
    if not pairs:
        raise EdmHlocError(
            f"No two cameras of {model} look within {max_rotation:g}° of each other. "
            "Allow a larger rotation."
        )
    return unique_pairs(pairs)


def visibility(model: pycolmap.Reconstruction) -> tuple[list[str], csr_array]:
    """Names of the posed images and (images, points) int32, 1 where an image sees a point.

    Images and points are in the order of `posed_images` and of `model.points3D`.
    """
    images = posed_images(model)
    index = {image.image_id: i for i, image in enumerate(images.values())}
    tracks = [
        [index[element.image_id] for element in point.track.elements if element.image_id in index]
        for point in model.points3D.values()
    ]
    ends = np.cumsum([0] + [len(track) for track in tracks])
    rows = np.fromiter((i for track in tracks for i in track), np.int64, count=int(ends[-1]))
    seen_by = csr_array(
        (np.ones(len(rows), np.int32), rows, ends), shape=(len(tracks), len(images))
    )
    seen_by.sum_duplicates()
    seen_by.data[:] = 1  # a track may meet an image twice
    return list(images), seen_by.T.tocsr()


def _blocks(n: int) -> Iterator[np.ndarray]:
    for start in range(0, n, _BLOCK):
        yield np.arange(start, min(start + _BLOCK, n))


def _best(
    names: Sequence[str], rows: np.ndarray, scores: np.ndarray, k: int, *, at_least: float
) -> list[Pair]:
    """Pairs of the images `rows` with their up to k best of `scores` (rows, all), best first."""
    if k < 1:
        raise EdmHlocError("The number of images to match each image with must be at least 1.")
    k = min(k, scores.shape[1])
    columns = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(scores, columns, axis=1)
    order = np.lexsort((columns, -best), axis=1)
    pairs = []
    for row, places, kept in zip(rows, columns, order, strict=True):
        good = places[kept][scores[row - rows[0], places[kept]] >= at_least]
        pairs += [(names[row], names[column]) for column in good]
    return pairs
