"""Reads and writes every H5 file: crash-safe raw matches; hloc's keypoints, matches, descriptors.

Formats (keypoints are (x, y) in pixels of the original image, hloc's frame):

* *Raw matches*, one folder of ``matches-NNNNNN.h5`` shards. Each shard is an ordinary hloc file:
  group ``a/b`` (see `pair_key`) with ``keypoints0``, ``keypoints1`` (M, 2) and ``scores`` (M,),
  float32. Two attributes of the file, both JSON, say where it comes from: ``provenance``, the
  settings of the run, equal in all shards of a folder; and ``pairs``, a list of ``[name0, name1,
  stamp0, stamp1]`` with the real names and the (size in bytes, mtime in ns) of the two image files,
  null where not known.
* *Features*: group = image name with ``keypoints`` (N, 2) float32, ``scores`` (N,) float32, and the
  attribute ``uncertainty`` of ``keypoints`` where known; ``provenance`` as above.
* *Matches*: group ``a/b`` with ``matches0`` (N0,) int32, −1 for none, and ``matching_scores0``
  float16; ``provenance`` as above.
* *Descriptors*: group = image name with ``global_descriptor`` (D,) float32; ``provenance`` as
  above.

Everything is written under a temporary name, synced and renamed: a file with a final name is whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import FolderLock

logger = logging.getLogger(__name__)

Provenance = Mapping[str, str | int | float | bool | None]
Stamp = tuple[int, int]
"""(size in bytes, modification time in ns) of an image file: tells whether it changed since."""

# A shard is written when one of these is reached: a kill loses no more than that.
_FLUSH_PAIRS = 64
_FLUSH_BYTES = 16 << 20
_FLUSH_SECONDS = 2.0
# When the newest _FAN_IN shards all have fewer pairs than one of these they become one shard. Each
# pair is rewritten about three times at most, 180,000 pairs end in some 350 files, and no merge is
# so large that HDF5's memory for it (18 KB a pair) or the wait for it would matter.
_FAN_IN = 8
_MERGE_BELOW_PAIRS = (8, 64, 512)
_MAX_OPEN_SHARDS = 32
# HDF5 keeps up to 32 MiB of a file's headers, unpacked to a multiple of that. Each is read once or
# twice, far apart, so that this much does as well, and memory does not grow with the pairs.
_HEADER_CACHE = 16 << 10
# Any HDF5 since 1.10 reads it, whichever wrote it. No compression: lzf and gzip save a quarter of
# the space and write three times slower.
_LIBVER = ("v108", "v110")


class RawMatches(NamedTuple):
    """What a dense matcher found in one pair of images, before any merging of keypoints."""

    keypoints0: np.ndarray  # (M, 2) float32, pixels of the original image 0, hloc's frame
    keypoints1: np.ndarray  # (M, 2) float32, pixels of the original image 1
    scores: np.ndarray  # (M,) float32

    def swapped(self) -> RawMatches:
        """The same matches with the two images exchanged."""
        return RawMatches(self.keypoints1, self.keypoints0, self.scores)


def pair_key(name0: str, name1: str) -> str:
    """hloc's group name of a pair: both names with "/" replaced by "-", joined by "/"."""
    return f"{name0.replace('/', '-')}/{name1.replace('/', '-')}"


# --------------------------------------------------------------------------- whole files or none


