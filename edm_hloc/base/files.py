"""Writing files whole or not at all, and one process at a time into a folder."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from edm_hloc.base.errors import BusyError, EdmHlocError, NoRoomError

logger = logging.getLogger(__name__)

MADE_FROM = "made_from.txt"


def write_whole(path: Path, data: str | bytes, *, durable: bool = False) -> None:
    """Writes a file under a temporary name, then renames it, so that no reader sees a part of it.

    Folders that do not exist are made.

    Args:
        path: of the file, which is replaced if it exists.
        data: its content; text is written in UTF-8.
        durable: also force it to the disk, so that it is whole after a power cut.

    Raises:
        NoRoomError: it cannot be written; an older file of that name stays as it was.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.tmp"  # "." and "/" have no name
    try:
        refuse_other_kinds(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftover(temporary)
        with temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        if durable:
            force_to_disk(temporary)
        temporary.replace(path)
        if durable:
            force_to_disk(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # half a file only takes room on a full disk
            temporary.unlink()
        raise NoRoomError(f"Cannot write {path}: {error.strerror or error}.") from error


def refuse_other_kinds(path: Path) -> None:
    """Refuses a folder, device or pipe where a file is going to be renamed to.

    As root even /dev/null would be replaced by that file. A link is refused if it leads to one of
    these; other links are replaced, without what they lead to.

    Raises:
        OSError: there is one, with the reason in `strerror`.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file")


def remove_leftover(temporary: Path) -> None:
    """Removes what a killed run left under a temporary name, and a link without what it leads to.

    Raises:
        OSError: it cannot be removed.
    """
    if temporary.is_dir() and not temporary.is_symlink():
        shutil.rmtree(temporary)
    else:
        temporary.unlink(missing_ok=True)


def holds_more_than(folder: Path, name: str) -> bool:
    """Whether a folder holds anything but what a killed `write_whole` of this name has left."""
    return any(path.name != f".{name}.tmp" for path in folder.iterdir())


def claim_folder(folder: Path, made_from: str) -> bool:
    """Makes a folder hold nothing but what is made from given inputs, as `MADE_FROM` in it tells.

    Args:
        folder: of ours alone; what lies there of other inputs is removed.
        made_from: fingerprint of everything that its content depends on.

    Returns:
        Whether content of other inputs was removed.

    Raises:
        NoRoomError: the folder cannot be written.
    """
    marker = folder / MADE_FROM
    try:
        marked = marker.is_file()
        if marked and marker.read_text("utf-8") == made_from:
            return False
        remove_leftover(folder)
        write_whole(marker, made_from, durable=True)
    except OSError as error:
        raise NoRoomError(f"Cannot write {folder}: {error.strerror or error}.") from error
    return marked


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, if there is none, and tries to write into it.

    Called before any work whose results go there.

    Raises:
        EdmHlocError: it cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise EdmHlocError(
            f"Cannot make the folder {folder}: {reason}. Choose another output folder."
        ) from error
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EdmHlocError(
            f"Cannot write into {folder} ({error.strerror or error}): choose another output folder."
        ) from error


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is needed in a ``with`` block only, where the system has such ones.

    Raises:
        NoRoomError: it cannot be made.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix="edm_hloc-")
    except OSError as error:  # of a list of folders, of which none can be written
        raise NoRoomError(
            f"No temporary folder can be made ({error.strerror or error}): free some disk space "
            "there, or set TMPDIR to a folder that can be written."
        ) from error
    with made as name:
        yield Path(name)


def refuse_foreign(path: Path, mark: bytes) -> None:
    """Raises EdmHlocError if a file is there that cannot be read, or whose beginning lacks the mark
    of our files; an empty one may be written over."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError:
        return
    except OSError as error:
        raise EdmHlocError(f"Cannot write {path}: {error.strerror or error}.") from error
    if start and mark not in start:
        raise EdmHlocError(
            f"{path} was not made by edm-hloc and is not written over: move it, or rename it."
        )


def check_kinds(folder: Path, names: Iterable[str]) -> None:
    """Refuses a folder where a file is going to be written, and a file where a folder is.

    Args:
        folder: of the files and folders.
        names: of those that are going to be written; files have a suffix, folders have none.

    Raises:
        EdmHlocError: one of them is there and of the other kind.
    """
    for name in names:
        path, is_file = Path(folder) / name, Path(name).suffix != ""
        if path.exists() and path.is_dir() == is_file:
            there, wanted = ("folder", "file") if is_file else ("file", "folder")
            raise EdmHlocError(
                f"{path} is a {there}, but edm-hloc makes a {wanted} of that name there: move it, "
                "or choose another output folder."
            )


def require_file(path: Path) -> None:
    """Refuses what would be waited for, or read, without end: pipes, devices, sockets.

    What a shell makes of ``<(command)``, and standard input, are pipes that have an end.

    Raises:
        OSError: there is something else than a file at this path (or nothing), with the reason in
            `strerror` and the path in `filename`; folders are left to whoever opens them.
    """
    mode = Path(path).stat().st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    if stat.S_ISFIFO(mode) and str(path).startswith(("/dev/", "/proc/")):
        return
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def force_to_disk(path: Path) -> None:
    """Forces the content of a file to the disk, or the names of the entries of a folder.

    Not every system can open a folder, which is passed over there.

    Raises:
        OSError: the file cannot be read, or the disk reports that it could not store it.
    """
    if path.is_dir():
        with contextlib.suppress(OSError):
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR)  # Windows forces only files that are open for writing


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """Keeps a second process, or a second lock in this one, from writing into the same folder.

    The lock is taken when the object is made, and held until `release` (from any thread) or the
    end of a ``with`` block. It is the operating system's lock (`flock`, or `msvcrt.locking` on
    Windows) on the file ``.lock`` in the folder, which stays there; its content does not matter.
    The system gives the lock back when the process dies, however it dies, even if processes forked
    from it live on. Where the file system has no locks, or another user's ``.lock`` cannot be
    opened, a warning is logged and the work goes on: filelock's own substitute for locks, a marker
    file, would outlive a killed process.

    Older versions of this package lock an SQLite file of that name. One that they left is taken
    over, but one of them that is still at work in the folder is not noticed.

    Args:
        directory: the folder.

    Raises:
        EdmHlocError: the folder cannot be written; as a `BusyError`: it is locked already.
    """

    def __init__(self, directory: Path) -> None:
        path = Path(directory) / ".lock"
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise EdmHlocError(
                f"{path} must be a plain file, with which edm-hloc keeps others from the folder: "
                "remove it, or choose another output folder."
            )
        self._lock = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise BusyError(
                f"Another process is writing into {directory}: wait until it ends, or choose "
                "another output folder."
            ) from error
        except OSError as error:
            reason = error.strerror or error
            if not path.exists() or not os.access(directory, os.W_OK):
                raise EdmHlocError(
                    f"Cannot write into {directory} ({reason}): choose another output folder."
                ) from error
            logger.warning("No lock on %s (%s): do not run two processes on it.", directory, reason)

    def release(self) -> None:
        """Gives the lock back; does nothing if it is not held."""
        self._lock.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
