"""Geometric verification: which matches of a pair are inliers, by RANSAC or by known poses."""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import (
    camera_from_json,
    camera_to_json,
    posed_images,
    quiet_colmap,
)
from edm_hloc.base.geometry import epipolar_errors
from edm_hloc.base.h5 import (
    AtomicH5,
    open_h5,
    reading,
    store_text,
    stored_provenance,
    stored_text,
)
from edm_hloc.base.journal import Journal
from edm_hloc.base.progress import StepProgress, track
from edm_hloc.mapping.database_reading import IdPair, cameras_by_image, keypoints_of, ray_reader
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.two_view import MATRICES, estimator

logger = logging.getLogger(__name__)

_BATCH = 256  # pairs whose matches are read at once, verified in parallel and written


@dataclass(frozen=True)
class VerificationSummary:
    """Result of geometric verification.

    Attributes:
        pairs: pairs with matches.
        verified_pairs: pairs with a two-view geometry.
        matches: matches of all pairs.
        inliers: matches that are consistent with the geometry of their pair.
        seconds: wall-clock time; 0 where it was not measured.
    """

    pairs: int
    verified_pairs: int
    matches: int
    inliers: int
    seconds: float

    @classmethod
    def of(cls, db: pycolmap.Database, seconds: float = 0.0) -> VerificationSummary:
        """Counts what a verified database holds."""
        inliers = db.read_two_view_geometry_num_inliers()[1]
        return cls(
            pairs=db.num_matched_image_pairs(),
            # COLMAP's own count includes pairs without inliers
            verified_pairs=sum(number > 0 for number in inliers),
            matches=db.num_matches(),
            inliers=sum(inliers),
            seconds=seconds,
        )


def verify_pairs(db: pycolmap.Database, options: MappingOptions, kept: Journal) -> None:
    """Estimates the two-view geometry of each matched pair by RANSAC and writes it.

    The result does not depend on the number of threads.

    Args:
        db: database with cameras, images, keypoints and matches.
        options: `max_error`, `min_inliers`, `seed` and `threads` count here.
        kept: gets each geometry as soon as it is there; what it holds is not estimated again.
    """
    estimate = estimator(cameras_by_image(db), options)
    pairs = [pycolmap.pair_id_to_image_pair(pair_id) for pair_id in db.read_num_matches()[0]]
    before = sum(_key(pair) in kept for pair in pairs)
    if before:
        logger.info("%d of %d pairs were verified before.", before, len(pairs))
    progress = StepProgress("Verifying", "pair", len(pairs), before=before)
    with progress, ThreadPoolExecutor(_threads(options)) as pool:
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            todo = [pair for pair in batch if _key(pair) not in kept]
            points = {i: keypoints_of(db, i) for i in {i for pair in todo for i in pair}}
            both = [(points[a], points[b]) for a, b in todo]
            matches: list[np.ndarray] = [db.read_matches(a, b) for a, b in todo]
            for pair, geometry in zip(todo, pool.map(estimate, todo, both, matches), strict=True):
                kept.put(_key(pair), _to_bytes(geometry))
                kept.commit()
                progress.update()
            for pair in batch:
                db.write_two_view_geometry(*pair, _from_bytes(kept.get(_key(pair))))


def _key(images: IdPair) -> str:
    return f"{images[0]} {images[1]}"


def _threads(options: MappingOptions) -> int:
    return options.threads if options.threads > 0 else os.cpu_count() or 1


_HEAD = struct.Struct("<iBd")  # configuration, which matrices there are, triangulation angle


def _to_bytes(geometry: pycolmap.TwoViewGeometry) -> bytes:
    """What `estimate_two_view_geometry` found: matrices, and inliers as (M, 2) uint32."""
    matrices = [getattr(geometry, name) for name in MATRICES]
    present = sum(1 << i for i, matrix in enumerate(matrices) if matrix is not None)
    parts = [_HEAD.pack(int(geometry.config), present, geometry.tri_angle)]
    parts += [np.asarray(m, np.float64).tobytes() for m in matrices if m is not None]
    return b"".join([*parts, np.asarray(geometry.inlier_matches, np.uint32).tobytes()])


def _from_bytes(data: bytes) -> pycolmap.TwoViewGeometry:
    config, present, angle = _HEAD.unpack_from(data)
    names = [name for i, name in enumerate(MATRICES) if present >> i & 1]
    numbers = np.frombuffer(data, np.float64, 9 * len(names), _HEAD.size)
    inliers = np.frombuffer(data, np.uint32, offset=_HEAD.size + numbers.nbytes)
    return pycolmap.TwoViewGeometry(
        config=pycolmap.TwoViewGeometryConfiguration(config),
        tri_angle=angle,
        inlier_matches=inliers.reshape(-1, 2),
        **dict(zip(names, numbers.reshape(-1, 3, 3), strict=True)),
    )


