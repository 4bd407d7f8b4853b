"""Keypoints and matches from H5 files → a COLMAP database with verified pairs."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pycolmap

from edm_hloc.base.colmap import camera_text, is_of_sqlite, quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import force_to_disk, refuse_other_kinds
from edm_hloc.base.fingerprint import file_stamp, fingerprint_of
from edm_hloc.base.frames import inside, to_colmap
from edm_hloc.base.journal import Journal, journal_path
from edm_hloc.base.log import warn_of_skipped
from edm_hloc.base.progress import track
from edm_hloc.images.cameras import CameraOptions, may_share_cameras, photo_cameras
from edm_hloc.keypoints.h5 import FeatureReader, MatchReader
from edm_hloc.mapping.backdrop import BackdropSummary
from edm_hloc.mapping.database_reading import CACHED_IMAGES
from edm_hloc.mapping.not_scene import NotScene
from edm_hloc.mapping.options import MappingOptions
from edm_hloc.mapping.still import StillSummary
from edm_hloc.mapping.verification import UnverifiedPairs, VerificationSummary, verify_pairs
from edm_hloc.pairs.rules import Pair, unique_pairs

# A database and its log together took up to 2.8 times the files that they were made from, of some
# photos only a little more, as each table has pages of its own. Verified pairs beside it take up to
# 1.4 times the file of matches.
_ROOM = 4.2
_ROOM_OF_TABLES = 1 << 20  # bytes
_FREE_SOME = "Free some disk space, then run again: what is already stored is kept."
_SIDE_FILES = ("-shm", "-journal")  # of SQLite, besides the log

_MARGIN = 1.5  # px that keypoints may lie beyond the outermost pixel centres


@dataclass(frozen=True)
class MatchedImages:
    """Images and the files with their keypoints and matches.

    Attributes:
        image_root: folder of the photos.
        features: H5 file of keypoints in hloc's frame (the centre of the top-left pixel is (0, 0)).
        matches: H5 file of matches, indices into these keypoints.
        pairs: names of the two images of each pair; (b, a) is the same pair as (a, b).
    """

    image_root: Path
    features: Path
    matches: Path
    pairs: Iterable[Pair]


@dataclass(frozen=True)
class ImportSummary:
    """What was imported into a database.

    Attributes:
        images: images with keypoints.
        cameras: cameras of these images; images may share one.
        prior_focal: images whose focal length is known or given by their EXIF data.
        pairs: pairs with at least one match.
        matches: matches of all pairs.
        missing_pairs: listed pairs without matches in the file, or of photos that were skipped.
        skipped: photos that cannot be read, with the reason.
        may_share_cameras: by the mode "auto" photos have a camera each, though they are of one size
            and nothing tells their cameras apart.
        still: what stays at the same pixels in photos that move, such as a screen display.
        left_out: matches that were left out for that; none where it may be the scene itself.
        backdrop: photos with a still background before which an object turns, and its matches; None
            without such photos.
    """

    images: int
    cameras: int
    prior_focal: int
    pairs: int
    matches: int
    missing_pairs: int
    skipped: dict[str, str]
    may_share_cameras: bool = False
    still: tuple[StillSummary, ...] = ()
    left_out: int = 0
    backdrop: BackdropSummary | None = None


def build_database(
    database: Path,
    matched: MatchedImages,
    cameras: CameraOptions | None = None,
    options: MappingOptions | None = None,
    elsewhere: Callable[[UnverifiedPairs], None] | None = None,
) -> tuple[ImportSummary, VerificationSummary]:
    """Makes a COLMAP database with verified pairs; an older one is replaced on success.

    Until then verified pairs lie in `journal_path(database)`, from which the same call goes on
    after the process was killed.

    Args:
        database: the file to write.
        matched: images, keypoints and matches. Only the headers of the photos are read.
        cameras: which photos share a camera, and known intrinsics.
        options: `max_error`, `min_inliers`, `seed` and `threads` count here.
        elsewhere: puts geometries that other processes have estimated among those that are kept.

    Raises:
        EdmHlocError: a file cannot be read, files do not belong together, no photo can be read.
    """
    options, cameras = options or MappingOptions(), cameras or CameraOptions()
    database = Path(database)
    with ExitStack() as stack, new_database(database, matched) as db:
        features = stack.enter_context(FeatureReader(matched.features))
        names = features.names()
        camera_of, skipped = photo_cameras(Path(matched.image_root), names, cameras)
        warn_of_skipped(skipped.values())
        if not camera_of:
            raise EdmHlocError(
                f"None of the {len(names)} images in {matched.features} can be read in "
                f"{matched.image_root}. Is it the folder they were matched in?"
            )
        ids = _write_images(db, camera_of)
        with MatchReader(matched.matches) as matches:
            points_of = _matched_points(features, matches)
            sizes = {name: (camera.width, camera.height) for name, camera in camera_of.items()}
            not_scene = NotScene(unique_pairs(matched.pairs), points_of, sizes)
        missing = import_matches(db, features, matched, ids, camera_of, not_scene)
        imported = ImportSummary(
            images=len(ids),
            cameras=db.num_cameras(),
            prior_focal=sum(camera.has_prior_focal_length for camera in camera_of.values()),
            pairs=db.num_matched_image_pairs(),
            matches=db.num_matches(),
            missing_pairs=missing,
            skipped=skipped,
            may_share_cameras=cameras.mode == "auto" and bool(may_share_cameras(camera_of)),
            still=not_scene.still,
            left_out=not_scene.left_out,
            backdrop=not_scene.backdrop(),
        )
        start = time.monotonic()
        depends_on = [
            pycolmap.__version__,
            [file_stamp(Path(path)) for path in (matched.features, matched.matches)],
            sorted(unique_pairs(matched.pairs)),
            {
                name: [camera.camera_id, camera_text(camera), camera.has_prior_focal_length]
                for name, camera in camera_of.items()
            },
            options.of_verification(),
        ]
        made_from = fingerprint_of(depends_on)
        kept = Journal(journal_path(database), made_from)
        stack.callback(kept.close)
        if elsewhere is not None:
            elsewhere(UnverifiedPairs(db, options, kept, made_from))
        verify_pairs(db, options, kept)
        verified = VerificationSummary.of(db, time.monotonic() - start)
    kept.remove()
    return imported, verified


@contextlib.contextmanager
def new_database(path: Path, matched: MatchedImages) -> Iterator[pycolmap.Database]:
    """A database that is filled in the block and appears at `path` whole or not at all.

    It is filled without a transaction: where a disk fills up in one, COLMAP ends the whole process
    with a stack trace, when it tries to commit what SQLite has taken back already. As nothing is
    forced to the disk before the end, this costs no more than a few percent.

    Args:
        path: the file to write; an older one is replaced on success.
        matched: what goes into it, by which the room that it needs is estimated.

    Raises:
        EdmHlocError: the file cannot be written, or the disk or a quota has too little room.
    """
    sources = (Path(matched.features), Path(matched.matches))
    try:
        refuse_other_kinds(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = sum(source.stat().st_size for source in sources if source.exists())
        needed = _ROOM_OF_TABLES + _ROOM * stored
        free = shutil.disk_usage(path.parent).free
    except OSError as error:
        raise EdmHlocError(f"Cannot write {path}: {error.strerror}.") from error
    if free < needed:
        raise EdmHlocError(
            f"Cannot write {path}: it may need {math.ceil(needed / 2**20):,} MiB of disk space and "
            f"there are {free >> 20:,}. {_FREE_SOME}"
        )
    temporary = path.with_name(f".{path.name}.tmp")
    log = temporary.with_name(temporary.name + "-wal")
    leftovers = [temporary, log, *(temporary.with_name(temporary.name + e) for e in _SIDE_FILES)]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    try:
        _check_room(log, int(needed))
        with quiet_colmap():
            database = pycolmap.Database.open(temporary)
            try:
                yield database
            finally:
                database.close()
        _make_whole(temporary)
        temporary.replace(path)
        force_to_disk(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise EdmHlocError(
            f"Cannot write {path}: {getattr(error, 'strerror', None) or error}. {_FREE_SOME}"
        ) from error
    except RuntimeError as error:
        if not is_of_sqlite(error):
            raise
        raise EdmHlocError(
            f"Cannot write {path}: the disk or a quota is full, or cannot be written. {_FREE_SOME}"
        ) from error
    finally:
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)


def _check_room(probe: Path, size: int) -> None:
    """Takes the room that a file is going to need, and gives it back.

    Unlike the free space of a disk, this also finds quotas and limits of a file's size.

    Raises:
        OSError: there is not that much.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        os.posix_fallocate(descriptor, 0, max(1, size))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise  # the file system cannot tell beforehand
    finally:
        os.close(descriptor)
        probe.unlink()


