"""What all H5 files have in common: atomic writing, checked reading, names and provenance.

Keypoints are (x, y) in pixels of the original image, with the centre of the top-left pixel at
(0, 0). The files follow hloc's formats, and hloc's own files are read as well:

* group of an image: its name relative to the image folder, so that "/" makes subgroups. It holds
  ``keypoints`` and ``scores`` (`keypoints/h5.py`), or ``global_descriptor``
  (`pairs/descriptors.py`);
* group of a pair: ``a/b``, see `pair_key`. It holds ``matches0`` and ``matching_scores0``
  (`keypoints/h5.py`), or the raw matches ``keypoints0``, ``keypoints1`` and ``scores``
  (`matching/shards.py`);
* attribute ``provenance`` of the file: the settings it was made with, a JSON object.

A file is written under a temporary name, synced and renamed: one with its final name is complete.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import force_to_disk, refuse_other_kinds, remove_leftover

Provenance = Mapping[str, str | int | float | bool | None]
"""Everything that the content of a file depends on, by name."""

# By default HDF5 caches up to 32 MiB of a file's headers, which take several times that unpacked.
# Each header is read once or twice, far apart: a small cache is as fast, and memory does not grow
# with the number of pairs.
_HEADER_CACHE = 16 << 10  # bytes

# Oldest and newest format version that are used: every HDF5 since 1.10 can read the files. They are
# not compressed: lzf and gzip save a quarter of the space and write three times slower.
_LIBVER = ("v108", "v110")


def pair_key(name0: str, name1: str) -> str:
    """hloc's group name of a pair of images: the names with "-" for "/", joined by "/"."""
    return f"{name0.replace('/', '-')}/{name1.replace('/', '-')}"


class DamagedH5Error(EdmHlocError):
    """An H5 file, or something in it, cannot be read or is not what was written.

    Attributes:
        path: of the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path} is damaged or not the expected H5 file ({reason}). Delete it and run again."
        )
        self.path = path
        self.reason = reason


class _GuardedFile(io.FileIO):
    """A file for HDF5 to write to, which records a failed write instead of reporting it.

    HDF5 crashes the whole process when the disk is full while it writes or closes a file. Here the
    first error is kept in `error`, later writes are discarded, and `AtomicH5` raises the error
    outside HDF5.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        written = 0
        try:
            while self.error is None and written < len(view):
                written += super().write(view[written:]) or 0
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            if self.error is None:
                return super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0


class AtomicH5:
    """An H5 file that is written under a temporary name until `commit` renames it.

    The end of a ``with`` block commits it; if the block raises, nothing changes on disk.

    Attributes:
        path: its final name.
        h5: the open file.

    Raises:
        EdmHlocError: the folder cannot be written.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        provenance_json = json.dumps(dict(provenance))
        self.path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        try:
            refuse_other_kinds(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftover(self._temporary)
            self._raw = _GuardedFile(self._temporary, "x+")
            self._identity = os.fstat(self._raw.fileno())
        except OSError as error:
            raise cannot_write(path, error) from error
        self.h5 = h5py.File(self._raw, "w", libver=_LIBVER)
        store_text(self.h5, "provenance", provenance_json)

    def __enter__(self) -> AtomicH5:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()

    def check(self) -> None:
        """Raises EdmHlocError if something could not be written."""
        if self._raw.error is not None:
            raise cannot_write(self.path, self._raw.error) from self._raw.error

    def commit(self) -> None:
        """Closes the file and gives it its final name.

        Raises:
            EdmHlocError: it could not be written, or another process writes the same file; the
                temporary file is removed, and an older file with the final name stays.
        """
        try:
            self.h5.close()
            self.check()
            os.fsync(self._raw.fileno())
            self._raw.close()
            if not self._temporary_is_ours():
                raise EdmHlocError(f"Another process writes {self.path}: run one at a time.")
            os.replace(self._temporary, self.path)  # noqa: PTH105 (says what it does)
            force_to_disk(self.path.parent)
        except OSError as error:
            self.discard()
            raise cannot_write(self.path, error) from error
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Closes the temporary file and removes it."""
        self.h5.close()
        self._raw.close()
        if self._temporary_is_ours():
            self._temporary.unlink()

    def _temporary_is_ours(self) -> bool:
        # a second process that writes the same file may have replaced the temporary file
        try:
            return os.path.samestat(self._identity, self._temporary.stat())
        except OSError:
            return False


def cannot_write(path: Path, error: OSError) -> EdmHlocError:
    """The error to raise where an H5 file or its folder cannot be written."""
    return EdmHlocError(
        f"Cannot write {path}: {error.strerror or error}. Free disk space or choose another output "
        "folder, then run again: what is already stored is kept."
    )


def check_name(name: str) -> None:
    """Raises EdmHlocError if an image name cannot be the name of a group."""
    if "\0" in name or any(part in ("", ".") for part in name.split("/")):
        raise EdmHlocError(f"Image name {name!r} cannot be stored in an H5 file: rename the image.")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EdmHlocError(
            f"Image name {name!r} is not valid Unicode and cannot be stored in an H5 file: "
            "rename the image."
        ) from error


