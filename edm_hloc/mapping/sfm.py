"""Keypoints and matches → COLMAP database → verified pairs → model; or points for known poses."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pycolmap
from tqdm import tqdm

from edm_hloc.base.colmap import (
    ModelStatistics,
    open_database,
    posed_images,
    quiet_colmap,
    read_model,
)
from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.geometry import epipolar_errors
from edm_hloc.images.cameras import CameraOptions, photo_cameras
from edm_hloc.images.find import HEIC_SUFFIXES
from edm_hloc.images.load import load_image
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.mapping.mappers import MappingOptions, find_models, incremental_options
from edm_hloc.pairs.rules import Pair, unique_pairs

logger = logging.getLogger(__name__)

_MODEL_FILES = {
    f"{part}{end}"
    for part in ("cameras", "images", "points3D", "rigs", "frames")
    for end in (".bin", ".txt")
}
# Of hundreds of wrong matches RANSAC finds 2 to 10 % that agree by chance: more than `min_inliers`.
_MIN_INLIER_RATIO = 0.15
_BATCH = 256  # pairs verified between two visits to the database
_CACHED_IMAGES = 256  # whose rays stay in memory, where poses are known: 24 bytes a keypoint
_REFINED = 100_000  # points refined at a time at least, where poses are known


@dataclass(frozen=True)
class ImportSummary:
    """What went into a database.

    Attributes:
        images: images with keypoints.
        cameras: cameras they share.
        prior_focal: images whose focal length is known or in their EXIF data.
        pairs: pairs with at least one match.
        matches: matches of all pairs.
        missing_pairs: pairs asked for of which there are no matches in the file, or no photo.
        skipped: photos that cannot be read, with the reason.
    """

    images: int
    cameras: int
    prior_focal: int
    pairs: int
    matches: int
    missing_pairs: int
    skipped: dict[str, str]


@dataclass(frozen=True)
class VerificationSummary:
    """What geometric verification left of the matches.

    Attributes:
        pairs: pairs with matches.
        verified_pairs: pairs that agree with one geometry.
        matches: matches of all pairs.
        inliers: matches that agree with their pair's geometry.
        seconds: wall-clock time; 0 where it was not measured.
    """

    pairs: int
    verified_pairs: int
    matches: int
    inliers: int
    seconds: float


@dataclass(frozen=True)
class MappingSummary:
    """The model that was written and what is missing from it.

    Attributes:
        statistics: registered images, points, track length, reprojection error.
        images: images in the database.
        unregistered: those that are not in the model, sorted.
        components: registered images of each separate model found, the one written first.
        seconds: wall-clock time.
        undistorted: the photos did not tell the lens's distortion, so that it was left out.
    """

    statistics: ModelStatistics
    images: int
    unregistered: tuple[str, ...]
    components: tuple[int, ...]
    seconds: float
    undistorted: bool = False


# --------------------------------------------------------------------------- database


def to_colmap(keypoints: np.ndarray) -> np.ndarray:
    """(N, 2) from hloc's frame, top-left pixel's centre at (0, 0), to COLMAP's, where it is at
    (0.5, 0.5); float32 as COLMAP stores them."""
    return np.ascontiguousarray(keypoints[:, :2], dtype=np.float32) + np.float32(0.5)


@contextlib.contextmanager
def _new_database(path: Path, *sources: Path) -> Iterator[pycolmap.Database]:
    """A database that is filled in one transaction and appears at `path` whole or not at all.

    Args:
        sources: files whose content goes into it. A disk that fills up in a transaction ends the
            whole process, so there must be room beforehand.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The database takes 0.3 to 0.6 of its sources, and its log as much again.
        needed = 1.5 * sum(source.stat().st_size for source in sources if source.exists())
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise EdmHlocError(f"Cannot write {path}: {error.strerror}.") from error
    if free < needed:
        raise EdmHlocError(
            f"Cannot write {path}: it may need {needed / 2**20:,.0f} MiB of disk space and there "
            f"are {free / 2**20:,.0f}. Free some, then run again: what is already stored is kept."
        )
    temporary = path.with_name(f".{path.name}.tmp")
    leftovers = [
        temporary.with_name(temporary.name + end) for end in ("", "-wal", "-shm", "-journal")
    ]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    try:
        with quiet_colmap():
            database = pycolmap.Database.open(temporary)
            try:
                with pycolmap.DatabaseTransaction(database):
                    yield database
            finally:
                database.close()
        temporary.replace(path)
    except BaseException:
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        raise


