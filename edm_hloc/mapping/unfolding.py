"""Pairs of photos of places that look alike, left out where a model has folded because of them.

Before the mapping nothing but the matches can tell. What two photos of one place should both show
they do: where a photo's keypoints are confirmed by others and the pair's matches carry them into
the other photo, that one has matches there, too. Photos of two equal walls have them on the walls,
not at the door that only one of the walls has; what is seen in few photos counts most.

Photos with much depth, or taken from far apart, fail this as well, so pairs are left out only after
`look_alikes` has found that the model has folded, and a model without them is taken only if it
registers the photos, has no such signs, and has the photos that disagreed at different places. If
nothing but such pairs connects the places, each of them becomes a model of its own. An object that
was turned before a background has the same signs; there the pairs that are left fit the model that
is there, and it stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap

from edm_hloc.base.colmap import open_database, posed_images
from edm_hloc.mapping.contradictions import consistent_pairs
from edm_hloc.mapping.database_reading import IdPair, cameras_by_image
from edm_hloc.mapping.look_alikes import stay_together
from edm_hloc.mapping.parts import copy_images
from edm_hloc.mapping.tracks import support
from edm_hloc.mapping.verified_matches import VerifiedMatches, read_verified_matches

logger = logging.getLogger(__name__)

_CELLS = 32  # along the longer side of a photo
_MARGIN = 0.04  # of the longer side: nearer to the border a point may be outside
_CONFIRMED = 2  # photos that confirm a keypoint which another one should show
_RARITY = 2.0  # exponent: what n photos confirm weighs n to minus this
_DETERMINED = 3  # matches that determine an affine map
_CONNECTED = 0.9  # of the photos of the folded model that the pairs left must connect
_SLACK = 0.05  # below the share that connects them
_STAYED = 0.2  # of the pairs that disagreed: more at one place in the new model, and it was right
_GAP = 0.15  # between the shares of pairs of one place and those of places that look alike

REGISTERED = 0.9
"""Share of the photos of a folded model that one without a fold must have."""


def shown_by_both(db: pycolmap.Database, min_inliers: int) -> dict[IdPair, float]:
    """How much of what both photos of a verified pair should show both do, from matches alone.

    Args:
        db: database with verified pairs.
        min_inliers: pairs with fewer verified matches do not count.

    Returns:
        By the ids of the images, the smaller first, the smaller of the two shares in [0, 1].
    """
    found = read_verified_matches(db, max(_DETERMINED, min_inliers))
    camera_of = cameras_by_image(db)
    of_image = [camera_of[image_id] for image_id in found.number]
    sizes = np.array([(camera.width, camera.height) for camera in of_image])
    confirmed = support(found.matches, found.start[-1]) > 0
    degree = np.bincount(found.matches[confirmed].ravel(), minlength=found.start[-1])
    shares = {}
    for pair, of_pair in found.rows.items():
        matches, its = found.matches[of_pair], confirmed[of_pair]
        first, second = (found.number[image_id] for image_id in pair)
        own = matches[its].ravel()  # what a pair confirms itself is no evidence for it
        degree[own] -= 1  # and back again: a copy for each pair would be pairs x all keypoints
        both = (
            _share(found, degree, first, matches, sizes[[first, second]]),
            _share(found, degree, second, matches[:, ::-1], sizes[[second, first]]),
        )
        degree[own] += 1
        shares[pair] = min(both)
    return shares


def _share(
    found: VerifiedMatches, others: np.ndarray, first: int, matches: np.ndarray, sizes: np.ndarray
) -> float:
    """The share of what the second photo should show of the first that it does.

    Args:
        found: all matches.
        others: (N,) number of photos, other than the second, that confirm each keypoint.
        first: number of the first photo.
        matches: (M, 2) of the pair.
        sizes: (2, 2) widths and heights of the two photos.
    """
    moved = _affine(*(found.points[side].astype(np.float64) for side in matches.T))
    keypoints = np.arange(found.start[first], found.start[first + 1])
    there = np.column_stack([found.points[keypoints], np.ones(len(keypoints))]) @ moved
    margin = _MARGIN * sizes[1].max()
    inside = ((there > margin) & (there < sizes[1] - margin)).all(axis=1)
    expected = keypoints[inside & (others[keypoints] >= _CONFIRMED)]
    side = sizes[0].max() / _CELLS
    columns, rows = (np.ceil(sizes[0] / side)).astype(int)

    def cells_of(which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = (found.points[which] / side).astype(int).T
        return np.clip(y, 0, rows - 1), np.clip(x, 0, columns - 1)

    photos = np.zeros((rows, columns), np.float32)
    np.maximum.at(photos, cells_of(keypoints), others[keypoints].astype(np.float32))
    around = np.maximum(np.asarray(cv2.dilate(photos, np.ones((3, 3), np.uint8))), 1)
    should, does = np.zeros((rows, columns), bool), np.zeros((rows, columns), bool)
    should[cells_of(expected)] = True
    does[cells_of(matches[:, 0])] = True
    weight = around[should] ** -_RARITY
    return float(weight[does[should]].sum() / weight.sum()) if len(weight) else 0.0


def _affine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(3, 2) affine map of most points (M, 2) to others (M, 2)."""
    ones = np.column_stack([x, np.ones(len(x))])
    use = np.ones(len(x), bool)
    for _ in range(4):
        moved = np.linalg.lstsq(ones[use], y[use], rcond=None)[0]
        error = np.linalg.norm(ones @ moved - y, axis=1)
        use = error <= np.median(error)
    return np.asarray(moved)


