"""The images at hand by the names that other programs and people have for them in their lists."""

from __future__ import annotations

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from edm_hloc.base.log import warn_once

# Folders that say what an image is for: some lists name them, others do not.
_QUERY_ROLES, _DATABASE_ROLES = ("query", "queries"), ("db", "database", "mapping")
_ROLES = (*_QUERY_ROLES, *_DATABASE_ROLES, "images")


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

    def find_path(self, text: str) -> str | None:
        """The same for a path on another computer or in another folder: its ends are tried."""
        return next((name for end in _ends(text) if (name := self.find(end)) is not None), None)

    def forget(self, text: str) -> None:
        """Takes back that a path was taken for an image of another name, which is not reported."""
        for end in _ends(text):
            self._guessed.pop(end, None)

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
            warn_once(
                f"{path}: {len(self._guessed)} names are not written as those of the images; "
                f"{text!r} was taken for {name!r}, the only one that fits, and so on."
            )
        if self._ambiguous:
            warn_once(
                f"{path}: {len(self._ambiguous)} names fit several images and were not used, such "
                f"as {min(self._ambiguous)!r}: write them as the files are named, with folders and "
                "extension."
            )


def find_under_other_names(
    written: Iterable[str], queries: Sequence[str], database: Sequence[str]
) -> dict[str, str]:
    """The images that a file holds, by the names that it has for them.

    Where a name does not tell by its folder whether a query or an image of the database is meant,
    and both are possible, it stands for neither; nor do two names that may be of one image.

    Args:
        written: the names in the file.
        queries, database: names of the images at hand, maybe the same.

    Returns:
        Name in the file by image at hand. Images that are not found are left out.
    """
    written = set(written)
    exact = {name: name for name in (*queries, *database) if name in written}
    both = {"query": NameFinder(queries), "database": NameFinder(database)}
    if set(queries) == set(database):
        both = {"": both["query"]}
    names: dict[str, list[str]] = defaultdict(list)
    if not exact.keys() >= {*queries, *database}:
        for name in sorted(written - exact.keys()):
            finders = [f for role, f in both.items() if _role(name) in ("", role) or not role]
            found = set(filter(None, (finder.find(name) for finder in finders)))
            if len(found) == 1:
                names[found.pop()].append(name)
    return {at_hand: some[0] for at_hand, some in names.items() if len(some) == 1} | exact


def _role(name: str) -> str:
    """ "query" or "database" if the first folders of a name say so, else nothing."""
    for folder in _clean(name).casefold().split("/")[:-1]:
        if folder in _QUERY_ROLES:
            return "query"
        if folder in _DATABASE_ROLES:
            return "database"
        if folder not in _ROLES:
            break
    return ""


def _ends(path: str) -> list[str]:
    """A path without more and more of its first folders."""
    parts = path.replace("\\", "/").split("/")
    return ["/".join(parts[i:]) for i in range(len(parts)) if parts[i]]


def _clean(name: str) -> str:
    name = unicodedata.normalize("NFC", name.strip().strip("\"'").replace("\\", "/"))
    return posixpath.normpath(name) if name else name


def _without_role(name: str) -> str:
    first, _, rest = name.partition("/")
    while rest and first.casefold() in _ROLES:
        name = rest
        first, _, rest = name.partition("/")
    return name
