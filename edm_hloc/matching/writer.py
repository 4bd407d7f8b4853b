"""Writes raw matches into a folder of shards; a kill at any moment damages nothing."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from edm_hloc.base.files import FolderLock
from edm_hloc.base.h5 import (
    AtomicH5,
    Provenance,
    cannot_write,
    check_collision,
    check_name,
    check_shape,
    open_h5,
    pair_key,
    reading,
    stored_provenance,
)
from edm_hloc.base.matches import Matches
from edm_hloc.matching.shards import (
    Entry,
    Stamp,
    as_stored,
    entries_of,
    refuse_other_provenance,
    shard_number,
    shards_in,
)

logger = logging.getLogger(__name__)

# A shard is written when one of these is reached: a kill loses no more than that.
_FLUSH_PAIRS = 64


_FLUSH_BYTES = 16 << 20


_FLUSH_SECONDS = 2.0


# When the newest _FAN_IN shards all have fewer pairs than one of these they become one shard. Each
# pair is rewritten about three times at most, 180,000 pairs end in some 350 files, and no merge is
# so large that HDF5's memory for it (18 KB a pair) or the wait for it would matter.
_FAN_IN = 8


_MERGE_BELOW_PAIRS = (8, 64, 512)


def write_raw_pair(
    path: Path, name0: str, name1: str, matches: Matches, provenance: Provenance
) -> None:
    """Writes the raw matches of one pair into a file of their own, replacing an older one.

    Raises:
        EdmHlocError: the file cannot be written or a name cannot be stored.
    """
    check_name(name0)
    check_name(name1)
    file = AtomicH5(Path(path), provenance)
    try:
        group = file.h5.create_group(pair_key(name0, name1))
        for name, array in matches.arrays().items():
            group.create_dataset(name, data=np.asarray(array, np.float32))
        file.h5.attrs["pairs"] = json.dumps([[name0, name1, None, None]])
    except BaseException:
        file.discard()
        raise
    file.commit()


class RawMatchWriter:
    """Writes raw matches into a folder of shards from a background thread.

    A kill at any moment loses the last few pairs (64, or those of two seconds) and damages nothing;
    opening the folder again goes on from there. Use it in a ``with`` block, or call `close`.

    `done` is the set of pair keys on disk and up to date when the folder was opened.

    Args:
        directory: made if missing; the files of an earlier run in it are kept.
        provenance: the settings the matches depend on (weights' SHA-256, preset, version …).
        images: the `Stamp` of each image file. Stored with each pair; pairs one of whose images has
            another stamp now are not in `done`, so they are matched again and replaced.
        overwrite: remove the matches of earlier runs first.

    Raises:
        EdmHlocError: the folder holds matches of another provenance, another process writes into
            it, it cannot be written, or one of its files is damaged.
    """

    def __init__(
        self,
        directory: Path,
        provenance: Provenance,
        images: Mapping[str, Stamp] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self._provenance = as_stored(provenance)
        self._images = images
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.directory, error) from error
        self._lock = FolderLock(self.directory)
        try:
            for leftover in self.directory.glob(".matches-*.h5.tmp"):
                leftover.unlink()
            if overwrite:
                for path in shards_in(self.directory):
                    path.unlink()
            self._shards: list[tuple[Path, int]] = []  # oldest first, with their numbers of pairs
            self._names: dict[str, tuple[str, str]] = {}  # real names of every stored key
            self.done: set[str] = set()
            self._open_folder()
        except BaseException:
            self._lock.release()
            raise
        self._error: BaseException | None = None
        self._closed = False
        self._queue: queue.Queue[tuple[str, str, Matches] | None] = queue.Queue(_FLUSH_PAIRS)
        # a daemon: a program that forgot to close must still be able to end
        self._thread = threading.Thread(target=self._run, name="raw-match-writer", daemon=True)
        self._thread.start()

    def __contains__(self, pair: tuple[str, str]) -> bool:
        """Whether the pair is in `done`, in either order."""
        name0, name1 = pair
        for names in ((name0, name1), (name1, name0)):
            key = pair_key(*names)
            if key in self.done:
                check_collision(self._names[key], names)
                return True
        return False

    def add(self, name0: str, name1: str, matches: Matches) -> None:
        """Hands one pair to the writer; waits while it is behind.

        Raises:
            EdmHlocError: two pairs have the same key, or an earlier pair could not be written.
        """
        if self._closed:
            raise ValueError("the writer is closed")
        self._raise_error()
        check_name(name0)
        check_name(name1)
        if pair_key(name0, name1) not in self._names and pair_key(name1, name0) in self._names:
            # stored the other way round by an earlier run: replace it, do not store it twice
            name0, name1, matches = name1, name0, matches.swapped()
        key = pair_key(name0, name1)
        check_collision(self._names.get(key, (name0, name1)), (name0, name1))
        # copies: the caller may reuse its arrays before they are written
        copies = (np.array(array, np.float32, order="C") for array in matches.arrays().values())
        matches = Matches(*copies)
        check_shape("scores", matches.scores, (matches.scores.size,))
        shape = (matches.scores.size, 2)
        check_shape("keypoints0", matches.keypoints0, shape)
        check_shape("keypoints1", matches.keypoints1, shape)
        self._names[key] = (name0, name1)
        self._queue.put((name0, name1, matches))

    def close(self) -> None:
        """Writes what is left and releases the folder. Raises EdmHlocError if that failed."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            self._lock.release()
        self._raise_error()

    def __enter__(self) -> RawMatchWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception as error:
            if value is None:
                raise
            if error is not value:  # the block's own exception is the one to report
                logger.error("%s", error)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # ---- at opening

    def _open_folder(self) -> None:
        """Fills `shards_in`, `_names` and `done`; removes shards that newer ones replaced."""
        for path in reversed(shards_in(self.directory)):
            with open_h5(path) as h5, reading(path):
                refuse_other_provenance(path, stored_provenance(h5), self._provenance)
                entries = entries_of(h5)
            fresh = [entry for entry in entries if entry.key not in self._names]
            if not fresh:
                path.unlink()
                continue
            self._shards.insert(0, (path, len(entries)))
            for entry in fresh:
                self._names[entry.key] = entry.names
                if self._images is None or entry.stamps == self._stamps(*entry.names):
                    self.done.add(entry.key)

    def _stamps(self, name0: str, name1: str) -> tuple[Stamp | None, Stamp | None]:
        if self._images is None:
            return None, None
        return self._images.get(name0), self._images.get(name1)

    # ---- in the background thread

    def _run(self) -> None:
        closing = False
        try:
            while not closing:
                batch, closing = self._next_batch()
                if batch:
                    self._write_shard(batch)
                    self._merge_shards()
        except BaseException as error:
            self._error = error
            while not closing:  # nobody may wait for ever to hand in a pair
                closing = self._queue.get() is None

    def _next_batch(self) -> tuple[list[tuple[str, str, Matches]], bool]:
        """The pairs of the next shard, and whether they are the last ones."""
        batch: list[tuple[str, str, Matches]] = []
        size = 0
        item = self._queue.get()
        deadline = time.monotonic() + _FLUSH_SECONDS
        while item is not None:
            batch.append(item)
            size += sum(array.nbytes for array in item[2].arrays().values())
            if len(batch) >= _FLUSH_PAIRS or size >= _FLUSH_BYTES:
                return batch, False
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return batch, False
        return batch, True

    def _next_path(self) -> Path:
        number = shard_number(self._shards[-1][0]) + 1 if self._shards else 0
        return self.directory / f"matches-{number:06d}.h5"

    def _write_shard(self, items: list[tuple[str, str, Matches]]) -> None:
        # a pair given twice: the last one counts
        latest = {pair_key(name0, name1): (name0, name1, raw) for name0, name1, raw in items}
        file = AtomicH5(self._next_path(), self._provenance)
        try:
            for key, (_, _, matches) in latest.items():
                group = file.h5.create_group(key)
                for name, array in matches.arrays().items():
                    group.create_dataset(name, data=array)
            file.h5.attrs["pairs"] = json.dumps(
                [[a, b, *self._stamps(a, b)] for a, b, _ in latest.values()]
            )
        except BaseException:
            file.discard()
            raise
        file.commit()
        self._shards.append((file.path, len(latest)))

    def _merge_shards(self) -> None:
        """Joins the newest shards when there are many small ones.

        The joined shard is in place before the others are removed. A kill in between leaves pairs
        twice, equal, and the next opening removes the older ones.
        """
        for limit in _MERGE_BELOW_PAIRS:
            small = len(self._shards)
            while small > 0 and self._shards[small - 1][1] < limit:
                small -= 1
            sources = [path for path, _ in self._shards[small:]]
            if len(sources) < _FAN_IN:
                continue
            file = AtomicH5(self._next_path(), self._provenance)
            merged: dict[str, Entry] = {}
            try:
                for path in reversed(sources):
                    with open_h5(path) as h5, reading(path):
                        for entry in entries_of(h5):
                            if entry.key not in merged:
                                h5.copy(entry.key, file.h5, name=entry.key)
                                merged[entry.key] = entry
                    file.check()
                file.h5.attrs["pairs"] = json.dumps(
                    [[*e.names, *e.stamps] for e in merged.values()]
                )
            except BaseException:
                file.discard()
                raise
            file.commit()
            self._shards[small:] = [(file.path, len(merged))]
            for path in sources:
                path.unlink()
