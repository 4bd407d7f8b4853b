"""Photos as the same ones though their files have another time: told by their content.

Photos that are copied, unpacked or synchronised often have a new time of modification. Everything
that is made of a photo is recorded with its stamp, size and time, as these are read at once. So
that equal content keeps its stamp, a checksum of the content is kept with each stamp that photos
have had, and those of equal content count as the first of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import require_file, write_whole
from edm_hloc.base.log import warn_once
from edm_hloc.base.progress import track
from edm_hloc.base.text import plural, read_json_object
from edm_hloc.images.cloud import CloudFolder
from edm_hloc.images.find import image_stamps
from edm_hloc.images.roots import ImageRoot

NAME = "photos.json"
"""Name of the file: {"photos": [[NAME, SIZE, TIME, CHECKSUM], ...]}, the oldest stamps first."""

_DIGEST_BYTES = 16

Stamp = tuple[int, int]


class KnownPhotos:
    """The stamps that photos have had, with checksums of their content.

    Where nothing is known, as of what older versions have matched, a photo of a new time counts as
    another one.

    Args:
        folder: of raw matches, in which they are kept; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._path = Path(folder) / NAME
        self._checksums: dict[tuple[str, Stamp], str] = {}
        self._first: dict[tuple[str, int, str], Stamp] = {}
        # without the file, or with a damaged one, photos are told by size and time alone
        with contextlib.suppress(EdmHlocError, KeyError, TypeError, ValueError):
            if self._path.is_file():
                for name, size, time, checksum in read_json_object(self._path, "stamps")["photos"]:
                    self._add(str(name), (int(size), int(time)), str(checksum))

    def _add(self, name: str, stamp: Stamp, checksum: str) -> None:
        self._checksums[name, stamp] = checksum
        self._first.setdefault((name, stamp[0], checksum), stamp)

    def first(self, name: str, stamp: Stamp | None) -> Stamp | None:
        """The first stamp that the photo has had with the content that it had with this one."""
        if stamp is None:
            return None
        checksum = self._checksums.get((name, stamp))
        return stamp if checksum is None else self._first[name, stamp[0], checksum]

    def stamps(self, root: ImageRoot, names: Iterable[str]) -> dict[str, Stamp]:
        """`image_stamps` of the photos, each the `first` of its content."""
        return {name: self.first(name, s) or s for name, s in image_stamps(root, names).items()}

    def noted(self, root: ImageRoot, names: Collection[str]) -> dict[str, Stamp]:
        """`stamps`, after `note` where the folder is there already."""
        if self._path.parent.is_dir():
            self.note(root, names)
        return self.stamps(root, names)

    def note(self, root: ImageRoot, names: Iterable[str]) -> None:
        """Reads and keeps the checksums of photos that are not known with the stamps of now.

        Of those in object storage none are kept, since all would be fetched for it.

        Args:
            root: what the names are relative to.
            names: of photos; those that cannot be read are passed over.

        Raises:
            NoRoomError: they cannot be written.
        """
        if isinstance(root, CloudFolder):
            return
        now = image_stamps(root, names)
        new = [name for name, stamp in now.items() if (name, stamp) not in self._checksums]
        for name in track(new, "Reading photos", "photo"):
            if (checksum := content_checksum(root / name)) is not None:
                self._add(name, now[name], checksum)
        if new:
            listed = [[name, *stamp, text] for (name, stamp), text in self._checksums.items()]
            write_whole(self._path, json.dumps({"photos": listed}))


def warn_of_changed(names: Collection[str]) -> None:
    """Warns of photos that are not those any more of which matches are stored."""
    if names:
        warn_once(
            f"{plural(len(names), 'photo')} changed since the matching, such as {min(names)}: "
            "their pairs are matched again."
        )


def content_checksum(path: Path, length: int | None = None) -> str | None:
    """A checksum of the first bytes of a file, None for all; None where it cannot be read."""
    try:
        require_file(path)
        with path.open("rb") as file:
            if length is None:
                return hashlib.file_digest(file, _digest).hexdigest()
            return _digest(file.read(length)).hexdigest()
    except OSError:
        return None


def _digest(data: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES)