def build_database(
    database: Path,
    images: Path,
    features: Path,
    matches: Path,
    pairs: Iterable[Pair],
    cameras: CameraOptions | None = None,
    options: MappingOptions | None = None,
) -> tuple[ImportSummary, VerificationSummary]:
    """Makes a COLMAP database with verified pairs; an older one is replaced when it is complete.

    Args:
        database: the file to write.
        images: folder of the photos; only their headers are read.
        features: H5 file of keypoints, hloc's frame.
        matches: H5 file of matches.
        pairs: pairs to import; (b, a) repeats (a, b).
        cameras: which photos share a camera.
        options: `max_error`, `min_inliers`, `seed` and `threads` count here.

    Raises:
        EdmHlocError: a file cannot be read, files do not belong together, no photo can be read.
    """
    options = options or MappingOptions()
    cameras = cameras or CameraOptions()
    with (
        _new_database(Path(database), Path(features), Path(matches)) as db,
        FeatureReader(features) as keypoints,
    ):
        names = keypoints.names()
        camera_of, skipped = photo_cameras(Path(images), names, cameras)
        for reason in skipped.values():
            logger.warning("Skipping a photo: %s", reason)
        if not camera_of:
            raise EdmHlocError(
                f"None of the {len(names)} images in {features} can be read in {images}. "
                "Is it the folder they were matched in?"
            )
        for camera in {c.camera_id: c for c in camera_of.values()}.values():
            db.write_camera(camera, use_camera_id=True)
            rig = pycolmap.Rig(rig_id=camera.camera_id)
            rig.add_ref_sensor(camera.sensor_id)
            db.write_rig(rig, use_rig_id=True)
        ids = {}
        for image_id, (name, camera) in enumerate(camera_of.items(), start=1):
            ids[name] = image_id
            image = pycolmap.Image(name=name, image_id=image_id, camera_id=camera.camera_id)
            db.write_image(image, use_image_id=True)
            frame = pycolmap.Frame(frame_id=image_id, rig_id=camera.camera_id)
            frame.add_data_id(image.data_id)
            db.write_frame(frame, use_frame_id=True)
        missing = _import_features(db, keypoints, matches, ids, camera_of, pairs)
        imported = ImportSummary(
            images=len(ids),
            cameras=db.num_cameras(),
            prior_focal=sum(camera.has_prior_focal_length for camera in camera_of.values()),
            pairs=db.num_matched_image_pairs(),
            matches=db.num_matches(),
            missing_pairs=missing,
            skipped=skipped,
        )
        start = time.monotonic()
        _verify(db, options)
        return imported, _verification(db, time.monotonic() - start)


