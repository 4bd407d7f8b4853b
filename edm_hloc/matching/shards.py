"""The format of raw matches: a folder of H5 files ("shards") that each hold some of the pairs.

A shard is named ``matches-NNNNNN.h5`` and is itself a file in hloc's format: group ``a/b`` of a
pair (see `base.h5.pair_key`) with the datasets ``keypoints0``, ``keypoints1`` (M, 2) and ``scores``
(M,), all float32. Keypoints are (x, y) in pixels of the original images, with the centre of the
top-left pixel at (0, 0). Three attributes of the file, all JSON, say where the matches come from:

* ``provenance``: the settings the matches depend on, the same in all shards of a folder;
* ``pairs``: a list of ``[name0, name1, stamp0, stamp1]`` with the exact names of the images and the
  `FileStamp` of both files, null where it is not known;
* ``checksums``: one of the two attributes above ("list"), and one of each pair's matches in the
  order of ``pairs`` ("matches"), by which bits that rot on the disk are noticed when they are read.
  Files of older versions have none.

Shards are numbered in the order in which they were written; a pair that is in several of them, in
whichever order, counts as in the newest one. Each is written under a temporary name, synced and
renamed, so that a shard with its final name is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import (
    AtomicH5,
    DamagedH5Error,
    Provenance,
    open_h5,
    pair_key,
    reading,
    store_text,
    stored_provenance,
    stored_text,
)
from edm_hloc.base.matches import Matches

_ARRAYS = (b"keypoints0", b"keypoints1", b"scores")
_OUTDATED = ("threads",)  # in LoFTR's provenance of older versions: changes matches by rounding

_OTHER_OUT_OR_OVERWRITE = (
    "Choose another output folder, or run with --overwrite to match them again."
)

FileStamp = tuple[int, int]
"""Size in bytes and modification time in ns of an image file, to notice that it has changed."""


class StoredPair(NamedTuple):
    """One pair of a shard.

    Attributes:
        names: the two images.
        stamps: their files when they were matched; None where it is not known.
        exact_names: False for files that hloc made, whose names have "-" in place of "/".
        checksum: of the matches (see `store_matches`); None in older files, which have none.
    """

    names: tuple[str, str]
    stamps: tuple[FileStamp | None, FileStamp | None] = (None, None)
    exact_names: bool = True
    checksum: str | None = None

    @property
    def key(self) -> str:
        """The pair's group in the shard."""
        return pair_key(*self.names)

    @property
    def other_key(self) -> str:
        """The group that it would have with its names in the other order."""
        return pair_key(*self.names[::-1])


def shard_paths(directory: Path) -> list[Path]:
    """The shards of a folder, oldest first. Raises EdmHlocError if a file's name has no number."""
    return sorted(directory.glob("matches-*.h5"), key=shard_number)


def shard_times(directory: Path) -> list[tuple[str, int]]:
    """Names and times of modification in ns of the shards of a folder: what is made of the matches
    is made anew where one of them differs."""
    return sorted((path.name, path.stat().st_mtime_ns) for path in directory.glob("*.h5"))


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"matches-{number:06d}.h5"


def shard_number(path: Path) -> int:
    try:
        return int(path.stem.removeprefix("matches-"))
    except ValueError:
        raise EdmHlocError(
            f"{path} is not a file of raw matches made here: move it out of its folder."
        ) from None


def stored_pairs(h5: h5py.File) -> list[StoredPair]:
    """The pairs of one shard, or of a file that hloc made.

    Raises:
        ValueError: their list has changed since it was written.
    """
    if "pairs" in h5.attrs:
        pairs = json.loads(stored_text(h5, "pairs"))
        checksums: list[str | None] = [None] * len(pairs)
        if "checksums" in h5.attrs:
            stored = json.loads(stored_text(h5, "checksums"))
            checksums = stored["matches"]
            if stored["list"] != _list_checksum(h5):
                raise ValueError("the list of its pairs has changed since it was written")
        return [
            StoredPair((a, b), (s and (s[0], s[1]), t and (t[0], t[1])), checksum=checksum)
            for (a, b, s, t), checksum in zip(pairs, checksums, strict=True)
        ]
    return [
        StoredPair((a.decode(), b.decode()), exact_names=False)
        for a in h5.id
        if isinstance(h5[a], h5py.Group)
        for b in h5[a].id
        if b"%b/%b/keypoints0" % (a, b) in h5
    ]