def trusted_pairs(shares: Mapping[IdPair, float], images: Sequence[int]) -> set[IdPair]:
    """The pairs of the largest shares that connect nearly all images of a model.

    Args:
        shares: see `shown_by_both`.
        images: ids of the images.
    """
    inside = set(images)
    ordered = sorted((p for p in shares if inside.issuperset(p)), key=lambda p: -shares[p])
    last = _connecting(ordered, images)
    if last is None:
        return set(ordered)
    return {p for p in ordered if shares[p] >= shares[last] - _SLACK}


def pairs_of_places(
    shares: Mapping[IdPair, float], counts: Mapping[IdPair, int], conflicts: Sequence[IdPair]
) -> set[IdPair] | None:
    """The pairs of clearly larger shares than most that disagree, connected or not.

    A photo that has no such pair keeps the one with most matches, as nothing tells its share.

    Args:
        shares: see `shown_by_both`.
        counts: verified matches of each pair.
        conflicts: pairs of images that disagree in a model of all pairs.

    Returns:
        None if no gap parts the larger shares from the others.
    """
    disagree = [shares.get((min(pair), max(pair)), 0.0) for pair in conflicts]
    low = float(np.median(disagree))
    above = np.unique([low, *(share for share in shares.values() if share > low)])
    gaps = np.diff(above)
    if not len(gaps) or gaps.max() < _GAP:
        return None
    limit = above[1 + gaps.argmax()]
    kept = {pair for pair, share in shares.items() if share >= limit}
    most: dict[int, IdPair] = {}
    for pair in sorted(shares, key=lambda pair: counts[pair]):
        most.update(dict.fromkeys(pair, pair))
    connected = {image_id for pair in kept for image_id in pair}
    return kept | {pair for image_id, pair in most.items() if image_id not in connected}


def stay(models: Iterable[pycolmap.Reconstruction], conflicts: Sequence[IdPair]) -> bool:
    """Whether many of the photos that disagreed are at one place in one of other models, too."""
    together = sum(stay_together(model, conflicts) for model in models)
    return together > _STAYED * len(conflicts)


def _connecting(pairs: Sequence[IdPair], images: Sequence[int]) -> IdPair | None:
    """The pair with which nearly all images are connected, if pairs are taken in their order."""
    root = {image_id: image_id for image_id in images}
    size = dict.fromkeys(images, 1)

    def find(image_id: int) -> int:
        while root[image_id] != image_id:
            image_id = root[image_id]
        return image_id

    for pair in pairs:
        a, b = map(find, pair)
        if a != b:
            root[a], size[b] = b, size[a] + size[b]
            if size[b] >= _CONNECTED * len(images):
                return pair
    return None


@dataclass(frozen=True)
class Unfolded:
    """What is left of the pairs of a folded model.

    Attributes:
        database: the images and the verified pairs whose matches fit the poses of a model that has
            the photos that disagreed at different places.
        look_alikes: names of the photos of the other pairs: they probably show different places.
    """

    database: Path
    look_alikes: tuple[tuple[str, str], ...]


def unfold(
    database: Path,
    folder: Path,
    folded: pycolmap.Reconstruction,
    conflicts: Sequence[IdPair],
    mapping: Callable[[Path], pycolmap.Reconstruction | None],
    min_inliers: int,
) -> Unfolded | None:
    """Maps once more without the pairs that look alike.

    Args:
        database: COLMAP database with verified pairs.
        folder: for other databases.
        folded: a model with the signs of a fold.
        conflicts: ids of the images of the pairs that disagree in it.
        mapping: gives the largest model of a database. It need not be complete.
        min_inliers: pairs with fewer verified matches are left out.

    Returns:
        None if the photos that disagreed stay at one place, or if too few are registered.
    """
    images = {image.image_id for image in posed_images(folded).values()}
    with open_database(database) as db:
        shares = shown_by_both(db, min_inliers)
        kept = trusted_pairs(shares, sorted(images))
        # Where the kept pairs fit the model already, they give the same one once more.
        fit = consistent_pairs(db, folded, kept)
        if len(kept) == len(shares) or _connecting(sorted(fit), sorted(images)) is not None:
            return None
        trusted = folder / f"trusted-{database.name}"
        copy_images(db, trusted, images, sorted(kept))
    logger.info(
        "Mapping once more, without %d of %d pairs of photos that may look alike.",
        len(shares) - len(kept),
        len(shares),
    )
    model = mapping(trusted)
    if model is None or model.num_reg_images() < REGISTERED * len(images):
        return None
    if stay([model], conflicts):
        return None
    name = {image.image_id: image.name for image in posed_images(model).values()}
    consistent = folder / f"consistent-{database.name}"
    with open_database(database) as db:
        fitting = consistent_pairs(db, model, shares) | kept
        copy_images(db, consistent, {i.image_id for i in db.read_all_images()}, sorted(fitting))
    left_out = sorted(pair for pair in shares.keys() - fitting if set(pair) <= name.keys())
    return Unfolded(consistent, tuple((name[a], name[b]) for a, b in left_out))
