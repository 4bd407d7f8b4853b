"""Writes raw matches into a folder of shards; killing the process never damages the folder."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock
from edm_hloc.base.h5 import (
    AtomicH5,
    DamagedH5Error,
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
from edm_hloc.images.known import KnownPhotos
from edm_hloc.matching.damage import set_aside
from edm_hloc.matching.recent import RecentPairs, recent_path
from edm_hloc.matching.shards import (
    FileStamp,
    StoredPair,
    check_same_provenance,
    json_provenance,
    shard_number,
    shard_path,
    shard_paths,
    store_matches,
    store_pairs,
    stored_pairs,
)

logger = logging.getLogger(__name__)

# A shard is written as soon as one of these limits is reached. Until then `RecentPairs` keeps its
# pairs from a kill; a power cut loses no more than that.
_FLUSH_PAIRS = 64
_FLUSH_BYTES = 16 << 20
_FLUSH_SECONDS = 2.0

# When the newest _FAN_IN shards all have fewer pairs than one of these limits, they are merged into
# one. Each pair is rewritten about three times at most, 180,000 pairs end in some 350 files, and no
# merge is so large that HDF5's memory for it (18 KB a pair) or the wait for it would matter.
_FAN_IN = 8
_MERGE_BELOW_PAIRS = (8, 64, 512)

_Item = tuple[StoredPair, Matches]


def write_raw_pair(
    path: Path, name0: str, name1: str, matches: Matches, provenance: Provenance
) -> None:
    """Writes the raw matches of one pair into a file of their own, in the format of a shard.

    Args:
        path: the file; an older one is replaced.
        name0, name1: the images, as paths relative to the image root.
        matches: M matches, in pixels of the original images.
        provenance: the settings the matches depend on.

    Raises:
        EdmHlocError: the file cannot be written, or a name cannot be stored.
    """
    check_name(name0)
    check_name(name1)
    pair = StoredPair((name0, name1))
    with AtomicH5(Path(path), provenance) as file:
        store_pairs(file.h5, [store_matches(file.h5, pair, matches)])


def check_raw_pair(path: Path) -> None:
    """Refuses a file, if there is one, that `write_raw_pair` did not make and would replace.

    Raises:
        EdmHlocError: it is another file, such as the matches of a run.
    """
    try:
        with reading(path), open_h5(path) as h5:
            pairs = stored_pairs(h5) if "pairs" in h5.attrs else []
            if len(pairs) == 1 and "keypoints0" in h5[pairs[0].key]:
                return
    except EdmHlocError:
        if not path.exists() or path.stat().st_size == 0:
            return
    raise EdmHlocError(
        f"{path} is there already and holds other things than the matches of two photos: choose "
        "another name."
    )


class RawMatchWriter:
    """Writes raw matches into a folder of shards, from a background thread.

    Killing the process loses no pair but those that come in while a shard is written, and damages
    nothing; a power cut loses the last few (64, or those of two seconds). A new writer on the same
    folder continues from there. Use it in a ``with`` block, or call `close`.

    Args:
        directory: folder of the shards, made if missing; shards of earlier runs are kept.
        provenance: the settings the matches depend on (SHA-256 of the weights, preset, version …).
        stamps: the `FileStamp` of each image by name. They are stored with each pair; a pair whose
            images have other stamps than those stored is not in `done`, so that it is matched
            again and replaced. With None all stored pairs are in `done`. Stamps that photos had
            with the same content are the same, see `KnownPhotos`.
        overwrite: delete the raw matches of earlier runs first.

    Attributes:
        directory: the folder.
        done: the keys (see `pair_key`) of the pairs that were stored and up to date when the
            folder was opened.
        changed: names of the images of the other stored pairs that have other stamps now.

    Raises:
        EdmHlocError: the folder holds matches of another provenance, another process writes into
            it, or it cannot be written. A damaged file is set aside, and its pairs are not `done`.
    """

    def __init__(
        self,
        directory: Path,
        provenance: Provenance,
        stamps: Mapping[str, FileStamp] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self._provenance = json_provenance(provenance)
        self._stamps = stamps
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.directory, error) from error
        self._lock = FolderLock(self.directory)
        try:
            for leftover in self.directory.glob(".matches-*.h5.tmp"):
                leftover.unlink()
            if overwrite:
                for path in (*shard_paths(self.directory), recent_path(self.directory)):
                    path.unlink(missing_ok=True)
            self._shards: list[tuple[Path, int]] = []  # oldest first, with the number of pairs
            self._names: dict[str, tuple[str, str]] = {}  # the exact names, by key
            self.done: set[str] = set()
            self.changed: set[str] = set()
            self._known = KnownPhotos(self.directory)
            self._open_folder()
            self._recent = RecentPairs(self.directory, self._provenance)
            self._store_recent()
        except BaseException:
            self._lock.release()
            raise
        self._error: BaseException | None = None
        self._closed = False
        self._merging = True
        self._queue: queue.Queue[_Item | None] = queue.Queue(_FLUSH_PAIRS)
        # a daemon, so that a program that forgets to call `close` can still exit
        self._thread = threading.Thread(target=self._run, name="raw-match-writer", daemon=True)
        self._thread.start()

    def __contains__(self, pair: tuple[str, str]) -> bool:
        """Whether a pair is in `done`, in either order.

        Raises:
            EdmHlocError: another pair has the same key.
        """
        name0, name1 = pair
        for names in ((name0, name1), (name1, name0)):
            key = pair_key(*names)
            if key in self.done:
                check_collision(self._names[key], names)
                return True
        return False

    def add(self, name0: str, name1: str, matches: Matches) -> None:
        """Queues the matches of one pair, and waits while the queue is full.

        The matches are copied. A pair that was stored before, in either order, is replaced.

        Args:
            name0, name1: the images, as paths relative to the image root.
            matches: M matches, in pixels of the original images.

        Raises:
            EdmHlocError: another pair has the same key, a name cannot be stored, or an earlier pair
                could not be written.
            ValueError: the arrays differ in length, or the writer is closed.
        """
        if self._closed:
            raise ValueError("the writer is closed")
        self._raise_error()
        check_name(name0)
        check_name(name1)
        if pair_key(name0, name1) not in self._names and pair_key(name1, name0) in self._names:
            # stored in the other order by an earlier run: replace it there
            name0, name1, matches = name1, name0, matches.swapped()
        key = pair_key(name0, name1)
        check_collision(self._names.get(key, (name0, name1)), (name0, name1))
        # copies, since the caller may change its arrays before they are written
        copies = (np.array(array, np.float32, order="C") for array in matches.arrays().values())
        matches = Matches(*copies)
        check_shape("scores", matches.scores, (matches.scores.size,))
        shape = (matches.scores.size, 2)
        check_shape("keypoints0", matches.keypoints0, shape)
        check_shape("keypoints1", matches.keypoints1, shape)
        self._names[key] = (name0, name1)
        self._queue.put((self._with_stamps(name0, name1), matches))

    def close(self) -> None:
        """Writes what is queued and releases the folder. Raises EdmHlocError if a write failed."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            self._recent.close()
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
            if error is not value:  # the exception of the block is raised, this one only logged
                logger.error("%s", error)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # ---- when the folder is opened

    def _open_folder(self) -> None:
        """Fills `_shards`, `_names` and `done`; deletes shards that newer ones replace entirely."""
        for path in reversed(shard_paths(self.directory)):
            try:
                with open_h5(path) as h5, reading(path):
                    pairs, stored = stored_pairs(h5), stored_provenance(h5)
            except DamagedH5Error as error:
                set_aside(error)
                continue
            check_same_provenance(path, stored, self._provenance)
            newest = [pair for pair in pairs if not self._is_stored(pair)]
            if not newest:
                path.unlink()
                continue
            self._shards.insert(0, (path, len(pairs)))
            self._take_note(newest)

    def _is_stored(self, pair: StoredPair) -> bool:
        """Whether a shard that was opened before holds a pair, in either order."""
        return pair.key in self._names or pair.other_key in self._names

    def _take_note(self, stored: Iterable[StoredPair]) -> None:
        """Fills `_names` and `done` with pairs of a shard."""
        for pair in stored:
            self._names[pair.key] = pair.names
            changed = self._changed(pair)
            if not changed:
                self.done.add(pair.key)
            self.changed |= changed & (self._stamps or {}).keys()

    def _changed(self, pair: StoredPair) -> set[str]:
        """The photos of a stored pair that are other files now."""
        if self._stamps is None:
            return set()
        now = zip(pair.names, pair.stamps, self._with_stamps(*pair.names).stamps, strict=True)
        first = self._known.first
        return {name for name, *stamps in now if len({first(name, s) for s in stamps}) > 1}

    def _store_recent(self) -> None:
        """Puts what a killed writer had not come to put into a shard into one."""
        items = [
            (pair, matches)
            for pair, matches in self._recent
            if self.done.isdisjoint((pair.key, pair.other_key))
        ]
        if items:
            self._write_shard(items)
            self._take_note(pair for pair, _ in items)
        self._recent.clear()

    def _with_stamps(self, name0: str, name1: str) -> StoredPair:
        stamps = self._stamps or {}
        return StoredPair((name0, name1), (stamps.get(name0), stamps.get(name1)))

    # ---- in the background thread

    def _run(self) -> None:
        closing = False
        try:
            while not closing:
                batch, closing = self._next_batch()
                if batch:
                    self._write_shard(batch)
                    self._recent.clear()
                    self._merge_shards()
        except BaseException as error:
            self._error = error
            while not closing:  # keep emptying the queue, so that `add` does not block for ever
                closing = self._queue.get() is None

    def _next_batch(self) -> tuple[list[_Item], bool]:
        """The pairs of the next shard, and whether the writer is closed after them."""
        batch: list[_Item] = []
        size = 0
        item = self._queue.get()
        deadline = time.monotonic() + _FLUSH_SECONDS
        while item is not None:
            batch.append(item)
            self._recent.put(*item)
            size += sum(array.nbytes for array in item[1].arrays().values())
            if len(batch) >= _FLUSH_PAIRS or size >= _FLUSH_BYTES:
                return batch, False
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return batch, False
        return batch, True

    def _next_path(self) -> Path:
        number = shard_number(self._shards[-1][0]) + 1 if self._shards else 0
        return shard_path(self.directory, number)

    def _write_shard(self, items: list[_Item]) -> None:
        # of a pair that was added twice the last matches count
        latest = {pair.key: (pair, matches) for pair, matches in items}
        with AtomicH5(self._next_path(), self._provenance) as file:
            store_pairs(file.h5, [store_matches(file.h5, *item) for item in latest.values()])
        self._shards.append((file.path, len(latest)))

    def _merge_shards(self) -> None:
        """Merges the newest shards when many of them are small.

        The merged shard is in place before the others are deleted. A kill in between leaves two
        equal copies of some pairs, of which the next writer deletes the older one.
        """
        for limit in _MERGE_BELOW_PAIRS if self._merging else ():
            small = len(self._shards)
            while small > 0 and self._shards[small - 1][1] < limit:
                small -= 1
            sources = [path for path, _ in self._shards[small:]]
            if len(sources) < _FAN_IN:
                continue
            merged: dict[str, StoredPair] = {}
            try:
                with AtomicH5(self._next_path(), self._provenance) as file:
                    for path in reversed(sources):
                        with open_h5(path) as h5, reading(path):
                            for pair in stored_pairs(h5):
                                if pair.key not in merged and pair.other_key not in merged:
                                    h5.copy(pair.key, file.h5, name=pair.key)
                                    merged[pair.key] = pair
                        file.check()
                    store_pairs(file.h5, merged.values())
            except DamagedH5Error as error:  # whoever reads the pair says so, too, and can mend it
                logger.warning("Files of raw matches are not merged: %s", error.reason)
                self._merging = False
                return
            self._shards[small:] = [(file.path, len(merged))]
            for path in sources:
                path.unlink()
