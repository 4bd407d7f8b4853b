"""Photos that are in a folder twice."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable
from pathlib import Path

from edm_hloc.images.find import image_stamps
from edm_hloc.images.known import content_checksum
from edm_hloc.images.roots import ImageRoot

logger = logging.getLogger(__name__)

_HEAD = 1 << 16  # bytes by which nearly all files of equal size are told apart


def find_copies(root: ImageRoot, names: Iterable[str]) -> dict[str, str]:
    """Photos that equal another one byte by byte, by name, with the first of the equal ones.

    Only files of the same size are read. Those that cannot be read have no copies.

    Args:
        root: folder of the photos. In any other kind of root none are sought.
        names: of the photos, relative to `root`.
    """
    if not isinstance(root, Path):
        return {}
    stamps = image_stamps(root, names)
    groups: list[list[str]] = [sorted(stamps)]
    for trait in (
        lambda name: stamps[name][0],
        lambda name: content_checksum(root / name, _HEAD),
        lambda name: content_checksum(root / name),
    ):
        groups = [alike for group in groups for alike in _alike(group, trait)]
    return dict(sorted((name, group[0]) for group in groups for name in group[1:]))


def warn_of_copies(root: ImageRoot, names: Iterable[str], *, left_out: bool) -> dict[str, str]:
    """`find_copies`, with a warning where there are any that says whether they are left out."""
    copies = find_copies(root, names)
    if copies:
        name, original = next(iter(copies.items()))
        some = f"{len(copies):,} photos are copies of others"
        logger.warning(
            "%s, byte by byte, as %s is of %s. Copies take time and tell nothing new: %s.",
            "1 photo is a copy of another" if len(copies) == 1 else some,
            name,
            original,
            "they are left out" if left_out else "leave them out",
        )
    return copies


def _alike(names: Collection[str], trait: Callable[[str], Hashable]) -> list[list[str]]:
    """Groups of two or more names with an equal trait; without those whose trait is None."""
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name in names if len(names) > 1 else ():
        groups[trait(name)].append(name)
    return [group for value, group in groups.items() if value is not None and len(group) > 1]