class _GuardedFile(io.FileIO):
    """A file for HDF5 to write to, which notes a failed write instead of reporting it to HDF5.

    HDF5 crashes the whole process when the disk fills up while it writes or closes a file. Here
    the error is kept, later writes go nowhere, and `_AtomicH5` raises where HDF5 is not involved.
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


class _AtomicH5:
    """An H5 file that is written beside its final name and appears there whole on `commit`."""

    def __init__(self, path: Path, provenance: Provenance) -> None:
        provenance_json = json.dumps(dict(provenance))
        self.path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.unlink(missing_ok=True)  # left by a run that was killed
            self._raw = _GuardedFile(self._temporary, "x+")
            self._identity = os.fstat(self._raw.fileno())
        except OSError as error:
            raise _cannot_write(path, error) from error
        self.h5 = h5py.File(self._raw, "w", libver=_LIBVER)
        self.h5.attrs["provenance"] = provenance_json

    def check(self) -> None:
        if self._raw.error is not None:
            raise _cannot_write(self.path, self._raw.error) from self._raw.error

    def commit(self) -> None:
        """Puts the file in its place, or raises EdmHlocError."""
        try:
            self.h5.close()
            self.check()
            os.fsync(self._raw.fileno())
            self._raw.close()
            if not self._temporary_is_ours():
                raise EdmHlocError(f"Another process writes {self.path}: run one at a time.")
            os.replace(self._temporary, self.path)  # noqa: PTH105 (says what it does)
            _sync_directory(self.path.parent)
        except OSError as error:
            self.discard()
            raise _cannot_write(self.path, error) from error
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Closes the file and removes every trace of it."""
        self.h5.close()
        self._raw.close()
        if self._temporary_is_ours():
            self._temporary.unlink()

    def _temporary_is_ours(self) -> bool:
        # a second process that writes the same file has put its own in this place
        try:
            return os.path.samestat(self._identity, self._temporary.stat())
        except OSError:
            return False


def _sync_directory(directory: Path) -> None:
    # Makes the rename itself survive a power cut; not every system can open a directory.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> EdmHlocError:
    return EdmHlocError(
        f"Cannot write {path}: {error.strerror or error}. Free disk space or choose another output "
        "folder, then run again: what is already stored is kept."
    )


def _check_name(name: str) -> None:
    """Refuses the names an H5 path cannot hold."""
    if "\0" in name or any(part in ("", ".") for part in name.split("/")):
        raise EdmHlocError(f"Image name {name!r} cannot be stored in an H5 file: rename the image.")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EdmHlocError(
            f"Image name {name!r} is not valid Unicode and cannot be stored in an H5 file: "
            "rename the image."
        ) from error


def _check_shape(what: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, got {array.shape}")


# --------------------------------------------------------------------------- reading


def _open_h5(path: Path) -> h5py.File:
    if not path.is_file():
        raise EdmHlocError(
            f"No such file: {path}. Run the step that makes it, or correct the path."
        )
    with _reading(path):
        return _with_small_cache(h5py.File(path, "r"))


def _with_small_cache(h5: h5py.File) -> h5py.File:
    cache = h5.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = _HEADER_CACHE
    cache.incr_mode = cache.decr_mode = cache.flash_incr_mode = 0
    h5.id.set_mdc_config(cache)
    return h5


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what h5py raises on a damaged file into a message that names it."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise EdmHlocError(
            f"{path} is damaged or not the expected H5 file ({error}). Delete it and run again."
        ) from error


def _provenance(h5: h5py.File) -> dict[str, str | int | float | bool | None]:
    return dict(json.loads(h5.attrs.get("provenance", "{}")))


_AnyReader = TypeVar("_AnyReader", bound="_Reader")


class _Reader:
    """One open H5 file; closed by `close` or at the end of a ``with`` block."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._h5 = _open_h5(self.path)
        with _reading(self.path):
            self.provenance = _provenance(self._h5)

    def _groups_with(self, dataset: str) -> list[str]:
        """The names of all groups that hold a data set of that name, sorted."""
        found: list[str] = []

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            parent, _, last = name.rpartition("/")
            if last == dataset and isinstance(item, h5py.Dataset):
                found.append(parent)

        with _reading(self.path):
            self._h5.visititems(visit)
        return sorted(found)

    def close(self) -> None:
        self._h5.close()

    def __enter__(self: _AnyReader) -> _AnyReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FeatureReader(_Reader):
    """Reads a keypoint file, ours or hloc's. Raises EdmHlocError if missing or damaged."""

    def names(self) -> list[str]:
        """The names of all images in the file, sorted."""
        return self._groups_with("keypoints")

    def __contains__(self, name: str) -> bool:
        return isinstance(self._h5.get(f"{name}/keypoints"), h5py.Dataset)

    def keypoints(self, name: str) -> np.ndarray:
        """(N, 2) in pixels of the original image, hloc's frame, in the file's own float type."""
        with _reading(self.path):
            return np.asarray(self._group(name)["keypoints"])

    def scores(self, name: str) -> np.ndarray | None:
        """(N,) scores of the keypoints, or None; also found under ``score``, as hloc writes it."""
        group = self._group(name)
        with _reading(self.path):
            for key in ("scores", "score"):
                if isinstance(group.get(key), h5py.Dataset):
                    return np.asarray(group[key])
        return None

    def uncertainty(self, name: str) -> float | None:
        """Standard deviation of the keypoints in pixels, or None where the file does not say."""
        with _reading(self.path):
            value = self._group(name)["keypoints"].attrs.get("uncertainty")
        return None if value is None else float(value)

    def _group(self, name: str) -> h5py.Group:
        if name not in self:
            raise EdmHlocError(f"No keypoints of image {name!r} in {self.path}.")
        return self._h5[name]