def check_shape(what: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises ValueError if an array to be stored has another shape."""
    if array.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, got {array.shape}")


def open_h5(path: Path) -> h5py.File:
    """Opens an H5 file for reading. Raises EdmHlocError if it is missing or damaged."""
    if not path.is_file():
        raise EdmHlocError(
            f"No such file: {path}. Run the step that makes it, or correct the path."
        )
    with reading(path):
        return _with_small_cache(h5py.File(path, "r"))


def _with_small_cache(h5: h5py.File) -> h5py.File:
    cache = h5.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = _HEADER_CACHE
    cache.incr_mode = cache.decr_mode = cache.flash_incr_mode = 0
    h5.id.set_mdc_config(cache)
    return h5


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns the errors of h5py on a damaged file into a `DamagedH5Error`.

    Raises:
        DamagedH5Error: one of the errors occurred that h5py raises on damaged files.
        EdmHlocError: this user may not read the file.
    """
    try:
        yield
    except PermissionError as error:
        raise EdmHlocError(f"Cannot read {path}: permission denied.") from error
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DamagedH5Error(path, str(error)) from error


def store_text(h5: h5py.File, name: str, text: str) -> None:
    """Stores a text as an attribute of a file, in bytes of a fixed length.

    HDF5 puts text of variable length into a heap without a checksum. Where a part of that has
    become zeros, as after a power cut, it reads it without end.
    """
    h5.attrs.create(name, np.bytes_(text.encode()))


def stored_text(h5: h5py.File, name: str) -> str:
    """What `store_text` stored, or older versions in variable length."""
    text = h5.attrs[name]
    return text if isinstance(text, str) else bytes(text).decode()


def stored_provenance(h5: h5py.File) -> dict[str, str | int | float | bool | None]:
    """The provenance in a file; empty for files of hloc, which have none."""
    return dict(json.loads(h5.attrs.get("provenance", "{}")))


AnyReader = TypeVar("AnyReader", bound="H5Reader")


class H5Reader:
    """An H5 file that is open for reading, until `close` or the end of a ``with`` block.

    Attributes:
        path: of the file.
        provenance: what the file was made with; empty for files of hloc.

    Raises:
        EdmHlocError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._h5 = open_h5(self.path)
        with reading(self.path):
            self.provenance = stored_provenance(self._h5)

    def _groups_with(self, dataset: str) -> list[str]:
        """The names of all groups that hold a dataset of that name, sorted."""
        found: list[str] = []

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            parent, _, last = name.rpartition("/")
            if last == dataset and isinstance(item, h5py.Dataset):
                found.append(parent)

        with reading(self.path):
            self._h5.visititems(visit)
        return sorted(found)

    def close(self) -> None:
        self._h5.close()

    def __enter__(self: AnyReader) -> AnyReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


AnyWriter = TypeVar("AnyWriter", bound="H5Writer")


class H5Writer:
    """Writes an H5 file in a ``with`` block.

    When the block ends, the file appears complete; if the block raises, nothing changes on disk.

    Args:
        path: of the file, which is replaced if it exists.
        provenance: what the content depends on, stored in the file.

    Raises:
        EdmHlocError: the folder cannot be written.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self._file = AtomicH5(Path(path), provenance)

    def __enter__(self: AnyWriter) -> AnyWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def _create_group(self, key: str) -> h5py.Group:
        """A new group. Raises EdmHlocError if it exists already."""
        try:
            return self._file.h5.create_group(key)
        except ValueError as error:
            raise EdmHlocError(
                f"{key!r} is already in {self._file.path}, or is the name of one of its datasets: "
                "each image and each pair is written once."
            ) from error


def check_keys(pairs: Sequence[tuple[str, str]]) -> None:
    """Refuses pairs that `pair_key` cannot tell apart, whichever of the two names comes first.

    Raises:
        EdmHlocError: two pairs have the same key; the message names the photos.
    """
    by_key: dict[str, str] = {}
    same: dict[str, str] = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        other = by_key.setdefault(name.replace("/", "-"), name)
        if other != name:
            same[name] = other
    if not same:
        return
    used: dict[frozenset[str], frozenset[str]] = {}
    for pair in pairs:
        key, names = frozenset(name.replace("/", "-") for name in pair), frozenset(pair)
        if used.setdefault(key, names) != names or len(key) < len(names):
            name = next(name for name in sorted(names | used[key]) if name in same)
            raise EdmHlocError(
                f'The photos {same[name]} and {name} have the same name in H5 files, where "/" is '
                'written as "-", as hloc does: rename one of them or its folder.'
            )


def check_collision(stored: tuple[str, str], asked: tuple[str, str]) -> None:
    """Raises EdmHlocError if a key, see `pair_key`, is already used by another pair.

    Args:
        stored: names of the images that the key was used for.
        asked: names of the images that have the same key.
    """
    if stored != asked:
        raise EdmHlocError(
            f"The pairs {stored} and {asked} have the same key {pair_key(*asked)!r} in H5 files, "
            'where "/" is written as "-": rename one of the images or folders.'
        )
