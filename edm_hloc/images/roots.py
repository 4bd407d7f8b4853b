"""Where photos lie: in one folder, or in several that are taken as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.storage import is_url
from edm_hloc.images.cloud import CloudFolder


class ImageRoot(Protocol):
    """What the names of photos are relative to: a `Path`, `JoinedFolders` or `CloudFolder`."""

    def __truediv__(self, name: str, /) -> Path:
        """The file of a photo."""


@dataclass(frozen=True)
class JoinedFolders:
    """Several folders of photos as if each were a subfolder of one, without links between them.

    Attributes:
        folders: folder by the first part of the names: with ``{"query": Path("phone")}`` the name
            ``query/a/b.jpg`` is the file ``phone/a/b.jpg``. A name that begins with none of them is
            a path itself.
    """

    folders: Mapping[str, Path]

    def __truediv__(self, name: str, /) -> Path:
        first, _, rest = name.partition("/")
        return self.folders.get(first, Path(first)) / rest

    def __str__(self) -> str:
        return " and ".join(str(folder) for folder in self.folders.values())


def root_text(root: ImageRoot) -> str:
    """Where photos lie, as a record names it: a folder by its absolute path, to be found again."""
    return str(root.resolve() if isinstance(root, Path) else root)


def root_to_json(root: ImageRoot) -> Any:
    """Where photos lie as a value that JSON knows, with absolute paths, for another process.

    Raises:
        EdmHlocError: it is a root of somebody's own kind.
    """
    if isinstance(root, Path):
        return str(root.resolve())
    if isinstance(root, JoinedFolders):
        return {name: str(folder.resolve()) for name, folder in root.folders.items()}
    if isinstance(root, CloudFolder):
        return str(root)
    raise EdmHlocError(f"Other processes cannot find the photos of {root}: give their folder.")


def root_from_json(value: Any) -> ImageRoot:
    """What `root_to_json` was given."""
    if isinstance(value, dict):
        return JoinedFolders({name: Path(folder) for name, folder in value.items()})
    return photo_root(value)


def photo_root(text: str) -> Path | CloudFolder:
    """The folder of photos at a path or an address (``s3://…``, ``gs://…``).

    Raises:
        EdmHlocError: a library for the address is missing, or its kind is not known.
    """
    return CloudFolder(text) if is_url(text) else Path(text)
