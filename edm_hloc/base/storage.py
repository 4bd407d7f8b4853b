"""Object storage (``s3://bucket/folder``, ``gs://bucket/folder``) through fsspec: whole files only.

A put is atomic there: an object appears whole or not at all, and of two puts of the same name the
later one counts. There are no locks and no renaming, and none is needed. A folder of this computer
(``file:///folder``) behaves likewise.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from edm_hloc.base.errors import EdmHlocError, NoRoomError
from edm_hloc.base.files import refuse_other_kinds, remove_leftover

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_TRANSFERS = 8  # at a time
_OF_THIS_COMPUTER = ("file", "local")  # schemes of fsspec


def is_url(text: str | Path) -> bool:
    """Whether this is the address of a folder in object storage."""
    return _URL.match(str(text)) is not None


class Stored(NamedTuple):
    """An object.

    Attributes:
        size: in bytes.
        modified: when it was put, in ns, in whole seconds.
    """

    size: int
    modified: int


class Store:
    """A folder in object storage. Credentials are those of the provider's own tools.

    Args:
        url: of the folder.

    Raises:
        EdmHlocError: a library is missing, or the kind of storage is not known.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        try:
            from fsspec.core import url_to_fs

            self._fs, root = url_to_fs(self.url, use_listings_cache=False)
        except ModuleNotFoundError as error:
            raise self._missing((error.name or "fsspec").partition(".")[0]) from None
        except ImportError as error:  # of fsspec, which names the library
            library = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(scheme)
            if library is None:
                raise EdmHlocError(f"{url} cannot be used: {error}.") from None
            raise self._missing(library) from None
        except ValueError as error:
            raise EdmHlocError(
                f"{url} cannot be used ({error}): give a folder, s3://… or gs://…."
            ) from None
        self._root = str(root).rstrip("/")
        self._has_folders = scheme in _OF_THIS_COMPUTER

    def _missing(self, library: str) -> EdmHlocError:
        how = "'edm_hloc[cloud]'" if library in ("fsspec", "s3fs") else library
        return EdmHlocError(f"{self.url} needs {library}: pip install {how}.")

    def __str__(self) -> str:
        return self.url

    def objects(self) -> dict[str, Stored]:
        """All objects by name, relative to the folder, in the order of the names.

        Raises:
            EdmHlocError: the bucket is missing or cannot be reached.
        """
        with self._talking():
            found = self._fs.find(self._root, detail=True)
        start = len(self._root) + 1
        return {path[start:]: _stored(info) for path, info in sorted(found.items())}

    def stat(self, name: str) -> Stored | None:
        """Size and time of an object; None if there is none, or no bucket."""
        with self._talking():
            try:
                info = self._fs.info(f"{self._root}/{name}")
            except FileNotFoundError:
                return None
        return _stored(info) if info["type"] == "file" else None

    def get(self, name: str, path: Path) -> None:
        """Fetches an object into a file, which appears whole or not at all.

        Raises:
            EdmHlocError: there is no such object, or the file cannot be written.
        """
        with _made_whole(path) as temporary, self._talking(name):
            self._fs.get_file(f"{self._root}/{name}", str(temporary))

    def put(self, path: Path, name: str) -> None:
        """Stores a file as an object, whole or not at all; one of that name is replaced.

        Raises:
            EdmHlocError: it cannot be stored.
        """
        place = f"{self._root}/{name}"
        with self._talking(name):
            if self._has_folders:  # they have to be made, and a copy in them grows before all eyes
                with _made_whole(Path(place)) as temporary:
                    shutil.copyfile(path, temporary)
            else:
                self._fs.put_file(str(path), place)

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""
        with self._talking(name), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def get_all(self, names: list[str], folder: Path) -> None:
        """Fetches objects into a folder, several at a time."""
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            for done in [pool.submit(self.get, name, folder / name) for name in names]:
                done.result()

    def put_all(self, folder: Path, names: list[str]) -> None:
        """Stores files of a folder, several at a time."""
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            for done in [pool.submit(self.put, folder / name, name) for name in names]:
                done.result()

    @contextlib.contextmanager
    def _talking(self, name: str = "") -> Iterator[None]:
        """Turns what a provider's library raises into a sentence."""
        place = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except EdmHlocError:
            raise
        except FileNotFoundError as error:
            raise EdmHlocError(
                f"There is no {place} ({_first_line(error)}): check the address, and make the "
                "bucket if it is missing."
            ) from error
        except PermissionError as error:
            raise EdmHlocError(
                f"Access to {place} is denied ({_first_line(error)}): check the credentials and "
                "what they are allowed."
            ) from error
        except Exception as error:  # of botocore, aiohttp, google.auth, …
            kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
            if "Credentials" in kinds:
                raise EdmHlocError(
                    f"There are no credentials for {place} ({_first_line(error)}): give those "
                    "that the provider's own tools use, such as AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY."
                ) from error
            if "Connect" in kinds or "Timeout" in kinds:
                raise EdmHlocError(
                    f"{place} cannot be reached ({_first_line(error)}): is there a network? What "
                    "is done is kept; the same command goes on."
                ) from error
            raise EdmHlocError(f"Cannot use {place}: {_first_line(error)}.") from error


@contextlib.contextmanager
def _made_whole(path: Path) -> Iterator[Path]:
    """A temporary name for a file, to which it is renamed at the end; its folder is made.

    Raises:
        NoRoomError: the folder or the file cannot be made.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _writing(path):
        refuse_other_kinds(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftover(temporary)
    try:
        yield temporary
        with _writing(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns an error of the file system into a sentence that names the file."""
    try:
        yield
    except OSError as error:
        raise NoRoomError(f"Cannot write {path}: {error.strerror or error}.") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _stored(info: dict[str, Any]) -> Stored:
    """Of what fsspec tells of an object; the keys of the time differ between providers."""
    modified = next((info[k] for k in ("LastModified", "mtime", "updated") if info.get(k)), None)
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified.replace("Z", "+00:00"))
    seconds = int(modified.timestamp()) if isinstance(modified, datetime) else int(modified or 0)
    return Stored(int(info["size"]), seconds * 10**9)
