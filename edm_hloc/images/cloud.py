"""Photos in object storage, fetched when they are needed into a folder of bounded size."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from edm_hloc.base.errors import EdmHlocError, ImageError
from edm_hloc.base.storage import Store, Stored

_CACHE = 2 << 30  # bytes of photos
_NEVER_REMOVED = 32  # photos that were asked for last: they may not have been read yet
_ASKED_AT_A_TIME = 16


class CloudFolder:
    """A folder of photos in object storage, for use as an `ImageRoot`.

    ``folder / name`` is the path of a photo on the local disk, where it is fetched to if it is not
    there. Those used longest ago are removed when they take too much room. May be called from
    several threads.

    Args:
        url: of the folder, such as ``s3://bucket/photos``.
        cache_bytes: room for photos; the 32 last ones may take more.

    Raises:
        EdmHlocError: a library is missing, or the kind of storage is not known.
    """

    def __init__(self, url: str, cache_bytes: int = _CACHE) -> None:
        self._store = Store(url)
        self._cache_bytes = cache_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="edm_hloc-photos-")
        self._listed: dict[str, Stored] = {}  # what `names` found
        self._sizes: OrderedDict[str, int] = OrderedDict()  # of the photos that are here
        self._being_fetched: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return self._store.url

    def names(self) -> list[str]:
        """Names of all objects below the folder, sorted. Raises EdmHlocError if it has none."""
        self._listed = self._store.objects()
        if not self._listed:
            raise EdmHlocError(f"There is nothing in {self}: check the address.")
        return list(self._listed)

    def stamps(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """(size in bytes, time of the put in ns) by name; those that are missing are left out.

        Of objects that `names` has listed they are those of the list: nothing is asked again.
        """
        names = list(names)
        listed = self._listed
        others = [name for name in names if name not in listed]
        with ThreadPoolExecutor(_ASKED_AT_A_TIME) as pool:
            asked = dict(zip(others, pool.map(self._store.stat, others), strict=True))
        found = ((name, listed.get(name) or asked[name]) for name in names)
        return {name: (stored.size, stored.modified) for name, stored in found if stored}

    def __truediv__(self, name: str, /) -> Path:
        """The file of a photo.

        Raises:
            ImageError: there is no such photo.
            EdmHlocError: the storage cannot be reached.
        """
        with self._lock:
            lock = self._being_fetched.setdefault(name, threading.Lock())
        path = self._path(name)
        with lock:
            with self._lock:
                if name in self._sizes:
                    self._sizes.move_to_end(name)
                    return path
            stored = self._store.stat(name)
            if stored is None:
                raise ImageError(f"There is no photo {self}/{name}.")
            self._store.get(name, path)
            os.utime(path, ns=(stored.modified, stored.modified))
            self._fetched(name, stored)
        return path

    def _path(self, name: str) -> Path:
        folder = hashlib.sha256(name.encode()).hexdigest()[:16]  # names may be too long for a disk
        return Path(self._folder.name) / f"{folder}{PurePosixPath(name).suffix}"

    def _fetched(self, name: str, stored: Stored) -> None:
        """Takes note of a photo, and removes others if they take too much room."""
        with self._lock:
            self._sizes[name] = stored.size
            self._being_fetched.pop(name, None)
            room = sum(self._sizes.values()) - self._cache_bytes
            for other in list(self._sizes)[:-_NEVER_REMOVED]:
                if room <= 0:
                    break
                room -= self._sizes.pop(other)
                with contextlib.suppress(OSError):
                    self._path(other).unlink()
