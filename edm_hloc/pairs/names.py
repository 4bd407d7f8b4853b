"""The images at hand by the names that other programs and people have for them in their lists."""

from __future__ import annotations

import logging
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

# Folders that say what an image is for: some lists name them, others do not.
_ROLES = ("query", "queries", "db", "database", "mapping", "images")


class NameFinder:
    """Finds images by name, also by one that differs from theirs where only one image fits.

    Names may differ by "./", "\\" for "/", quotation marks, the form of Unicode, and leading
    folders such as ``query/`` or ``db/``; then by upper and lower case; then by a missing
    extension; and at last by all folders.

    Args:
        names: of the images at hand.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._known = frozenset(names)
        self._indices: list[dict[str, set[str]]] | None = None  # made at the first other name
        self._found: dict[str, str | None] = {}
        self._guessed: dict[str, str] = {}
        self._ambiguous: set[str] = set()

    def find(self, text: str) -> str | None:
        """The name of the image that a list calls `text`; None if there is none, or several."""
        if text in self._known:
            return text
        if text not in self._found:
            self._found[text] = self._search(text)
        return self._found[text]

    def _search(self, text: str) -> str | None:
        clean = _clean(text)
        for level, index in enumerate(self._all_indices()):
            for key in dict.fromkeys([clean, _without_role(clean)]):
                found = index.get(key if level == 0 else key.casefold(), set())
                if len(found) > 1:
                    self._ambiguous.add(text)
                    return None
                for name in found:
                    if level > 0:
                        self._guessed[text] = name
                    return name
        return None

    def _all_indices(self) -> list[dict[str, set[str]]]:
        if self._indices is None:
            self._indices = [defaultdict(set) for _ in range(4)]
            whole, folded, stems, bases = self._indices
            for name in self._known:
                clean = _clean(name)
                for key in (clean, _without_role(clean)):
                    whole[key].add(name)
                    folded[key.casefold()].add(name)
                    stems[posixpath.splitext(key)[0].casefold()].add(name)
                base = posixpath.basename(clean).casefold()
                for key in (base, posixpath.splitext(base)[0]):
                    bases[key].add(name)
        return self._indices

    def report(self, path: Path) -> None:
        """Warns of names in the list `path` that were taken for another, or that fit several."""
        if self._guessed:
            text, name = next(iter(self._guessed.items()))
            logger.warning(
                "%s: %d names are not written as those of the images; %r was taken for %r, the "
                "only one that fits, and so on.",
                path,
                len(self._guessed),
                text,
                name,
            )
        if self._ambiguous:
            logger.warning(
                "%s: %d names fit several images and were not used, such as %r: write them as the "
                "files are named, with folders and extension.",
                path,
                len(self._ambiguous),
                min(self._ambiguous),
            )


def _clean(name: str) -> str:
    name = unicodedata.normalize("NFC", name.strip().strip("\"'").replace("\\", "/"))
    return posixpath.normpath(name) if name else name


def _without_role(name: str) -> str:
    first, _, rest = name.partition("/")
    while rest and first.casefold() in _ROLES:
        name = rest
        first, _, rest = name.partition("/")
    return name
