"""Reads raw matches from a folder of shards, or from one H5 file in hloc's format."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import TypeVar

import h5py

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import check_collision, open_h5, pair_key, reading, stored_provenance
from edm_hloc.base.matches import Matches
from edm_hloc.matching.shards import StoredPair, read_matches, shard_paths, stored_pairs

_MAX_OPEN_SHARDS = 32

AnyReader = TypeVar("AnyReader", bound="RawMatchReader")


class RawMatchReader:
    """Reads raw matches from a folder of shards, or from one H5 file in hloc's format.

    Pairs are found in either order. At most 32 files are open at a time. Safe to use from several
    threads.

    Args:
        path: the folder, or the file.

    Raises:
        EdmHlocError: `path` does not exist; or, when it is read, a file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise EdmHlocError(f"No raw matches at {self.path}: run the matching first.")
        self._shards = shard_paths(self.path) if self.path.is_dir() else [self.path]
        self._open: OrderedDict[Path, h5py.File] = OrderedDict()
        self._index: dict[str, tuple[Path, StoredPair]] | None = None
        self._lock = threading.RLock()

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        """The settings the matches were made with; empty for a file that hloc made."""
        if not self._shards:
            return {}
        with self._lock, reading(self._shards[0]):
            return stored_provenance(self._file(self._shards[0]))

    def pairs(self) -> list[tuple[str, str]]:
        """The stored pairs, (name0, name1). Names in hloc's own files have "-" in place of "/"."""
        return [pair.names for _, pair in self._indexed().values()]

    def stored(self) -> list[StoredPair]:
        """The same with the stamps of the photos and the checksums of the matches."""
        return [pair for _, pair in self._indexed().values()]

    def __contains__(self, pair: tuple[str, str]) -> bool:
        name0, name1 = pair
        index = self._indexed()
        return pair_key(name0, name1) in index or pair_key(name1, name0) in index

    def read(self, name0: str, name1: str) -> Matches:
        """The matches of a pair; `keypoints0` are in image `name0`, whichever order is stored.

        Raises:
            EdmHlocError: the pair is not stored, its names cannot be told from those of another
                pair; as a `DamagedH5Error`: the file is damaged, or the matches have changed since
                they were written.
        """
        index = self._indexed()
        if pair_key(name0, name1) not in index and pair_key(name1, name0) in index:
            return self.read(name1, name0).swapped()
        if pair_key(name0, name1) not in index:
            raise EdmHlocError(
                f"No matches of the pair {name0!r}, {name1!r} in {self.path}: match it first."
            )
        path, pair = index[pair_key(name0, name1)]
        if pair.exact_names:
            check_collision(pair.names, (name0, name1))
        with self._lock, reading(path):
            return read_matches(self._file(path), pair)

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __enter__(self: AnyReader) -> AnyReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _indexed(self) -> dict[str, tuple[Path, StoredPair]]:
        """The shard of each pair by its key; the newest one of several, in whichever order."""
        with self._lock:
            if self._index is None:
                index: dict[str, tuple[Path, StoredPair]] = {}
                for path in self._shards:
                    with reading(path):
                        for pair in stored_pairs(self._file(path)):
                            index.pop(pair.other_key, None)
                            index[pair.key] = path, pair
                self._index = index
            return self._index

    def _file(self, path: Path) -> h5py.File:
        """An open shard; the least recently used one is closed when too many are open."""
        if path not in self._open:
            while len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[path] = open_h5(path)
        self._open.move_to_end(path)
        return self._open[path]
