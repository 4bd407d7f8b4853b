"""Which name in a list of intrinsics or positions is of which photo."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence


def listed_names(listed: Collection[str], names: Sequence[str]) -> dict[str, str]:
    """The name that a list has for each photo: its own, or else one with more or fewer folders in
    front, or without ending.

    A name that is not its own is taken only where no other photo has that file name: it may be of
    the photo in another folder.

    Args:
        listed: the names in the list.
        names: of all photos at hand.

    Returns:
        Listed name by photo. Photos without any, or with two that are not their own, are left out.
    """
    found = {name: name for name in names if name in listed}
    others = [text for text in listed if text not in found]
    for shorten in (str, _without_ending):
        found = _by_file_name(others, dict.fromkeys(names), shorten) | found
    return {name: found[name] for name in names if name in found}


def _by_file_name(
    listed: Collection[str], names: Collection[str], shorten: Callable[[str], str]
) -> dict[str, str]:
    photos: dict[str, list[str]] = defaultdict(list)
    for name in names:
        photos[posixpath.basename(shorten(name))].append(name)
    meant: dict[str, list[str]] = defaultdict(list)
    for text in listed:
        same = photos.get(posixpath.basename(text), ())
        if len(same) == 1 and _one_ends_with_the_other(shorten(same[0]), text):
            meant[same[0]].append(text)
    return {name: texts[0] for name, texts in meant.items() if len(texts) == 1}


def _without_ending(name: str) -> str:
    return posixpath.splitext(name)[0]


def _one_ends_with_the_other(a: str, b: str) -> bool:
    """Whether two names are the same but for folders in front of one of them."""
    return f"/{a}".endswith(f"/{b}") or f"/{b}".endswith(f"/{a}")
