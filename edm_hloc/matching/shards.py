"""The shards that raw matches are stored in: their names, their order and the pairs they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import h5py

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.h5 import Provenance, open_h5, pair_key, reading, stored_provenance

Stamp = tuple[int, int]
"""(size in bytes, modification time in ns) of an image file: tells whether it changed since."""


class Entry(NamedTuple):
    """One pair of a shard."""

    names: tuple[str, str]
    stamps: tuple[Stamp | None, Stamp | None]
    real: bool  # False: a file of hloc's, whose names have "-" for "/"

    @property
    def key(self) -> str:
        return pair_key(*self.names)


def entries_of(h5: h5py.File) -> list[Entry]:
    """The pairs of one shard, or of a file of hloc's."""
    if "pairs" in h5.attrs:
        return [
            Entry((a, b), (s and (s[0], s[1]), t and (t[0], t[1])), True)
            for a, b, s, t in json.loads(h5.attrs["pairs"])
        ]
    return [
        Entry((a.decode(), b.decode()), (None, None), False)
        for a in h5.id
        if isinstance(h5[a], h5py.Group)
        for b in h5[a].id
        if b"%b/%b/keypoints0" % (a, b) in h5
    ]


def shards_in(directory: Path) -> list[Path]:
    """The shards of a folder, oldest first. A newer shard's pairs replace those of an older one."""
    return sorted(directory.glob("matches-*.h5"), key=shard_number)


def shard_number(path: Path) -> int:
    try:
        return int(path.stem.removeprefix("matches-"))
    except ValueError:
        raise EdmHlocError(
            f"{path} is not a file of raw matches made here: move it out of its folder."
        ) from None


def as_stored(provenance: Provenance) -> dict[str, str | int | float | bool | None]:
    return dict(json.loads(json.dumps(dict(provenance))))


def check_provenance(directory: Path, provenance: Provenance) -> None:
    """Raises EdmHlocError if a folder holds raw matches of another provenance; there need be no
    folder."""
    for path in shards_in(directory)[-1:]:
        with open_h5(path) as h5, reading(path):
            refuse_other_provenance(path, stored_provenance(h5), as_stored(provenance))


def refuse_other_provenance(path: Path, stored: Provenance, now: Provenance) -> None:
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
