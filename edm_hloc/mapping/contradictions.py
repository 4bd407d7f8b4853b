"""Photos that a model has where their own verified matches contradict it.

Of opposite walls that look alike a model may have some photos before the wrong one. Photos side by
side then have many matches that do not fit their poses. Wrong pairs, of places that look alike in a
model that is right, have few beside the right pairs of the same photos.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import pycolmap

from edm_hloc.base.colmap import open_database, posed_images, verified_pairs
from edm_hloc.base.geometry import epipolar_errors, essential_matrix
from edm_hloc.mapping.database_reading import IdPair, ray_reader

MIN_FITTING = 0.85
"""Share of the verified matches that fit a model, below which it is probably wrong. Models of 5 to
80 photos that are right have 0.92 and more."""

_CONSISTENT = 0.5  # share of the matches of a pair that fit the poses of a model, if the pair does
_MAX_ERROR = 4.0  # px, of a match that fits the poses of a model
_CONTRADICTS = 0.3  # share of the matches of a pair that fit, below which it contradicts the poses
_DOUBTED = 0.2  # share of such pairs in what a photo's pairs weigh. In models that are right it is
# at most 0.08, and above 0.5 in five models of two floors whose walls look alike
_MOST_FIT = 0.8  # share of the matches of the middle photo that fit: else none stands out
_AGREES = 0.75  # of that share: photos of which fewer fit do not agree with the others. In models
# that are right each has 0.82 of it and more, in those of which a part is elsewhere some below 0.73
_STRONG = 0.15  # of the matches of a photo's best pair, in the pairs that connect parts of a model
_STRONGEST = 0.5  # the same, of a pair that may be right though more matches contradict it
_FEW = 3  # photos: where fewer are misplaced, those that they alone connect count as well
_OUTVOTED = 3.0  # times as many matches that contradict a connection as there are that make it. Of
# right models only those have more whose things repeat all along, of folded ones a third
_LEAST_SHARE = 0.02  # of the photos of a model: fewer may be by chance


def strongest_pairs(counts: Mapping[IdPair, int], share: float) -> set[IdPair]:
    """The pairs that have at least a share of the matches of the best pair of one of their photos.

    Args:
        counts: number of matches of each pair, by the ids of its images.
        share: in [0, 1].
    """
    best: dict[int, int] = defaultdict(int)
    for pair, count in counts.items():
        for image_id in pair:
            best[image_id] = max(best[image_id], count)
    return {(a, b) for (a, b), n in counts.items() if n >= share * min(best[a], best[b])}


def fitting_matches(counts: Mapping[IdPair, int], fits: Mapping[IdPair, float]) -> dict[int, float]:
    """By the id of each image, the mean share of the matches of its pairs that fit the poses.

    Args:
        counts: number of matches of each pair. A pair weighs their square: pairs of other places
            may be many, but have fewer matches each.
        fits: of the pairs that count, what `fitting_shares` gives.
    """
    weight, total = Counter[int](), defaultdict[int, float](float)
    for pair, share in fits.items():
        for image_id in pair:
            weight[image_id] += counts[pair] ** 2
            total[image_id] += share * counts[pair] ** 2
    return {image_id: total[image_id] / of_all for image_id, of_all in weight.items()}


def doubtful_shares(counts: Mapping[IdPair, int], fits: Mapping[IdPair, float]) -> dict[int, float]:
    """By the id of each image, how much its pairs contradict the poses, in [0, 1].

    Args:
        counts, fits: as for `fitting_matches`.
    """
    # The mean of what is 1 for a pair that contradicts them, and else 0.
    return fitting_matches(counts, {p: float(share < _CONTRADICTS) for p, share in fits.items()})


@dataclass(frozen=True)
class Contradictions:
    """How far models are contradicted by the verified matches of their photos.

    Attributes:
        misplaced: names of the photos without which no photo's matches contradict a model, sorted.
        fitting: share in [0, 1] of the verified matches between photos of one model that fit their
            poses; 1 without any matches.
        contested: names of photos of a model that few matches connect with its others, while three
            times as many contradict their place, sorted: of those it is the worst part.
    """

    misplaced: tuple[str, ...]
    fitting: float
    contested: tuple[str, ...] = ()


def find_contradictions(
    models: Iterable[pycolmap.Reconstruction],
    database: Path,
    min_inliers: int,
    left_out: Collection[tuple[str, str]] = (),
) -> Contradictions:
    """Finds photos that a model has in the wrong place, and how many matches fit the models.

    In each model one photo after another is taken whose pairs contradict the poses most, until they
    do so with less than a fifth of the weight of any photo's pairs; then those of whose matches far
    fewer fit the poses than of others, as those of photos that wrong pairs have moved together. Of
    two photos that contradict each other one is named, not necessarily the one that is wrong. Where
    it is but one or two, as where a ring of photos has folded, those that they alone connect with
    the others count as well. None is named of a model of which so few are concerned that it may be
    by chance.

    Args:
        models: with poses.
        database: with the keypoints and verified pairs of their photos, by their names.
        min_inliers: pairs with fewer verified matches do not count.
        left_out: names of the photos of pairs that are known to show different places; they are not
            in `Contradictions.fitting`.
    """
    with open_database(database) as db:
        counts = verified_pairs(db, max(1, min_inliers))
        names = {image.image_id: image.name for image in db.read_all_images()}
        apart = {frozenset(pair) for pair in left_out}
        found, contested = set[int](), set[int]()
        fitting = total = 0.0
        for model in models:
            fits = fitting_shares(db, model, counts)
            taken = _taken(counts, fits)
            if 0 < len(taken) < _FEW:
                taken |= _cut_off(counts, fits)
            if len(taken) >= _LEAST_SHARE * model.num_reg_images():
                found |= taken
            contested |= _contested(counts, fits)
            of_scene = [p for p in fits if frozenset(names[i] for i in p) not in apart]
            fitting += sum(counts[pair] * fits[pair] for pair in of_scene)
            total += sum(counts[pair] for pair in of_scene)
    return Contradictions(
        misplaced=tuple(sorted(names[i] for i in found)),
        fitting=fitting / total if total else 1.0,
        contested=tuple(sorted(names[i] for i in contested)),
    )


def misplaced_photos(
    models: Iterable[pycolmap.Reconstruction], database: Path, min_inliers: int
) -> tuple[str, ...]:
    """Names of photos that models have in the wrong place, see `find_contradictions`."""
    return find_contradictions(models, database, min_inliers).misplaced


def weakest_points(
    models: Iterable[pycolmap.Reconstruction], database: Path, min_inliers: int
) -> tuple[float, bool]:
    """Where models agree least with the verified matches.

    Args:
        models, database, min_inliers: as for `find_contradictions`.

    Returns:
        Of the photo whose matches fit the poses least, the share that does, in [0, 1]; and whether
        a part that no strong pair of its photos connects with the others has more matches with
        these that contradict its place than that fit it.
    """
    least, loose = 1.0, False
    with open_database(database) as db:
        counts = verified_pairs(db, max(1, min_inliers))
        for model in models:
            fits = fitting_shares(db, model, counts)
            least = min([least, *fitting_matches(counts, fits).values()])
            strong = strongest_pairs({pair: counts[pair] for pair in fits}, _STRONGEST)
            loose |= any(link not in strong for link, _ in _outvoted(counts, fits, 1.0))
    return least, loose


def _taken(counts: Mapping[IdPair, int], fits: Mapping[IdPair, float]) -> set[int]:
    """Ids of the images that are taken until the pairs of none are doubtful any more."""
    left, taken = dict(fits), set[int]()

    def take(image_id: int) -> None:
        taken.add(image_id)
        for pair in [pair for pair in left if image_id in pair]:
            del left[pair]

    while doubts := doubtful_shares(counts, left):
        worst = max(doubts, key=lambda i: doubts[i])
        if doubts[worst] < _DOUBTED:
            break
        take(worst)
    middle = float(np.median([*fitting_matches(counts, fits).values()] or [0.0]))
    while middle >= _MOST_FIT and (fitting := fitting_matches(counts, left)):
        worst = min(fitting, key=lambda i: fitting[i])
        if fitting[worst] >= _AGREES * middle:
            break
        take(worst)
    return taken


def _cut_off(counts: Mapping[IdPair, int], fits: Mapping[IdPair, float]) -> set[int]:
    """Ids of the images all of whose strong pairs with a larger part of the model contradict it."""
    strong = strongest_pairs({pair: counts[pair] for pair in fits}, _STRONG)
    sound = nx.Graph(pair for pair in strong if fits[pair] >= _CONTRADICTS)
    cut = set[int]()
    for group in nx.connected_components(nx.Graph(strong)):
        parts = nx.connected_components(sound.subgraph(group))
        cut |= group - max(parts, key=len, default=set())
    return cut


def _contested(counts: Mapping[IdPair, int], fits: Mapping[IdPair, float]) -> set[int]:
    """Ids of the images of the part that is outvoted most, if any is."""
    outvoted = _outvoted(counts, fits, _OUTVOTED)
    return outvoted[0][1] if outvoted else set()


def _outvoted(
    counts: Mapping[IdPair, int], fits: Mapping[IdPair, float], times: float
) -> list[tuple[IdPair, set[int]]]:
    """Parts of a model whose place more matches contradict than fit, the worst first.

    They are what a maximum spanning tree of the pairs that fit falls into without one of its pairs,
    the link, and so many times as many matches contradict the poses as fit across it.

    Returns:
        The link, and the ids of the images of the smaller part.
    """
    graph = nx.Graph()
    for (a, b), share in fits.items():
        if share > _CONSISTENT:
            graph.add_edge(a, b, weight=counts[a, b])
    tree = nx.maximum_spanning_tree(graph)
    number = {image_id: k for k, image_id in enumerate(tree)}
    some = [p for p, share in fits.items() if share > _CONSISTENT or share < _CONTRADICTS]
    some = [(a, b) for a, b in some if a in number and b in number]
    ends = np.array([(number[a], number[b]) for a, b in some], int).reshape(-1, 2)
    agree = np.array([counts[pair] if fits[pair] > _CONSISTENT else 0 for pair in some])
    against = np.array([counts[pair] if fits[pair] < _CONTRADICTS else 0 for pair in some])
    found = []
    for images in nx.connected_components(tree):
        below = {image_id: {image_id} for image_id in images}
        for parent, image_id in reversed(list(nx.bfs_edges(tree, min(images)))):
            part = below.pop(image_id)
            inside = np.zeros(len(number), bool)
            inside[[number[i] for i in part]] = True
            across = inside[ends[:, 0]] != inside[ends[:, 1]]
            ratio = against[across].sum() / agree[across].sum()
            if ratio > times:
                link = (min(parent, image_id), max(parent, image_id))
                found.append((ratio, link, min(part, images - part, key=len)))
            below[parent] |= part
    return [(link, part) for _, link, part in sorted(found, key=lambda each: -each[0])]


def fitting_shares(
    db: pycolmap.Database, model: pycolmap.Reconstruction, pairs: Iterable[IdPair]
) -> dict[IdPair, float]:
    """Of pairs of images that a model has, the share of their verified matches that fits its poses.

    A match fits that lies on the epipolar lines, before both cameras.

    Args:
        db: database with the keypoints and verified pairs.
        model: with poses, of images of the same names; their ids may differ.
        pairs: ids of the images in the database.

    Returns:
        The shares in [0, 1] of the pairs that are in the model.
    """
    posed = posed_images(model)
    images = {i.image_id: posed[i.name] for i in db.read_all_images() if i.name in posed}

    rays = ray_reader(db, {i: model.cameras[image.camera_id] for i, image in images.items()})
    shares = {}
    for a, b in sorted(pairs):
        if a in images and b in images:
            matches = db.read_two_view_geometry(a, b).inlier_matches
            x0, x1 = rays(a)[matches[:, 0]], rays(b)[matches[:, 1]]
            shares[a, b] = _fitting_share((images[a], images[b]), model, x0, x1)
    return shares


def consistent_pairs(
    db: pycolmap.Database, model: pycolmap.Reconstruction, pairs: Iterable[IdPair]
) -> set[IdPair]:
    """The pairs most of whose matches fit the poses of a model, see `fitting_shares`."""
    return {p for p, share in fitting_shares(db, model, pairs).items() if share > _CONSISTENT}


def _fitting_share(
    images: Sequence[pycolmap.Image],
    model: pycolmap.Reconstruction,
    x0: np.ndarray,
    x1: np.ndarray,
) -> float:
    """The share of matched rays (M, 3) of two images that fits their poses."""
    first, second = images
    motion = (second.cam_from_world() * first.cam_from_world().inverse()).matrix()
    errors = epipolar_errors(x0, x1, essential_matrix(motion))
    focal = [model.cameras[image.camera_id].mean_focal_length() for image in images]
    near = (errors[0] * focal[0] < _MAX_ERROR) & (errors[1] * focal[1] < _MAX_ERROR)
    return float((near & _in_front(motion, x0, x1)).mean())


def _in_front(motion: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> np.ndarray:
    """(N,) whether matched rays (N, 3) meet before both cameras; (3, 4) pose of the second."""
    turned, t = x0 @ motion[:, :3].T, motion[:, 3]
    # depths d0, d1 with d0 · turned + t = d1 · x1, by least squares
    aa, bb, ab = (turned**2).sum(1), (x1**2).sum(1), (turned * x1).sum(1)
    at, bt = turned @ t, x1 @ t
    det = aa * bb - ab**2
    return np.asarray((ab * bt - bb * at > -1e-9 * det) & (aa * bt - ab * at > -1e-9 * det))