def _import_features(
    db: pycolmap.Database,
    features: FeatureReader,
    matches: Path,
    ids: Mapping[str, int],
    cameras: Mapping[str, pycolmap.Camera],
    pairs: Iterable[Pair],
) -> int:
    """Writes keypoints and matches; gives the number of pairs without matches in the file."""
    number = {}
    for name in tqdm(ids, desc="Importing keypoints", unit="photo", disable=None):
        if name not in features:
            continue
        keypoints = to_colmap(features.keypoints(name))
        size = (cameras[name].width, cameras[name].height)
        if len(keypoints) and (
            keypoints.min() < -1 or np.any(keypoints.max(axis=0) > np.add(size, 1))
        ):
            raise EdmHlocError(
                f"Keypoints of {name} in {features.path} lie outside its {size[0]} × {size[1]} "
                "pixels. Were they found in photos of another size?"
            )
        number[name] = len(keypoints)
        db.write_keypoints(ids[name], keypoints)
    missing = 0
    with MatchReader(matches) as reader:
        for pair in tqdm(unique_pairs(pairs), desc="Importing matches", unit="pair", disable=None):
            if not number.keys() >= set(pair) or pair not in reader:
                missing += 1
                continue
            found = np.unique(reader.matches(*pair)[0], axis=0)
            if not len(found):
                continue
            if found.min() < 0 or np.any(found.max(axis=0) >= [number[name] for name in pair]):
                raise EdmHlocError(
                    f"Matches of {pair} in {matches} are of keypoints that {features.path} does "
                    "not hold: take the two files of one run."
                )
            db.write_matches(ids[pair[0]], ids[pair[1]], found.astype(np.uint32))
    return missing


def _cores(options: MappingOptions) -> int:
    return options.threads if options.threads > 0 else os.cpu_count() or 1


def _verify(db: pycolmap.Database, options: MappingOptions) -> None:
    """Finds the geometry of each matched pair by RANSAC; does not depend on the number of cores."""
    two_view = pycolmap.TwoViewGeometryOptions()
    two_view.min_num_inliers = options.min_inliers
    two_view.ransac.max_error = options.max_error
    two_view.ransac.random_seed = options.seed
    cameras = {camera.camera_id: camera for camera in db.read_all_cameras()}
    camera_of = {image.image_id: cameras[image.camera_id] for image in db.read_all_images()}

    def points_of(image_id: int) -> np.ndarray:
        return db.read_keypoints(image_id)[:, :2].astype(np.float64)

    def estimate(
        images: tuple[int, int], points: tuple[np.ndarray, np.ndarray], matches: np.ndarray
    ) -> pycolmap.TwoViewGeometry:
        a, b = (camera_of[i] for i in images)
        geometry = pycolmap.estimate_two_view_geometry(
            a, points[0], b, points[1], matches, two_view
        )
        # COLMAP's own option of this name does nothing here
        if len(geometry.inlier_matches) < _MIN_INLIER_RATIO * len(matches):
            return pycolmap.TwoViewGeometry(config=pycolmap.TwoViewGeometryConfiguration.DEGENERATE)
        return geometry

    pairs = [pycolmap.pair_id_to_image_pair(pair_id) for pair_id in db.read_num_matches()[0]]
    progress = tqdm(total=len(pairs), desc="Verifying", unit="pair", disable=None)
    with progress, ThreadPoolExecutor(_cores(options)) as pool:
        for start in range(0, len(pairs), _BATCH):
            batch = pairs[start : start + _BATCH]
            points = {i: points_of(i) for i in {i for pair in batch for i in pair}}
            both = [(points[a], points[b]) for a, b in batch]
            matches = [db.read_matches(a, b) for a, b in batch]
            for (a, b), geometry in zip(
                batch, pool.map(estimate, batch, both, matches), strict=True
            ):
                db.write_two_view_geometry(a, b, geometry)
                progress.update()


def _verification(db: pycolmap.Database, seconds: float = 0.0) -> VerificationSummary:
    inliers = db.read_two_view_geometry_num_inliers()[1]
    return VerificationSummary(
        pairs=db.num_matched_image_pairs(),
        # COLMAP also counts the pairs it tried in vain
        verified_pairs=sum(number > 0 for number in inliers),
        matches=db.num_matches(),
        inliers=sum(inliers),
        seconds=seconds,
    )


# --------------------------------------------------------------------------- mapping