class MatchReader(_Reader):
    """Reads a match file, ours or hloc's. Raises EdmHlocError if missing or damaged."""

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return self._find(*pair) is not None

    def matches(self, name0: str, name1: str) -> tuple[np.ndarray, np.ndarray]:
        """Matches of a pair, stored in either order: (K, 2) int64 keypoint indices into image 0 and
        image 1, and their scores (K,) float32. Raises EdmHlocError for a pair that is not there."""
        found = self._find(name0, name1)
        if found is None:
            raise EdmHlocError(
                f"No matches of the pair {name0!r}, {name1!r} in {self.path}: "
                "was it made with another list of pairs?"
            )
        key, reverse = found
        with _reading(self.path):
            matches0 = np.asarray(self._h5[key]["matches0"])
            scores0 = np.asarray(self._h5[key]["matching_scores0"])
            index0 = np.flatnonzero(matches0 != -1)
            matches = np.stack([index0, matches0[index0].astype(np.int64)], axis=1)
            scores = scores0[index0].astype(np.float32)
        return np.ascontiguousarray(matches[:, ::-1] if reverse else matches), scores

    def _find(self, name0: str, name1: str) -> tuple[str, bool] | None:
        """The pair's group and whether it holds the reverse pair: "a/b", then the older "a_b"."""
        new, new_reverse = pair_key(name0, name1), pair_key(name1, name0)
        old, old_reverse = (
            "_".join(name.replace("/", "-") for name in names)
            for names in ((name0, name1), (name1, name0))
        )
        for key, reverse in (
            (new, False),
            (new_reverse, True),
            (old, False),
            (old_reverse, True),
        ):
            if f"{key}/matches0" in self._h5:
                return key, reverse
        return None


class DescriptorReader(_Reader):
    """Reads global descriptors, ours or hloc's. Raises EdmHlocError if missing or damaged."""

    def names(self) -> list[str]:
        """The names of all images in the file, sorted."""
        return self._groups_with("global_descriptor")

    def read(self, names: Sequence[str]) -> np.ndarray:
        """(len(names), D) float32.

        Raises:
            EdmHlocError: an image is not there, or the lengths differ.
        """
        rows = []
        for name in names:
            with _reading(self.path):
                item = self._h5.get(f"{name}/global_descriptor")
                row = None if item is None else np.asarray(item, np.float32).ravel()
            if row is None:
                raise EdmHlocError(
                    f"{self.path} has no descriptor of {name!r}: make it with all images, or give "
                    "another file."
                )
            rows.append(row)
        if len({len(row) for row in rows}) > 1:
            raise EdmHlocError(f"The descriptors in {self.path} differ in length.")
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


# --------------------------------------------------------------------------- final files


_AnyWriter = TypeVar("_AnyWriter", bound="_Writer")


class _Writer:
    """A final file: whole after a ``with`` block that ended well, else as it was before it."""

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self._file = _AtomicH5(Path(path), provenance)

    def __enter__(self: _AnyWriter) -> _AnyWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.commit()
        else:
            self._file.discard()

    def _create_group(self, key: str) -> h5py.Group:
        try:
            return self._file.h5.create_group(key)
        except ValueError as error:
            raise EdmHlocError(
                f"{key!r} is already in {self._file.path}, or is the name of one of its data sets: "
                "each image and each pair is written once."
            ) from error


