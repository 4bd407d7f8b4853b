"""Results of a long step in one growing file, from which the step goes on after it was killed."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import force_to_disk, remove_leftover

_MAGIC = b"edm_hloc journal 1 "
_RECORD = struct.Struct("<HQI")  # length of the key, length of the data, CRC-32 of both
_TO_DISK_EVERY = (
    20.0  # seconds; a killed process loses nothing that was committed, a power cut this
)


class Journal:
    """Named byte strings in an append-only file; use it in a ``with`` block.

    What was put before the last `commit` is there again when a journal of the same path and inputs
    is opened, however the process before it ended: each entry has a checksum, and a torn end is cut
    off. A file of other inputs is replaced. The file stays until `remove`, which is called once
    the final result of the step is whole.

    Args:
        path: of the file, in a folder that one process writes into; None for a temporary file,
            which is gone with the process.
        made_from: fingerprint of everything that the results depend on.
        folder: of the temporary file; None is the system's.

    Attributes:
        path: the file.

    Raises:
        EdmHlocError: the file cannot be written.
    """

    def __init__(self, path: Path | None, made_from: str = "", folder: Path | None = None) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}  # offset and length of the data
        self._new: dict[str, tuple[int, int]] = {}  # of those put since the last commit
        self._unsynced_since: float | None = None
        self._end = 0
        header = _header(made_from)
        try:
            self._file = self._open(header, folder)
            if self._end == 0:
                self._end = self._file.write(header)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _open(self, header: bytes, folder: Path | None) -> IO[bytes]:
        if self.path is None:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=folder)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file() and not self.path.is_symlink():
            file = self.path.open("r+b")
            if file.read(len(header)) == header:
                self._end = self._scan(file, len(header))
                file.truncate(self._end)
                file.seek(self._end)
                return file
            file.close()
        remove_leftover(self.path)
        return self.path.open("x+b")

    def _scan(self, file: IO[bytes], start: int) -> int:
        """Finds all committed entries; gives the end of the last of them."""
        size = os.fstat(file.fileno()).st_size
        position = committed = start
        while position + _RECORD.size <= size:
            length_of_key, length, checksum = _RECORD.unpack(file.read(_RECORD.size))
            position += _RECORD.size + length_of_key + length
            if position > size:
                break
            key = file.read(length_of_key)
            if zlib.crc32(file.read(length), zlib.crc32(key)) != checksum:
                break
            if key:
                self._new[key.decode()] = (position - length, length)
            else:
                self._places |= self._new
                self._new.clear()
                committed = position
        self._new.clear()
        return committed

    def __contains__(self, key: str) -> bool:
        return key in self._places or key in self._new

    @property
    def committed(self) -> int:
        """The number of entries that are kept."""
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """The keys of the entries that are kept, in the order in which they were put first."""
        return iter(self._places)

    def put(self, key: str, data: bytes | np.ndarray) -> None:
        """Adds an entry; a later one of the same key counts.

        Args:
            key: not empty.
            data: bytes, or an array, of which the bytes are stored in C order.

        Raises:
            EdmHlocError: it cannot be written.
        """
        name = key.encode()
        content = data.tobytes() if isinstance(data, np.ndarray) else data
        record = _RECORD.pack(len(name), len(content), zlib.crc32(content, zlib.crc32(name)))
        try:
            self._file.seek(self._end)
            self._file.write(record)
            self._file.write(name)
            self._file.write(content)
        except OSError as error:
            raise self._cannot_write(error) from error
        start = self._end + len(record) + len(name)
        self._end = start + len(content)
        if key:
            self._new[key] = (start, len(content))

    def commit(self) -> None:
        """Keeps what was put so far, all of it or, if the process dies meanwhile, nothing.

        Raises:
            EdmHlocError: it cannot be written.
        """
        self.put("", b"")
        self._places |= self._new
        self._new.clear()
        if self.path is None:
            return
        try:
            self._file.flush()
            now = time.monotonic()
            if self._unsynced_since is None:
                self._unsynced_since = now
            elif now - self._unsynced_since > _TO_DISK_EVERY:
                force_to_disk(self.path)
                self._unsynced_since = None
        except OSError as error:
            raise self._cannot_write(error) from error

    def get(self, key: str) -> bytes:
        """The bytes of an entry. Raises EdmHlocError if they cannot be read, or not written yet."""
        start, length = self._new.get(key) or self._places[key]
        try:
            self._file.flush()  # else `seek` does it, and a full disk seems to fail to read
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            self._file.seek(start)
            data = self._file.read(length)
        except OSError as error:
            raise EdmHlocError(f"Cannot read {self._name}: {error.strerror or error}.") from error
        if len(data) != length:
            raise EdmHlocError(f"{self._name} was changed by another program: run again.")
        return data

    def array(self, key: str, dtype: np.dtype | type) -> np.ndarray:
        """An entry as a flat array, read-only."""
        return np.frombuffer(self.get(key), dtype)

    def close(self) -> None:
        """Closes the file, which stays where it is."""
        with contextlib.suppress(OSError):  # of a full disk; what was committed is written
            self._file.close()

    def remove(self) -> None:
        """Closes and removes the file."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def _name(self) -> str:
        return "a temporary file" if self.path is None else str(self.path)

    def _cannot_write(self, error: OSError) -> EdmHlocError:
        return EdmHlocError(
            f"Cannot write {self._name}: {error.strerror or error}. Free some disk space, then run "
            "again: what is already stored is kept."
        )

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _header(made_from: str) -> bytes:
    return _MAGIC + made_from.encode() + b"\n"


def is_journal(path: Path, made_from: str) -> bool:
    """Whether a file is a `Journal` of these inputs."""
    header = _header(made_from)
    try:
        with path.open("rb") as file:
            return file.read(len(header)) == header
    except OSError:
        return False


def journal_path(result: Path) -> Path:
    """Where the journal of a step lies, beside the file that the step makes."""
    return result.with_name(f".{result.name}.part")
