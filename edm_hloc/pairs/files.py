"""Text files of image pairs: the one reader and the one writer of such lists."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import read_text
from edm_hloc.pairs.rules import Pair, names_in, unique_pairs

logger = logging.getLogger(__name__)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Writes one pair a line, the two names separated by a space as hloc does.

    Names that hold white space are separated by a tab instead; hloc cannot read those.

    Raises:
        EdmHlocError: a name holds a tab or a line break, or the file cannot be written.
    """
    lines = []
    for pair in pairs:
        if any("\t" in name or name.splitlines() != [name] for name in pair):
            raise EdmHlocError(f"{pair} cannot be stored in a list of pairs: rename the image.")
        separator = "\t" if any(c.isspace() for name in pair for c in name) else " "
        lines.append(f"{pair[0]}{separator}{pair[1]}\n")
    write_whole(path, "".join(lines))


def write_scores(path: Path, found: Iterable[tuple[str, str, float]]) -> None:
    """Writes query, database image and similarity, one pair a line.

    hloc's list of pairs has no place for the similarity, so this file lies beside it.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    write_whole(path, "".join(f"{a} {b} {score:.6f}\n" for a, b, score in found))


def read_pairs(path: Path, names: Iterable[str] = ()) -> list[Pair]:
    """All pairs of a file, one a line, including repeats and images that do not exist.

    The two names are separated by a tab or, as in hloc's files, by white space. Where a name holds
    spaces and there is no tab, `names` decides where the first name ends.

    Args:
        path: of the list.
        names: the images at hand.

    Raises:
        EdmHlocError: the file cannot be read, or a line does not hold two names.
    """
    path = Path(path)
    known = frozenset(names)
    pairs = []
    # Not `read_lines`: names may begin with "#" or white space.
    for number, line in enumerate(read_text(path, "list of pairs").split("\n"), start=1):
        if not line.strip():
            continue
        pair = _split(line, known)
        if pair is None:
            raise EdmHlocError(
                f"{path}, line {number}: expected two image names, got {line.strip()!r}. "
                "Separate names that hold spaces by a tab."
            )
        pairs.append(pair)
    return pairs


def _split(line: str, known: frozenset[str]) -> Pair | None:
    """The two names in a line; None if they cannot be told apart."""
    words = [word for word in line.rstrip("\r").split("\t") if word]
    if len(words) == 2:
        words = [
            word if word in known or word.strip() not in known else word.strip() for word in words
        ]
    else:
        line = line.strip()
        words = line.split()
        if len(words) > 2:
            ways = [(line[:i], line[i + 1 :]) for i, c in enumerate(line) if c.isspace()]
            ways = [way for way in ways if known.issuperset(way)]
            return ways[0] if len(ways) == 1 else None
    return (words[0], words[1]) if len(words) == 2 else None


def from_file(path: Path, names: Iterable[str]) -> list[Pair]:
    """The pairs of a file (see `read_pairs`) whose images are among `names`, without repeats.

    Pairs of other images are left out with a warning.

    Raises:
        EdmHlocError: as `read_pairs`; or no pair is left.
    """
    known = frozenset(names)
    return among(known, unique_pairs(read_pairs(path, known)), path)


def among(names: Iterable[str], pairs: Sequence[Pair], path: Path) -> list[Pair]:
    """The pairs whose images are both among `names`; the others are left out with a warning.

    Args:
        names: the images at hand.
        pairs: to choose from.
        path: where the pairs come from, for messages.

    Raises:
        EdmHlocError: no pair is left.
    """
    known = frozenset(names)
    unknown = [name for name in names_in(pairs) if name not in known]
    found = [pair for pair in pairs if known.issuperset(pair)]
    if not found:
        hint = f" It names {unknown[0]!r}, which is not there." if unknown else ""
        raise EdmHlocError(
            f"{path} holds no pair of the images at hand.{hint} Names must be relative to the "
            "image folder, with '/'."
        )
    if unknown:
        logger.warning(
            "%s: %d pairs left out, %d of their images are not there: %s%s",
            path,
            len(pairs) - len(found),
            len(unknown),
            ", ".join(unknown[:5]),
            " …" if len(unknown) > 5 else "",
        )
    return found