class FeatureWriter(_Writer):
    """Writes a keypoint file that hloc reads; use it in a ``with`` block."""

    def add(
        self,
        name: str,
        keypoints: np.ndarray,
        scores: np.ndarray,
        uncertainty: float | None = None,
    ) -> None:
        """Adds one image.

        Args:
            name: the image's path relative to the image root, with "/".
            keypoints: (N, 2), (x, y) in pixels of the original image, hloc's frame.
            scores: (N,).
            uncertainty: standard deviation of the keypoints in pixels, where known.

        Raises:
            EdmHlocError: the disk is full, the name was added before or cannot be stored.
        """
        _check_name(name)
        _check_shape("scores", scores, (len(keypoints),))
        _check_shape("keypoints", keypoints, (len(keypoints), 2))
        group = self._create_group(name)
        dataset = group.create_dataset("keypoints", data=np.asarray(keypoints, np.float32))
        group.create_dataset("scores", data=np.asarray(scores, np.float32))
        if uncertainty is not None:
            dataset.attrs["uncertainty"] = float(uncertainty)
        self._file.check()


class MatchWriter(_Writer):
    """Writes a match file that hloc reads; use it in a ``with`` block."""

    def __init__(self, path: Path, provenance: Provenance) -> None:
        super().__init__(path, provenance)
        self._names: dict[str, tuple[str, str]] = {}

    def add(self, name0: str, name1: str, matches0: np.ndarray, scores0: np.ndarray) -> None:
        """Adds one pair.

        Args:
            matches0: (N0,) integer, for each keypoint of image 0 its match in image 1, −1 for none.
            scores0: (N0,), 0 where there is no match.

        Raises:
            EdmHlocError: the disk is full, the pair was added before, or its key is another pair's.
        """
        _check_name(name0)
        _check_name(name1)
        _check_shape("scores0", scores0, (len(matches0),))
        key = pair_key(name0, name1)
        _check_collision(self._names.setdefault(key, (name0, name1)), (name0, name1))
        group = self._create_group(key)
        group.create_dataset("matches0", data=np.asarray(matches0, np.int32))
        group.create_dataset("matching_scores0", data=np.asarray(scores0, np.float16))
        self._file.check()


class DescriptorWriter(_Writer):
    """Writes global descriptors as hloc does; use it in a ``with`` block."""

    def add(self, name: str, descriptor: np.ndarray) -> None:
        """Adds one image. Raises EdmHlocError as `FeatureWriter.add`."""
        _check_name(name)
        group = self._create_group(name)
        group.create_dataset("global_descriptor", data=np.asarray(descriptor, np.float32))
        self._file.check()


def _check_collision(stored: tuple[str, str], asked: tuple[str, str]) -> None:
    if stored != asked:
        raise EdmHlocError(
            f"The pairs {stored} and {asked} have the same key {pair_key(*asked)!r} in H5 files, "
            'where "/" is written as "-": rename one of the images or folders.'
        )


# --------------------------------------------------------------------------- raw matches


class _Entry(NamedTuple):
    """One pair of a shard."""

    names: tuple[str, str]
    stamps: tuple[Stamp | None, Stamp | None]
    real: bool  # False: a file of hloc's, whose names have "-" for "/"

    @property
    def key(self) -> str:
        return pair_key(*self.names)


def _entries(h5: h5py.File) -> list[_Entry]:
    """The pairs of one shard, or of a file of hloc's."""
    if "pairs" in h5.attrs:
        return [
            _Entry((a, b), (s and (s[0], s[1]), t and (t[0], t[1])), True)
            for a, b, s, t in json.loads(h5.attrs["pairs"])
        ]
    return [
        _Entry((a.decode(), b.decode()), (None, None), False)
        for a in h5.id
        if isinstance(h5[a], h5py.Group)
        for b in h5[a].id
        if b"%b/%b/keypoints0" % (a, b) in h5
    ]


