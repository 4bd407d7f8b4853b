"""What all that write files share: files whole or not at all, one process at a time in a folder."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError

logger = logging.getLogger(__name__)


def write_whole(path: Path, data: str | bytes) -> None:
    """Writes a file under a temporary name, then renames it: what has its name is whole.

    Raises:
        EdmHlocError: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        temporary.replace(path)
    except OSError as error:
        raise EdmHlocError(f"Cannot write {path}: {error.strerror or error}.") from error


class FolderLock:
    """Keeps a second process from writing into the same folder, until `release` or the end of a
    ``with`` block.

    SQLite's lock on an empty database is the one lock of the standard library that works on every
    system and that the operating system itself gives back when the process dies, however it dies.

    Raises:
        EdmHlocError: another process has it, or the folder cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / ".lock"
        try:
            # any thread may release it
            self._connection = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise EdmHlocError(
                f"Cannot write into {directory} ({error}): choose another output folder."
            ) from error
        try:
            self._connection.execute("PRAGMA journal_mode = MEMORY")  # no second file
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._connection.close()
            if "locked" in str(error):
                raise EdmHlocError(
                    f"Another process is writing into {directory}: wait until it ends, or choose "
                    "another output folder."
                ) from error
            logger.warning("No lock on %s (%s): do not run two processes on it.", directory, error)

    def release(self) -> None:
        self._connection.close()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