def _make_whole(database: Path) -> None:
    """Brings everything of a closed database from its log into the file, and this to the disk.

    COLMAP does not look whether that has succeeded, and SQLite then leaves the log beside the file.

    Raises:
        OSError, sqlite3.Error: it could not be written, or is not whole.
    """
    with contextlib.closing(sqlite3.connect(database, timeout=1)) as connection:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("its log could not be merged")
        connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if answer != "ok":
            raise sqlite3.DatabaseError(str(answer)[:200])
    force_to_disk(database)


def _write_images(
    db: pycolmap.Database, camera_of: Mapping[str, pycolmap.Camera]
) -> dict[str, int]:
    """Writes cameras and images, each image in a frame of its own; gives the images' ids."""
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
    return ids


def import_matches(
    db: pycolmap.Database,
    features: FeatureReader,
    matched: MatchedImages,
    ids: Mapping[str, int],
    cameras: Mapping[str, pycolmap.Camera],
    not_scene: NotScene | None = None,
) -> int:
    """Writes the keypoints of the images `ids` and the matches of their pairs.

    Args:
        db: database that holds the images already.
        features: the opened file of keypoints.
        matched: matches and pairs.
        ids: id of each image by name.
        cameras: camera of each image by name.
        not_scene: leaves out matches of what stays at the same pixels.

    Returns:
        The number of listed pairs without matches in the file, or of images that are not in `ids`.

    Raises:
        EdmHlocError: keypoints outside their image, or matches of other keypoints.
    """
    number = {}
    for name in track(ids, "Importing keypoints", "photo"):
        if name not in features:
            continue
        keypoints = np.asarray(features.keypoints(name)[:, :2], dtype=np.float32)
        width, height = cameras[name].width, cameras[name].height
        if not inside(keypoints, width, height, _MARGIN).all():
            raise EdmHlocError(
                f"Keypoints of {name} in {features.path} lie outside its {width} × {height} "
                "pixels. Were they found in photos of another size?"
            )
        number[name] = len(keypoints)
        db.write_keypoints(ids[name], to_colmap(keypoints))
    missing = 0
    with MatchReader(matched.matches) as reader:
        for pair in track(unique_pairs(matched.pairs), "Importing matches", "pair"):
            if not number.keys() >= set(pair) or pair not in reader:
                missing += 1
                continue
            found = np.unique(reader.indices(*pair), axis=0)
            if not len(found):
                continue
            if found.min() < 0 or np.any(found.max(axis=0) >= [number[name] for name in pair]):
                raise EdmHlocError(
                    f"Matches of {pair} in {matched.matches} are of keypoints that "
                    f"{features.path} does not hold: take the two files of one run."
                )
            if not_scene is not None and not_scene.concerns(pair):
                keypoints0, keypoints1 = (features.keypoints(name)[:, :2] for name in pair)
                points = keypoints0[found[:, 0]], keypoints1[found[:, 1]]
                found = found[~not_scene.leave_out(pair, points)]
            if len(found):
                db.write_matches(ids[pair[0]], ids[pair[1]], found.astype(np.uint32))
    return missing


def _matched_points(
    features: FeatureReader, matches: MatchReader
) -> Callable[[Pair], tuple[np.ndarray, np.ndarray] | None]:
    """A function that gives the matched points (M, 2) of a pair; None without any."""
    at_hand = frozenset(features.names())

    @lru_cache(CACHED_IMAGES)
    def keypoints_of(name: str) -> np.ndarray:
        return np.asarray(features.keypoints(name)[:, :2], dtype=np.float64)

    def points_of(pair: Pair) -> tuple[np.ndarray, np.ndarray] | None:
        if not at_hand >= set(pair) or pair not in matches:
            return None
        found = matches.indices(*pair)
        points0, points1 = (keypoints_of(name) for name in pair)
        sizes = [len(points0), len(points1)]
        if not len(found) or found.min() < 0 or np.any(found.max(axis=0) >= sizes):
            return None  # `import_matches` says what is wrong
        return points0[found[:, 0]], points1[found[:, 1]]

    return points_of