def _shards(directory: Path) -> list[Path]:
    """The shards of a folder, oldest first. A newer shard's pairs replace those of an older one."""
    return sorted(directory.glob("matches-*.h5"), key=_shard_number)


def _shard_number(path: Path) -> int:
    try:
        return int(path.stem.removeprefix("matches-"))
    except ValueError:
        raise EdmHlocError(
            f"{path} is not a file of raw matches made here: move it out of its folder."
        ) from None


class RawMatchReader:
    """Reads raw matches from a folder of shards, or from one H5 file in hloc's format.

    Pairs are found in either order. At most 32 files are open at a time. Safe to use from several
    threads. Raises EdmHlocError naming the file if one is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise EdmHlocError(f"No raw matches at {self.path}: run the matching first.")
        self._shards = _shards(self.path) if self.path.is_dir() else [self.path]
        self._open: OrderedDict[Path, h5py.File] = OrderedDict()
        self._index: dict[str, tuple[Path, _Entry]] | None = None
        self._lock = threading.RLock()

    @property
    def provenance(self) -> dict[str, str | int | float | bool | None]:
        """The settings the matches were made with; empty for a file that was not made here."""
        if not self._shards:
            return {}
        with self._lock, _reading(self._shards[0]):
            return _provenance(self._file(self._shards[0]))

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs stored, (name0, name1); hloc's own files only know names with "-" for "/"."""
        return [entry.names for _, entry in self._indexed().values()]

    def __contains__(self, pair: tuple[str, str]) -> bool:
        name0, name1 = pair
        index = self._indexed()
        return pair_key(name0, name1) in index or pair_key(name1, name0) in index

    def read(self, name0: str, name1: str) -> RawMatches:
        """The matches of a pair, keypoints0 in image `name0` whichever order is stored."""
        index = self._indexed()
        if pair_key(name0, name1) not in index and pair_key(name1, name0) in index:
            return self.read(name1, name0).swapped()
        if pair_key(name0, name1) not in index:
            raise EdmHlocError(
                f"No matches of the pair {name0!r}, {name1!r} in {self.path}: match it first."
            )
        path, entry = index[pair_key(name0, name1)]
        if entry.real:
            _check_collision(entry.names, (name0, name1))
        with self._lock, _reading(path):
            group = self._file(path)[entry.key]
            arrays = [np.asarray(group[name], np.float32) for name in RawMatches._fields]
        return RawMatches(*arrays)

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def __enter__(self) -> RawMatchReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _indexed(self) -> dict[str, tuple[Path, _Entry]]:
        with self._lock:
            if self._index is None:
                index: dict[str, tuple[Path, _Entry]] = {}
                for path in self._shards:
                    with _reading(path):
                        index.update((e.key, (path, e)) for e in _entries(self._file(path)))
                self._index = index
            return self._index

    def _file(self, path: Path) -> h5py.File:
        """The shard, open; the one used longest ago is closed when there are too many."""
        if path not in self._open:
            while len(self._open) >= _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[path] = _open_h5(path)
        self._open.move_to_end(path)
        return self._open[path]


def write_raw_pair(
    path: Path, name0: str, name1: str, matches: RawMatches, provenance: Provenance
) -> None:
    """Writes the raw matches of one pair into a file of their own, replacing an older one.

    Raises:
        EdmHlocError: the file cannot be written or a name cannot be stored.
    """
    _check_name(name0)
    _check_name(name1)
    file = _AtomicH5(Path(path), provenance)
    try:
        group = file.h5.create_group(pair_key(name0, name1))
        for name, array in zip(RawMatches._fields, matches, strict=True):
            group.create_dataset(name, data=np.asarray(array, np.float32))
        file.h5.attrs["pairs"] = json.dumps([[name0, name1, None, None]])
    except BaseException:
        file.discard()
        raise
    file.commit()


def _as_stored(provenance: Provenance) -> dict[str, str | int | float | bool | None]:
    return dict(json.loads(json.dumps(dict(provenance))))


