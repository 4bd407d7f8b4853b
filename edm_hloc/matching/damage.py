"""Raw matches that have rotted on the disk: taken out of their folder, to be matched again."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock
from edm_hloc.base.h5 import DamagedH5Error, open_h5, reading
from edm_hloc.matching.shards import (
    StoredPair,
    copy_pairs,
    read_matches,
    shard_paths,
    stored_pairs,
)

logger = logging.getLogger(__name__)


def set_aside(damaged: DamagedH5Error) -> None:
    """Renames a shard that cannot be read as a whole, and says so.

    Raises:
        EdmHlocError: it cannot be renamed.
    """
    path = damaged.path
    kept = path.with_name(f"{path.name}.damaged")
    try:
        path.replace(kept)
    except OSError as error:
        raise EdmHlocError(f"Cannot rename {path}: {error.strerror or error}.") from error
    logger.warning(
        "%s is damaged (%s): its pairs are matched again. It is kept as %s.",
        path,
        damaged.reason,
        kept.name,
    )


def drop_damaged(directory: Path) -> None:
    """Reads all raw matches of a folder and takes those out that are damaged; each is named.

    Raises:
        EdmHlocError: another process writes into the folder, or it cannot be written.
    """
    with FolderLock(directory):
        for path in shard_paths(directory):
            try:
                _drop_from(path)
            except DamagedH5Error as error:
                set_aside(error)


def _drop_from(path: Path) -> None:
    with open_h5(path) as h5, reading(path):
        pairs = stored_pairs(h5)
        whole = [pair for pair in pairs if _is_whole(h5, pair, path)]
        if len(whole) == len(pairs):
            return
        if whole:
            copy_pairs(h5, whole, path)
    if not whole:
        path.unlink()


def _is_whole(h5: h5py.File, pair: StoredPair, path: Path) -> bool:
    try:
        read_matches(h5, pair)
    except ValueError as error:
        logger.warning("Damaged, and matched again: %s, in %s.", error, path)
        return False
    return True
