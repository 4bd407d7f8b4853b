"""Which pairs a folder of raw matches holds, in few bytes a pair."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from edm_hloc.base.h5 import DamagedH5Error, open_h5, reading
from edm_hloc.images.known import KnownPhotos, warn_of_changed
from edm_hloc.images.roots import ImageRoot
from edm_hloc.matching.left_out import without_left_out
from edm_hloc.matching.shards import FileStamp, StoredPair, shard_paths, stored_pairs
from edm_hloc.pairs.rules import Pair, names_in, unique_pairs


class StoredIndex:
    """The pairs of a folder of raw matches as digests of 64 bits, 24 bytes a pair.

    Of a pair that is in several files the newest one counts; damaged files count as none.

    Args:
        directory: the folder; one that does not exist holds none.
    """

    def __init__(self, directory: Path) -> None:
        self._known = KnownPhotos(directory)
        none = np.empty(0, np.uint64)
        names, contents, stamps = [none], [none], [none]
        for path in reversed(shard_paths(Path(directory))):
            with contextlib.suppress(DamagedH5Error), open_h5(path) as h5, reading(path):
                stored = stored_pairs(h5)
                names.append(_of_names(pair.names for pair in stored))
                contents.append(_of_contents(stored))
                stamps.append(_of_stamps(stored))
        self._names, newest = np.unique(np.concatenate(names), return_index=True)
        self._contents = np.concatenate(contents)[newest]
        self._stamps = np.concatenate(stamps)[newest]

    def holds_same(self, stored: Sequence[StoredPair]) -> bool:
        """Whether all these pairs are there with the same stamps of photos and checksums."""
        places, there = self._find([pair.names for pair in stored])
        return bool(there.all()) and np.array_equal(self._contents[places], _of_contents(stored))

    def lacks(self, stored: Sequence[StoredPair], image_root: ImageRoot) -> list[StoredPair]:
        """Those of the pairs of another file that the folder is to be given.

        It has the others with the same stamps of photos and checksums, or of the photos as they are
        now, while these are of photos that have changed since.

        Args:
            stored: the pairs.
            image_root: folder or folders of the photos, which are looked at only where the folder
                has a pair of other ones.
        """
        places, there = self._find([pair.names for pair in stored])
        if not there.any():
            return list(stored)
        wanted = ~there | (self._contents[places] != _of_contents(stored))
        changed = there & (self._stamps[places] != _of_stamps(stored))
        of_others = np.flatnonzero(changed).tolist()
        wanted[of_others] = ~self.are_of_now([stored[i].names for i in of_others], image_root)
        return [pair for pair, is_wanted in zip(stored, wanted, strict=True) if is_wanted]

    def are_of_now(self, pairs: Sequence[Pair], image_root: ImageRoot) -> np.ndarray:
        """(N,) bool, whether the folder holds the pairs of the photos as they are now."""
        places, there = self._find(pairs)
        stamps = self._known.stamps(image_root, names_in(pairs)) if there.any() else {}
        now = [StoredPair((a, b), (stamps.get(a), stamps.get(b))) for a, b in pairs]
        there[there] = self._stamps[places[there]] == _of_stamps(now)[there]
        return there

    def _find(self, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
        """(N,) places of pairs in the index, and (N,) bool whether they are there at all."""
        names = _of_names(pairs)
        places = np.searchsorted(self._names, names)
        there = places < len(self._names)
        places[~there] = 0
        there[there] = self._names[places[there]] == names[there]
        return places, there


def pairs_to_match(directory: Path, image_root: ImageRoot, pairs: Iterable[Pair]) -> list[Pair]:
    """Those of the pairs, each once, that a folder of raw matches lacks and that were not left out.

    It lacks pairs, too, of which a photo has changed since they were matched.

    Args:
        directory: the folder; one that does not exist holds none.
        image_root: folder or folders of the photos.
        pairs: names of two photos each.

    Raises:
        EdmHlocError: the list of pairs that were left out cannot be read.
    """
    wanted = without_left_out(directory, unique_pairs(pairs))
    left = {frozenset(pair): pair for pair in wanted}
    undecided = set(left)
    known = KnownPhotos(directory)
    stamps: dict[str, FileStamp] | None = None
    changed: set[str] = set()
    for path in reversed(shard_paths(Path(directory))):
        if stamps is None:
            stamps = known.stamps(image_root, names_in(wanted))
        with contextlib.suppress(DamagedH5Error), open_h5(path) as h5, reading(path):
            for pair in stored_pairs(h5):
                names = frozenset(pair.names)
                if names in undecided:
                    undecided.remove(names)
                    stored = tuple(map(known.first, pair.names, pair.stamps))
                    if stored == tuple(map(stamps.get, pair.names)):
                        del left[names]
                    else:
                        pairs_of_stamps = zip(pair.names, stored, strict=True)
                        changed |= {n for n, s in pairs_of_stamps if stamps.get(n, s) != s}
    warn_of_changed(changed)
    return list(left.values())


def _of_names(pairs: Iterable[Pair]) -> np.ndarray:
    return _digests("\0".join(sorted(pair)) for pair in pairs)


def _of_contents(stored: Iterable[StoredPair]) -> np.ndarray:
    return _digests(repr((pair.names, pair.stamps, pair.checksum)) for pair in stored)


def _of_stamps(stored: Iterable[StoredPair]) -> np.ndarray:
    """Of the stamps alone, whichever of the two names comes first."""
    both = (zip(pair.names, pair.stamps, strict=True) for pair in stored)
    return _digests(repr(sorted(names_and_stamps)) for names_and_stamps in both)


def _digests(texts: Iterable[str]) -> np.ndarray:
    """A digest of each text: (N,) uint64."""
    found = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(found), np.uint64)