def store_pairs(h5: h5py.File, pairs: Iterable[StoredPair]) -> None:
    """Stores which pairs a shard holds."""
    pairs = list(pairs)
    store_text(h5, "pairs", json.dumps([[*pair.names, *pair.stamps] for pair in pairs]))
    checksums = [pair.checksum for pair in pairs]
    checked = {"list": _list_checksum(h5), "matches": checksums}
    store_text(h5, "checksums", json.dumps(checked))


def copy_pairs(h5: h5py.File, pairs: Sequence[StoredPair], path: Path) -> None:
    """Writes a shard with some of the pairs of another one, or of itself.

    Args:
        h5: the open shard.
        pairs: of `stored_pairs`.
        path: of the new one, which replaces what is there.

    Raises:
        EdmHlocError: it cannot be written.
    """
    with AtomicH5(path, stored_provenance(h5)) as file:
        for pair in pairs:
            h5.copy(pair.key, file.h5, name=pair.key)
        store_pairs(file.h5, pairs)


def _list_checksum(h5: h5py.File) -> str:
    return _checksum(stored_text(h5, name).encode() for name in ("provenance", "pairs"))


def _checksum(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def store_matches(h5: h5py.File, pair: StoredPair, matches: Matches) -> StoredPair:
    """Stores the matches of one pair; returns the pair with their checksum."""
    group = h5.create_group(pair.key)
    for name, array in matches.arrays().items():
        group.create_dataset(name, data=np.asarray(array, np.float32))
    return pair._replace(checksum=_matches_checksum(matches))


def read_matches(h5: h5py.File, pair: StoredPair) -> Matches:
    """The matches of one pair.

    Raises:
        OSError, RuntimeError, KeyError or ValueError: they are damaged; the message names the pair.
    """
    try:
        group = h5py.h5g.open(h5.id, pair.key.encode())
        matches = Matches(*(_floats(group, name) for name in _ARRAYS))
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the matches of {' and '.join(pair.names)}: {error}") from error
    if pair.checksum is not None and pair.checksum != _matches_checksum(matches):
        names_of_pair = " and ".join(pair.names)
        raise ValueError(f"the matches of {names_of_pair} have changed since they were written")
    return matches


def _floats(group: h5py.h5g.GroupID, name: bytes) -> np.ndarray:
    """A dataset as float32, in a third of the time of h5py's own `Dataset`."""
    stored = h5py.h5d.open(group, name)
    array = np.empty(stored.shape, np.float32)
    stored.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
    return array


def _matches_checksum(matches: Matches) -> str:
    arrays = matches.arrays().values()
    return _checksum(np.asarray(array, np.float32).tobytes() for array in arrays)


# --------------------------------------------------------------------------- provenance


def json_provenance(provenance: Provenance) -> dict[str, str | int | float | bool | None]:
    """A provenance with its values as they are when they have been stored and read again."""
    return dict(json.loads(json.dumps(dict(provenance))))


def without_outdated(stored: Provenance) -> dict[str, str | int | float | bool | None]:
    """A stored provenance without what older versions noted though matches do not depend on it."""
    return {key: value for key, value in stored.items() if key not in _OUTDATED}


def check_folder_provenance(
    directory: Path, provenance: Provenance, remedy: str = _OTHER_OUT_OR_OVERWRITE
) -> None:
    """Checks that a folder, if it exists, holds no raw matches of another provenance.

    Args:
        directory: the folder.
        provenance: of the run.
        remedy: a sentence, what to do otherwise.

    Raises:
        EdmHlocError: it does; the message names the settings that differ.
    """
    for path in reversed(shard_paths(directory)):
        with contextlib.suppress(DamagedH5Error):  # of which the writer says so
            with open_h5(path) as h5, reading(path):
                stored_pairs(h5)
                stored = stored_provenance(h5)
            check_same_provenance(path, stored, json_provenance(provenance), remedy)
            return


def differences_between(stored: Provenance, now: Provenance) -> list[str]:
    """What differs between a stored provenance and that of now, a line for each setting."""
    return [
        f"  {key}: {stored.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(stored.keys() | now.keys())
        if stored.get(key) != now.get(key)
    ]


def check_same_provenance(
    path: Path, stored: Provenance, now: Provenance, remedy: str = _OTHER_OUT_OR_OVERWRITE
) -> None:
    """Checks that the provenance stored in the shard `path` is that of this run.

    Args:
        path: of the shard, or of the plan of some.
        stored: its provenance.
        now: that of the run.
        remedy: a sentence, what to do otherwise.

    Raises:
        EdmHlocError: it is another one; the message names the settings that differ.
    """
    if differences := differences_between(without_outdated(stored), now):
        raise EdmHlocError(
            f"{path.parent} holds matches made with other settings (see {path.name}):\n"
            + "\n".join(differences)
            + f"\n{remedy}"
        )
