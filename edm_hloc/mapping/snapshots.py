"""Unfinished models that the incremental mapper leaves as it goes, to go on from after a kill."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import camera_text, read_model
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.files import claim_folder
from edm_hloc.base.fingerprint import fingerprint_of

logger = logging.getLogger(__name__)

_PARTS = 20  # of the photos, after each of which a snapshot is written
_FEWEST = 5  # photos
_KEPT = 2  # of one model: the newest may have been cut off


class Snapshots:
    """Snapshots of the runs of the mapper that lead to one model.

    Args:
        folder: where they lie: ``made_from.txt``, and a folder of snapshots for each run.
        made_from: fingerprint of everything that the model depends on. Snapshots of other inputs
            are removed.

    Raises:
        EdmHlocError: the folder cannot be written.
    """

    def __init__(self, folder: Path, made_from: str) -> None:
        self._folder = folder
        if claim_folder(folder, made_from):
            logger.warning(
                "Mapping starts again, as the database or a setting has changed since it "
                "was interrupted."
            )

    @property
    def begun(self) -> bool:
        """Whether an interrupted run has left snapshots to go on from."""
        return any(_in_order(place) for place in self._folder.iterdir() if place.is_dir())

    def begin(
        self, colmap: pycolmap.IncrementalPipelineOptions, images: int, run: object
    ) -> tuple[Path | None, int]:
        """Makes a run of the mapper write snapshots.

        Args:
            colmap: gets the place and the frequency.
            images: number of images.
            run: what distinguishes this run of the mapper from others of the same model.

        Returns:
            The largest whole snapshot of this run, None if there is none; and its number of images.
            Where the run had begun another model, of other photos, that one is begun anew.
        """
        place = self._folder / fingerprint_of(run)[:16]
        place.mkdir(exist_ok=True)
        colmap.snapshot_path = str(place)
        colmap.snapshot_frames_freq = max(_FEWEST, images // _PARTS)
        self._place = place
        for snapshot in sorted(_in_order(place), key=_registered, reverse=True):
            with contextlib.suppress(EdmHlocError):
                number = read_model(snapshot).num_reg_images()
                logger.warning(
                    "Mapping goes on from %d photos that an interrupted run has registered.", number
                )
                return snapshot, number
            shutil.rmtree(snapshot, ignore_errors=True)  # it was being written
        return None, 0

    def prune(self) -> None:
        """Removes all but the newest snapshots of the run and the largest, as COLMAP keeps all.

        The largest may be of a model that is finished, while the mapper has begun another one.
        """
        snapshots = _in_order(self._place)
        kept = {max(snapshots, key=_registered), *snapshots[-_KEPT:]} if snapshots else set()
        for snapshot in set(snapshots) - kept:
            shutil.rmtree(snapshot, ignore_errors=True)

    def remove(self) -> None:
        """Removes all snapshots."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _in_order(place: Path) -> list[Path]:
    """The snapshots of a run, the oldest first; their names are times in ms."""
    return sorted((p for p in place.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))


def _registered(snapshot: Path) -> tuple[int, int]:
    """Number of images of a snapshot, by the head of its file, and its time."""
    try:
        with (snapshot / "images.bin").open("rb") as file:
            return int.from_bytes(file.read(8), "little"), int(snapshot.name)
    except OSError:
        return 0, int(snapshot.name)


def content_of(db: pycolmap.Database) -> str:
    """Fingerprint of what a verified database holds. (Its file changes whenever it is opened.)"""
    cameras = sorted(db.read_all_cameras(), key=lambda camera: camera.camera_id)
    images = sorted((i.image_id, i.name, i.camera_id) for i in db.read_all_images())
    pairs, inliers = db.read_two_view_geometry_num_inliers()
    return fingerprint_of(
        [
            pycolmap.__version__,
            [(c.camera_id, camera_text(c), c.has_prior_focal_length) for c in cameras],
            images,
            sorted(zip(pairs, inliers, strict=True)),
            [db.num_keypoints(), db.num_matches()],
        ]
    )


@contextlib.contextmanager
def kept_snapshots(folder: Path, made_from: str) -> Iterator[Snapshots]:
    """`Snapshots` that outlive a kill, Ctrl-C or a full disk, but not success or another error of
    ours."""
    snapshots = Snapshots(folder, made_from)
    try:
        yield snapshots
    except NoRoomError:
        raise
    except EdmHlocError:
        snapshots.remove()
        raise
    snapshots.remove()