@dataclass(frozen=True)
class UnverifiedPairs:
    """The pairs of a database that are not verified yet, for other processes.

    Attributes:
        db: database with cameras, images, keypoints and matches.
        options: as for `verify_pairs`.
        kept: holds the geometries that are there.
        made_from: fingerprint of all that they depend on.
    """

    db: pycolmap.Database
    options: MappingOptions
    kept: Journal
    made_from: str

    def pairs(self) -> dict[str, IdPair]:
        """The ids of the two images of each pair, by the pair's key in `kept`."""
        every = map(pycolmap.pair_id_to_image_pair, self.db.read_num_matches()[0])
        return {_key(pair): pair for pair in every if _key(pair) not in self.kept}

    def write(self, path: Path, pairs: Sequence[IdPair]) -> None:
        """Writes what `verify_stored` needs for some of the pairs.

        Raises:
            EdmHlocError: the file cannot be written.
        """
        cameras = cameras_by_image(self.db)
        used = sorted({image_id for pair in pairs for image_id in pair})
        with AtomicH5(path, self.options.of_verification()) as file:
            store_text(
                file.h5, "cameras", json.dumps({i: camera_to_json(cameras[i]) for i in used})
            )
            for image_id in used:
                file.h5[f"keypoints/{image_id}"] = self.db.read_keypoints(image_id)[:, :2]
            for a, b in pairs:
                file.h5[f"matches/{a}/{b}"] = self.db.read_matches(a, b)


def verify_stored(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """What `verify_pairs` keeps of pairs in a file of `UnverifiedPairs.write`, to the bit.

    Args:
        path: of the file.
        keys: of the pairs; see `UnverifiedPairs.pairs`.

    Raises:
        EdmHlocError: the file is missing or damaged.
    """
    with open_h5(path) as h5, reading(path):
        options = MappingOptions(**stored_provenance(h5))  # type: ignore[arg-type]
        stored = json.loads(stored_text(h5, "cameras"))
        cameras = {int(i): camera_from_json(camera) for i, camera in stored.items()}
        points = {int(i): np.asarray(h5["keypoints"][i], np.float64) for i in h5["keypoints"]}
        matches = {}
        for key in keys:
            a, b = map(int, key.split())
            matches[a, b] = np.asarray(h5[f"matches/{a}/{b}"])
    estimate = estimator(cameras, options)
    both = [(points[a], points[b]) for a, b in matches]
    with ThreadPoolExecutor(_threads(options)) as pool, quiet_colmap():
        found = pool.map(estimate, matches, both, matches.values())
        for pair, geometry in zip(track(matches, "Verifying", "pair"), found, strict=True):
            yield _key(pair), _to_bytes(geometry)


def verify_known_poses(
    db: pycolmap.Database,
    model: pycolmap.Reconstruction,
    uncertainty: Mapping[int, float],
    options: MappingOptions,
) -> None:
    """Writes the two-view geometry of each matched pair from the poses of a model.

    A match is an inlier where both keypoints lie within `max_error` times the uncertainty of their
    image's keypoints of their epipolar lines.

    Args:
        db: database with keypoints and matches.
        model: cameras and poses, with the ids of the database.
        uncertainty: standard deviation of the keypoints of each image in pixels, by image id.
        options: `max_error` counts here.
    """
    camera_of = {i.image_id: model.cameras[i.camera_id] for i in posed_images(model).values()}
    pose_of = {image_id: model.images[image_id].cam_from_world() for image_id in camera_of}
    threshold = {
        image_id: camera_of[image_id].cam_from_img_threshold(options.max_error * pixels)
        for image_id, pixels in uncertainty.items()
    }

    rays_of = ray_reader(db, camera_of)
    pairs = sorted(pycolmap.pair_id_to_image_pair(i) for i in db.read_num_matches()[0])
    for a, b in track(pairs, "Verifying", "pair"):
        matches: np.ndarray = db.read_matches(a, b)
        cam2_from_cam1 = pose_of[b] * pose_of[a].inverse()
        E = pycolmap.essential_matrix_from_pose(cam2_from_cam1)
        rays = rays_of(a)[matches[:, 0]], rays_of(b)[matches[:, 1]]
        error_a, error_b = epipolar_errors(*rays, E)
        geometry = pycolmap.TwoViewGeometry(
            # COLMAP's triangulation ignores pairs whose configuration is UNDEFINED, without a word
            config=pycolmap.TwoViewGeometryConfiguration.CALIBRATED,
            E=E,
            cam2_from_cam1=cam2_from_cam1,
            inlier_matches=matches[(error_a <= threshold[a]) & (error_b <= threshold[b])],
        )
        db.write_two_view_geometry(a, b, geometry)