def check_provenance(directory: Path, provenance: Provenance) -> None:
    """Raises EdmHlocError if a folder holds raw matches of another provenance; there need be no
    folder."""
    for path in _shards(directory)[-1:]:
        with _open_h5(path) as h5, _reading(path):
            _check_provenance(path, _provenance(h5), _as_stored(provenance))


def _check_provenance(path: Path, stored: Provenance, now: Provenance) -> None:
    differences = [
        f"  {key}: {stored.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(stored.keys() | now.keys())
        if stored.get(key) != now.get(key)
    ]
    if differences:
        raise EdmHlocError(
            f"{path.parent} holds matches made with other settings (see {path.name}):\n"
            + "\n".join(differences)
            + "\nChoose another output folder, or run with --overwrite to match them again."
        )


class RawMatchWriter:
    """Writes raw matches into a folder of shards from a background thread.

    A kill at any moment loses the last few pairs (64, or those of two seconds) and damages nothing;
    opening the folder again goes on from there. Use it in a ``with`` block, or call `close`.

    `done` is the set of pair keys on disk and up to date when the folder was opened.

    Args:
        directory: made if missing; the files of an earlier run in it are kept.
        provenance: the settings the matches depend on (weights' SHA-256, preset, version …).
        images: the `Stamp` of each image file. Stored with each pair; pairs one of whose images has
            another stamp now are not in `done`, so they are matched again and replaced.
        overwrite: remove the matches of earlier runs first.

    Raises:
        EdmHlocError: the folder holds matches of another provenance, another process writes into
            it, it cannot be written, or one of its files is damaged.
    """

    def __init__(
        self,
        directory: Path,
        provenance: Provenance,
        images: Mapping[str, Stamp] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self._provenance = _as_stored(provenance)
        self._images = images
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.directory, error) from error
        self._lock = FolderLock(self.directory)
        try:
            for leftover in self.directory.glob(".matches-*.h5.tmp"):
                leftover.unlink()
            if overwrite:
                for path in _shards(self.directory):
                    path.unlink()
            self._shards: list[tuple[Path, int]] = []  # oldest first, with their numbers of pairs
            self._names: dict[str, tuple[str, str]] = {}  # real names of every stored key
            self.done: set[str] = set()
            self._open_folder()
        except BaseException:
            self._lock.release()
            raise
        self._error: BaseException | None = None
        self._closed = False
        self._queue: queue.Queue[tuple[str, str, RawMatches] | None] = queue.Queue(_FLUSH_PAIRS)
        # a daemon: a program that forgot to close must still be able to end
        self._thread = threading.Thread(target=self._run, name="raw-match-writer", daemon=True)
        self._thread.start()

    def __contains__(self, pair: tuple[str, str]) -> bool:
        """Whether the pair is in `done`, in either order."""
        name0, name1 = pair
        for names in ((name0, name1), (name1, name0)):
            key = pair_key(*names)
            if key in self.done:
                _check_collision(self._names[key], names)
                return True
        return False

    def add(self, name0: str, name1: str, matches: RawMatches) -> None:
        """Hands one pair to the writer; waits while it is behind.

        Raises:
            EdmHlocError: two pairs have the same key, or an earlier pair could not be written.
        """
        if self._closed:
            raise ValueError("the writer is closed")
        self._raise_error()
        _check_name(name0)
        _check_name(name1)
        if pair_key(name0, name1) not in self._names and pair_key(name1, name0) in self._names:
            # stored the other way round by an earlier run: replace it, do not store it twice
            name0, name1, matches = name1, name0, matches.swapped()
        key = pair_key(name0, name1)
        _check_collision(self._names.get(key, (name0, name1)), (name0, name1))
        # copies: the caller may reuse its arrays before they are written
        matches = RawMatches(*(np.array(array, np.float32, order="C") for array in matches))
        _check_shape("scores", matches.scores, (matches.scores.size,))
        shape = (matches.scores.size, 2)
        _check_shape("keypoints0", matches.keypoints0, shape)
        _check_shape("keypoints1", matches.keypoints1, shape)
        self._names[key] = (name0, name1)
        self._queue.put((name0, name1, matches))

    def close(self) -> None:
        """Writes what is left and releases the folder. Raises EdmHlocError if that failed."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
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
            if error is not value:  # the block's own exception is the one to report
                logger.error("%s", error)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    # ---- at opening

    def _open_folder(self) -> None:
        """Fills `_shards`, `_names` and `done`; removes shards that newer ones replaced."""
        for path in reversed(_shards(self.directory)):
            with _open_h5(path) as h5, _reading(path):
                _check_provenance(path, _provenance(h5), self._provenance)
                entries = _entries(h5)
            fresh = [entry for entry in entries if entry.key not in self._names]
            if not fresh:
                path.unlink()
                continue
            self._shards.insert(0, (path, len(entries)))
            for entry in fresh:
                self._names[entry.key] = entry.names
                if self._images is None or entry.stamps == self._stamps(*entry.names):
                    self.done.add(entry.key)

    def _stamps(self, name0: str, name1: str) -> tuple[Stamp | None, Stamp | None]:
        if self._images is None:
            return None, None
        return self._images.get(name0), self._images.get(name1)

    # ---- in the background thread

    def _run(self) -> None:
        closing = False
        try:
            while not closing:
                batch, closing = self._next_batch()
                if batch:
                    self._write_shard(batch)
                    self._merge_shards()
        except BaseException as error:
            self._error = error
            while not closing:  # nobody may wait for ever to hand in a pair
                closing = self._queue.get() is None

    def _next_batch(self) -> tuple[list[tuple[str, str, RawMatches]], bool]:
        """The pairs of the next shard, and whether they are the last ones."""
        batch: list[tuple[str, str, RawMatches]] = []
        size = 0
        item = self._queue.get()
        deadline = time.monotonic() + _FLUSH_SECONDS
        while item is not None:
            batch.append(item)
            size += sum(array.nbytes for array in item[2])
            if len(batch) >= _FLUSH_PAIRS or size >= _FLUSH_BYTES:
                return batch, False
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return batch, False
        return batch, True

    def _next_path(self) -> Path:
        number = _shard_number(self._shards[-1][0]) + 1 if self._shards else 0
        return self.directory / f"matches-{number:06d}.h5"

    def _write_shard(self, items: list[tuple[str, str, RawMatches]]) -> None:
        # a pair given twice: the last one counts
        latest = {pair_key(name0, name1): (name0, name1, raw) for name0, name1, raw in items}
        file = _AtomicH5(self._next_path(), self._provenance)
        try:
            for key, (_, _, matches) in latest.items():
                group = file.h5.create_group(key)
                for name, array in zip(RawMatches._fields, matches, strict=True):
                    group.create_dataset(name, data=array)
            file.h5.attrs["pairs"] = json.dumps(
                [[a, b, *self._stamps(a, b)] for a, b, _ in latest.values()]
            )
        except BaseException:
            file.discard()
            raise
        file.commit()
        self._shards.append((file.path, len(latest)))

    def _merge_shards(self) -> None:
        """Joins the newest shards when there are many small ones.

        The joined shard is in place before the others are removed. A kill in between leaves pairs
        twice, equal, and the next opening removes the older ones.
        """
        for limit in _MERGE_BELOW_PAIRS:
            small = len(self._shards)
            while small > 0 and self._shards[small - 1][1] < limit:
                small -= 1
            sources = [path for path, _ in self._shards[small:]]
            if len(sources) < _FAN_IN:
                continue
            file = _AtomicH5(self._next_path(), self._provenance)
            merged: dict[str, _Entry] = {}
            try:
                for path in reversed(sources):
                    with _open_h5(path) as h5, _reading(path):
                        for entry in _entries(h5):
                            if entry.key not in merged:
                                h5.copy(entry.key, file.h5, name=entry.key)
                                merged[entry.key] = entry
                    file.check()
                file.h5.attrs["pairs"] = json.dumps(
                    [[*e.names, *e.stamps] for e in merged.values()]
                )
            except BaseException:
                file.discard()
                raise
            file.commit()
            self._shards[small:] = [(file.path, len(merged))]
            for path in sources:
                path.unlink()
