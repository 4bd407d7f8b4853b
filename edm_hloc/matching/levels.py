"""Which values of photos of more than 8 bits were black and white when they were matched.

They depend on all photos of a folder (see `images/levels.py`). When photos are added or removed
they may change, and pairs that are matched then would not belong to those that are stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import read_json_object
from edm_hloc.images.levels import FolderLevels, levels_in

NAME = "levels.json"
"""Name of the file in the folder of raw matches: {"FOLDER uint16": [black, white] or null}."""


class StoredLevels:
    """The levels that the raw matches of a folder were made with.

    Args:
        directory: folder of the raw matches.

    Attributes:
        levels: (black, white) by folder and type of the photos; None where the values fill their
            range.

    Raises:
        EdmHlocError: they cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self._path = Path(directory) / NAME
        self.levels: dict[str, list[float] | None] = {}
        if self._path.exists():
            self.levels = read_json_object(self._path, "levels of 16-bit photos")
            if not all(map(_are_levels, self.levels.values())):
                raise EdmHlocError(f"{self._path} is damaged: delete it.")

    def check(self, used: FolderLevels) -> None:
        """Stores the levels of a photo that is going to be matched.

        Raises:
            EdmHlocError: photos of the same folder were matched with others, or they cannot be
                written.
        """
        key, now = f"{used.folder} {used.kind}", _as_stored(used)
        if key not in self.levels:
            self.levels[key] = now
            write_whole(self._path, json.dumps(self.levels, indent=2))
        elif self.levels[key] != now:
            raise EdmHlocError(
                f"The photos of more than 8 bits in {used.folder} were matched with "
                f"{_describe(self.levels[key])}; now, as photos were added, removed or changed, "
                f"it would be with {_describe(now)}. Put the folder back as it was, or remove "
                f"{self._path.parent} to match all pairs again."
            )

    def add(self, levels: Mapping[str, list[float] | None]) -> None:
        """Stores the levels that pairs were matched with elsewhere, which are put into the folder.

        Raises:
            EdmHlocError: photos of the same folder were matched with others, or they cannot be
                written.
        """
        for key, there in levels.items():
            if self.levels.get(key, there) != there:
                raise EdmHlocError(
                    f"{self._path.parent} holds matches of the photos in {key.rpartition(' ')[0]} "
                    f"with {_describe(self.levels[key])}; those that are to be added were made "
                    f"with {_describe(there)}. Remove {self._path.parent}, or choose another "
                    "output folder."
                )
        if not levels.items() <= self.levels.items():
            self.levels |= levels
            write_whole(self._path, json.dumps(self.levels, indent=2))


def forget_levels(directory: Path) -> None:
    """Removes the levels of a folder whose raw matches were removed."""
    (Path(directory) / NAME).unlink(missing_ok=True)


def are_those_of_now(levels: Mapping[str, list[float] | None]) -> bool:
    """Whether photos would still be matched with these levels, see `StoredLevels.levels`."""
    for key, stored in levels.items():
        folder, _, kind = key.rpartition(" ")
        if _as_stored(levels_in(Path(folder), kind)) != stored:
            return False
    return True


def _as_stored(used: FolderLevels) -> list[float] | None:
    return None if used.levels is None else list(used.levels)


def _are_levels(value: Any) -> bool:
    pair = isinstance(value, list) and len(value) == 2
    return value is None or (pair and all(isinstance(v, int | float) for v in value))


def _describe(levels: list[float] | None) -> str:
    """The levels in words."""
    if levels is None:
        return "their full range as black and white"
    return f"the values {levels[0]:.6g} and {levels[1]:.6g} as black and white"