@contextlib.contextmanager
def _new_model(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` on success; a model that was there is replaced."""
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - _MODEL_FILES):
        raise EdmHlocError(f"{out} holds other things than a COLMAP model: choose another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if out.exists():
            shutil.rmtree(out)
        temporary.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def map_database(
    database: Path,
    images: Path,
    out: Path,
    options: MappingOptions | None = None,
    known: Iterable[str] = (),
) -> MappingSummary:
    """Reconstructs poses and points and writes the largest connected model to `out`, binary.

    Where the photos fall apart, the other models go to `parts_folder(out)`.

    Args:
        database: COLMAP database with verified pairs (see `build_database`).
        images: folder of the photos, for the colours of the points.
        out: folder of the model; it appears whole. A model that is there is replaced.
        options: how to map.
        known: names of the images whose cameras are not refined.

    Raises:
        EdmHlocError: no model was found, with the reason and what to try; `out` holds other files.
    """
    options = options or MappingOptions()
    start = time.monotonic()
    database, images, out = Path(database), Path(images), Path(out)
    with open_database(database) as db:
        verified_pairs = _verification(db).verified_pairs
        names = [image.name for image in db.read_all_images()]
    if not verified_pairs:
        raise EdmHlocError(diagnose(database))
    with _new_model(out) as temporary, quiet_colmap():
        models, undistorted = find_models(database, images, temporary, options, known)
        if not models:
            raise EdmHlocError(diagnose(database))
        _write_model(models[0], images, temporary)
        _write_parts(models[1:], images, parts_folder(out))
        statistics = ModelStatistics.of(models[0])
    components = tuple(model.num_reg_images() for model in models)
    if len(components) > 1:
        logger.warning(
            "The photos fall into %d separate models of %s images; %s is the largest, the others "
            "are in %s.",
            len(components),
            ", ".join(map(str, components)),
            out,
            parts_folder(out),
        )
    registered = posed_images(models[0])
    return MappingSummary(
        statistics=statistics,
        images=len(names),
        unregistered=tuple(sorted(set(names) - registered.keys())),
        components=components,
        seconds=time.monotonic() - start,
        undistorted=undistorted,
    )


def parts_folder(model: Path) -> Path:
    """Where the models of the other parts of the photos are, in folders `2`, `3`, …, smaller and
    smaller; there is none where the photos hold together."""
    return model.with_name(f"{model.name}_parts")


def _write_parts(models: Sequence[pycolmap.Reconstruction], images: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier mapping
    for number, model in enumerate(models, start=2):
        part = folder / str(number)
        part.mkdir(parents=True)
        _write_model(model, images, part)


def _write_model(model: pycolmap.Reconstruction, images: Path, folder: Path) -> None:
    """Colours the points and leaves only this model in the folder."""
    model.extract_colors_for_all_images(images)
    for image in posed_images(model).values():
        if image.name.lower().endswith((".webp", *HEIC_SUFFIXES)):  # which COLMAP cannot read
            _colour_black_points(model, image, images / image.name)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    model.write_binary(folder)


def _colour_black_points(
    model: pycolmap.Reconstruction, image: pycolmap.Image, photo: Path
) -> None:
    try:
        loaded = load_image(photo, resize_max=None, divisor=1, grayscale=False)
    except ImageError as error:
        logger.warning("Its points stay black: %s", error)
        return
    pixels = (255 * loaded.tensor.numpy()).round().astype(np.uint8)
    last = np.array(pixels.shape[:0:-1]) - 1
    for keypoint in image.points2D:
        if keypoint.has_point3D():
            point = model.points3D[keypoint.point3D_id]
            if not point.color.any():
                x, y = np.clip(keypoint.xy.astype(int), 0, last)
                point.color = pixels[:, y, x]


def diagnose(database: Path) -> str:
    """Why a database gives no model, and what to try: text for the user."""
    with open_database(Path(database)) as db:
        found = _verification(db)
        names = {image.image_id: image.name for image in db.read_all_images()}
        inliers = Counter(dict.fromkeys(names, 0))
        for pair_id, number in zip(*db.read_two_view_geometry_num_inliers(), strict=True):
            for image_id in pycolmap.pair_id_to_image_pair(pair_id):
                inliers[image_id] += number
    weakest = ", ".join(f"{names[i]} ({n})" for i, n in sorted(inliers.items(), key=_weakest)[:5])
    facts = (
        f"No model could be made of the {len(names)} photos: {found.pairs} of their pairs have "
        f"matches, {found.matches} in all; {found.verified_pairs} pairs were verified, with "
        f"{found.inliers} matches. Photos with the fewest verified matches: {weakest}."
    )
    if not found.matches:
        advice = (
            "Nothing was matched: check that the pairs name photos that overlap, and that the "
            "weights belong to the matcher."
        )
    elif not found.verified_pairs:
        advice = (
            "The matches of no pair agree with one geometry: check that the photos show the same "
            "things from not too different places, try a larger image size or other weights, or "
            "a larger maximal error if the photos are much larger than the matcher's input."
        )
    else:
        advice = (
            "The verified pairs do not suffice to start from: take photos from more places "
            "(turning on the spot gives no depth), match more pairs, give known intrinsics, or "
            "try the other mapper."
        )
    return f"{facts} {advice}"


def _weakest(item: tuple[int, int]) -> tuple[int, int]:
    return item[1], item[0]


# --------------------------------------------------------------------------- known poses


def triangulate(
    reference: Path,
    images: Path,
    features: Path,
    matches: Path,
    pairs: Iterable[Pair],
    database: Path,
    out: Path,
    options: MappingOptions | None = None,
) -> tuple[VerificationSummary, MappingSummary]:
    """Makes the 3D points of a model with known cameras; poses and intrinsics stay as they are.

    Matches count when they agree with the known poses: both keypoints lie within `max_error` times
    the image's keypoint uncertainty (where the file has one) of their epipolar lines.

    Args:
        reference: COLMAP model with the cameras; its points are ignored.
        images: folder of the photos, for the colours of the points.
        features: H5 file of keypoints, hloc's frame.
        matches: H5 file of matches.
        pairs: pairs to import; (b, a) repeats (a, b).
        database: the COLMAP database to write, with the reference's ids.
        out: folder of the model; it appears whole. A model that is there is replaced.
        options: `max_error`, `min_tri_angle`, `two_view_points`, `seed` and `threads` count here.

    Raises:
        EdmHlocError: a file cannot be read, files do not belong together, no point was found.
    """
    options = options or MappingOptions()
    start = time.monotonic()
    model = read_model(reference)
    posed = posed_images(model)
    database, out = Path(database), Path(out)
    with (
        _new_database(database, Path(features), Path(matches)) as db,
        FeatureReader(features) as keypoints,
    ):
        ids = {name: image.image_id for name, image in posed.items()}
        if not any(name in keypoints for name in ids):
            raise EdmHlocError(
                f"{features} has keypoints of none of the {len(ids)} images of {reference}: "
                "names must be the same."
            )
        for camera in model.cameras.values():
            camera.has_prior_focal_length = True
            db.write_camera(camera, use_camera_id=True)
        for rig in model.rigs.values():
            db.write_rig(rig, use_rig_id=True)
        for image in posed.values():
            # without its frame, which comes after it
            bare = pycolmap.Image(
                name=image.name, image_id=image.image_id, camera_id=image.camera_id
            )
            db.write_image(bare, use_image_id=True)
        for frame_id in sorted({image.frame_id for image in posed.values()}):
            db.write_frame(model.frames[frame_id], use_frame_id=True)
        cameras = {name: model.cameras[image.camera_id] for name, image in posed.items()}
        _import_features(db, keypoints, matches, ids, cameras, pairs)
        noise = {
            image_id: keypoints.uncertainty(name) or 1.0
            for name, image_id in ids.items()
            if name in keypoints
        }
        _verify_known_poses(db, model, noise, options)
        verification = _verification(db, time.monotonic() - start)

    with _new_model(out) as temporary, quiet_colmap():
        if not verification.inliers:
            raise EdmHlocError(
                f"No match agrees with the poses of {reference}: {verification.pairs} pairs have "
                f"{verification.matches} matches. Do photos and poses belong together?"
            )
        result = _triangulate(model, database, images, temporary, options)
        if not result.num_points3D():
            raise EdmHlocError(
                f"None of {verification.inliers} verified matches gave a point. Are the photos of "
                "the pairs taken from one place? Try a smaller triangulation angle."
            )
        _write_model(result, Path(images), temporary)
        statistics = ModelStatistics.of(result)
    seen = {name for name, image in posed_images(result).items() if image.num_points3D}
    return verification, MappingSummary(
        statistics=statistics,
        images=len(posed),
        unregistered=tuple(sorted(set(posed) - seen)),
        components=(statistics.registered,),
        seconds=time.monotonic() - start,
    )


def _triangulate(
    model: pycolmap.Reconstruction,
    database: Path,
    images: Path,
    folder: Path,
    options: MappingOptions,
) -> pycolmap.Reconstruction:
    """COLMAP's triangulation, with the points refined in groups.

    COLMAP refines all points at once, with a kilobyte for every observation: 46 GiB for the size of
    Aachen. With known poses they do not depend on each other.
    """
    o = incremental_options(options)
    o.ba_global_max_refinements = 0
    refinement = o.get_global_bundle_adjustment()
    for clear in (True, False):  # refined points continue and merge more tracks
        model = pycolmap.triangulate_points(
            model, database, images, folder, clear_points=clear, options=o
        )
        ids = sorted(model.point3D_ids())
        # Before each group COLMAP checks the whole model: no more of them in a larger one.
        group = max(_REFINED, len(ids) // 8)
        for start in range(0, len(ids), group):
            config = pycolmap.BundleAdjustmentConfig()  # without images: their cameras stay
            for i in ids[start : start + group]:
                config.add_variable_point(i)
            pycolmap.create_default_bundle_adjuster(refinement, config, model).solve()
        pycolmap.ObservationManager(model).filter_all_points3D(
            o.mapper.filter_max_reproj_error, o.mapper.filter_min_tri_angle
        )
    model.update_point_3d_errors()
    return model


def _verify_known_poses(
    db: pycolmap.Database,
    model: pycolmap.Reconstruction,
    noise: Mapping[int, float],
    options: MappingOptions,
) -> None:
    """Keeps the matches whose two keypoints are near their epipolar lines."""
    camera_of = {i.image_id: model.cameras[i.camera_id] for i in posed_images(model).values()}
    pose_of = {image_id: model.images[image_id].cam_from_world() for image_id in camera_of}
    limit = {
        i: camera_of[i].cam_from_img_threshold(options.max_error * n) for i, n in noise.items()
    }

    @lru_cache(_CACHED_IMAGES)
    def rays_of(image_id: int) -> np.ndarray:
        keypoints = db.read_keypoints(image_id)[:, :2].astype(np.float64)
        points = np.asarray(camera_of[image_id].cam_from_img(keypoints))
        return np.concatenate([points, np.ones((len(points), 1))], axis=1)

    pairs = sorted(pycolmap.pair_id_to_image_pair(i) for i in db.read_num_matches()[0])
    for a, b in tqdm(pairs, desc="Verifying", unit="pair", disable=None):
        matches = db.read_matches(a, b)
        cam2_from_cam1 = pose_of[b] * pose_of[a].inverse()
        E = pycolmap.essential_matrix_from_pose(cam2_from_cam1)
        rays = rays_of(a)[matches[:, 0]], rays_of(b)[matches[:, 1]]
        error_a, error_b = epipolar_errors(*rays, E)
        geometry = pycolmap.TwoViewGeometry(
            # left UNDEFINED, the triangulation would silently ignore the pair
            config=pycolmap.TwoViewGeometryConfiguration.CALIBRATED,
            E=E,
            cam2_from_cam1=cam2_from_cam1,
            inlier_matches=matches[(error_a <= limit[a]) & (error_b <= limit[b])],
        )
        db.write_two_view_geometry(a, b, geometry)
