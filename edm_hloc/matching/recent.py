"""The newest raw matches of a folder, until a shard holds them: what a killed process has computed.

A file of raw matches takes some time to write and to sync, so that one is made of many pairs. Until
then each pair lies in a `Journal` beside the shards, from which the next writer goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edm_hloc.base.h5 import Provenance
from edm_hloc.base.journal import Journal
from edm_hloc.base.matches import Matches
from edm_hloc.matching.shards import StoredPair


def recent_path(directory: Path) -> Path:
    """The file of a folder of shards."""
    return directory / ".recent.part"


class RecentPairs:
    """Pairs that were matched and are in no shard yet; a killed process loses none of them.

    Args:
        directory: folder of the shards, into which no other process writes.
        provenance: of the raw matches; pairs of another one are removed.

    Raises:
        EdmHlocError: the file cannot be written.
    """

    def __init__(self, directory: Path, provenance: Provenance) -> None:
        self._path = recent_path(directory)
        self._made_from = json.dumps(dict(provenance), sort_keys=True)
        self._journal = Journal(self._path, self._made_from)

    def __iter__(self) -> Iterator[tuple[StoredPair, Matches]]:
        """The pairs, in the order in which they were put; of one that was put twice the last."""
        for key in self._journal:
            (name0, name1), stamps = json.loads(key)
            first, second = (stamp and (stamp[0], stamp[1]) for stamp in stamps)
            values = self._journal.array(key, np.float32).reshape(-1, 5)
            yield (
                StoredPair((name0, name1), (first, second)),
                Matches(values[:, :2], values[:, 2:4], values[:, 4]),
            )

    def put(self, pair: StoredPair, matches: Matches) -> None:
        """Keeps the matches of a pair. Raises EdmHlocError if they cannot be written."""
        key = json.dumps([pair.names, pair.stamps])
        columns = (matches.keypoints0, matches.keypoints1, matches.scores[:, None])
        self._journal.put(key, np.concatenate(columns, axis=1, dtype=np.float32))
        self._journal.commit()

    def clear(self) -> None:
        """Forgets all pairs, once a shard holds them. Raises EdmHlocError as the constructor."""
        self._journal.remove()
        self._journal = Journal(self._path, self._made_from)

    def close(self) -> None:
        """Closes the file, and removes it if it is empty."""
        if self._journal.committed:
            self._journal.close()
        else:
            self._journal.remove()
