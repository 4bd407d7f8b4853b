"""Which name in a list of intrinsics or positions is of which photo."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence


def listed_names(listed: Collection[str], names: Sequence[str]) -> dict[str, str]:
    """The name that a list has for each photo: its own, or else one with more or fewer folders in
    front, or without ending.

    A name that is not its own may be of a photo in another folder. It is taken where no other photo
    has that file name, or where the same folders in front of others lead into the photos' folders,
    as in ``/data/cam0/1.jpg`` and ``/data/cam1/1.jpg`` for ``cam0/1.jpg`` and ``cam1/1.jpg``. Where
    two such folders claim the same photo, as ``/data/cam0`` and ``/data/cam1`` do for ``1.jpg``,
    nothing is taken from either.

    Args:
        listed: the names in the list.
        names: of all photos at hand.

    Returns:
        Listed name by photo. Photos without any, or with two that are not their own, are left out.
    """
    found = {name: name for name in names if name in listed}
    others = [text for text in listed if text not in found]
    for shorten in (str, _without_ending):
        texts = _unique((_clean(text), text) for text in others)
        photos = _unique((shorten(name), name) for name in dict.fromkeys(names))
        for path in texts.keys() & photos.keys():
            found.setdefault(photos[path], texts[path])
        many = Counter(posixpath.basename(shorten(name)) for name in dict.fromkeys(names))
        groups = [
            [(photos[name], texts[text]) for name, text in group]
            for group in _by_folders_in_front(photos, texts)
            if any("/" in name and "/" in text for name, text in group)
            or all(many[posixpath.basename(name)] == 1 for name, _ in group)
        ]
        found |= _without_contradictions(groups, found)
    return {name: found[name] for name in names if name in found}


def _by_folders_in_front(
    names: Collection[str], texts: Collection[str]
) -> list[list[tuple[str, str]]]:
    """Names and texts of which one ends with the other, by what one of them has in front."""
    groups: dict[tuple[bool, str], list[tuple[str, str]]] = defaultdict(list)
    for text in texts:
        for front, end in _ends(text):
            if end in names:
                groups[True, front].append((end, text))
    for name in names:
        for front, end in _ends(name):
            if end in texts:
                groups[False, front].append((name, end))
    return list(groups.values())


def _without_contradictions(
    groups: list[list[tuple[str, str]]], own: Mapping[str, str]
) -> dict[str, str]:
    """Texts by name of the groups that agree with each other and with the names' own texts."""
    text_of, name_of = dict(own), {text: name for name, text in own.items()}
    group_of: dict[str, int] = {}
    wrong = set()
    for number, group in enumerate(sorted(groups, key=len, reverse=True)):
        for name, text in group:
            if (name in text_of) != (text in name_of):  # if both are, they are told apart
                other = name if name in text_of else name_of[text]
                wrong |= {number, group_of.get(other, number)}
        for name, text in group:
            if name not in text_of and text not in name_of:
                text_of[name], name_of[text], group_of[name] = text, name, number
    return {name: text_of[name] for name, number in group_of.items() if number not in wrong}


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Values by key, without keys that have two."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return {key: values[0] for key, values in found.items() if len(values) == 1}


def _ends(path: str) -> Iterator[tuple[str, str]]:
    """A path in two parts: its first folders, and the rest of it."""
    parts = path.split("/")
    for i in range(1, len(parts)):
        yield "/".join(parts[:i]), "/".join(parts[i:])


def _clean(text: str) -> str:
    return posixpath.normpath(text.replace("\\", "/"))


def _without_ending(name: str) -> str:
    return posixpath.splitext(name)[0]
