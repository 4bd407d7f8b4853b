"""Text files of image pairs: the one reader and the one writer of such lists."""

from __future__ import annotations

import csv
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import filled_lines
from edm_hloc.pairs.names import NameFinder
from edm_hloc.pairs.rules import Pair, names_in, unique_pairs

logger = logging.getLogger(__name__)

_LONGEST_LINE = 10_000  # characters: two paths of 4,096 and a number
_HEADINGS = re.compile(  # whole words above the columns of a list, without their numbers
    "a|b|col|database|db|dist|distance|dst|file|filename|first|gt|i|id|idx|im|images?|img|index|"
    "inliers|j|key|left|match|matches|names?|nr|overlap|pair|path|photo|picture|q|query|rank|ref|"
    "reference|retrieved|right|s|scores?|second|sim|similarity|source|src|t|target|tgt|train|weight"
)


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
        separator = "\t" if re.search(r"\s", pair[0] + pair[1]) else " "
        lines.append(f"{pair[0]}{separator}{pair[1]}\n")
    write_whole(path, "".join(lines))


def write_scores(path: Path, found: Iterable[tuple[str, str, float]]) -> None:
    """Writes query, database image and similarity, one pair a line.

    hloc's list of pairs has no place for the similarity, so this file lies beside it.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    write_whole(path, "".join(f"{a} {b} {score:.6f}\n" for a, b, score in found))


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of a file of `write_pairs` or hloc, one a line, as they are written there.

    The two names are separated by a tab or, as in hloc's files, by white space.

    Raises:
        EdmHlocError: the file cannot be read, or a line does not hold two names.
    """
    pairs = []
    for number, line in filled_lines(path, "list of pairs"):
        words = _fields(line, "\t") or line.split(maxsplit=2)
        if len(words) != 2:
            raise _no_pair(path, number, line)
        pairs.append((words[0], words[1]))
    return pairs


def find_pairs(path: Path, first: NameFinder, second: NameFinder) -> list[Pair]:
    """All pairs of a list that people or other programs wrote, one a line, including repeats.

    The two names are separated by a tab, white space, a comma, a semicolon or "|". Further fields,
    such as a similarity, are left out, and so are a number before the names that no image has, a
    first line of headings ("image1;image2;score") and comments ("#"). Where a name holds spaces or
    commas, the images at hand decide where the first name ends.

    Args:
        path: of the list.
        first, second: the images that the first and the second name of a line may stand for. Names
            that they do not find are returned as they are written.

    Raises:
        EdmHlocError: the file cannot be read, a line does not hold two names, or none does.
    """
    pairs = []
    for place, (number, line) in enumerate(filled_lines(path, "list of pairs")):
        pair, found = _best_way(line, first, second)
        if not found and not place and _is_heading(line):
            continue
        if found < 2 and "#" in line:
            if line.lstrip().startswith("#"):
                continue
            uncommented, more = _best_way(re.split(r"\s#", line)[0], first, second)
            if uncommented is not None and (pair is None or more > found):
                pair = uncommented
        if pair is None:
            raise _no_pair(path, number, line)
        pairs.append(pair)
    if not pairs:
        raise EdmHlocError(f"The list of pairs {path} is empty: it must hold two names a line.")
    first.report(path)
    if second is not first:
        second.report(path)
    return pairs


def read_names(path: Path, names: Iterable[str]) -> list[str]:
    """The images that a list names, one a line, in its order and without repeats.

    Names may differ from those at hand as in lists of pairs, and there may be comments ("#").

    Args:
        path: of the list.
        names: the images at hand.

    Raises:
        EdmHlocError: the list cannot be read, is empty, or names an image that is not there.
    """
    finder = NameFinder(names)
    listed: dict[str, None] = {}
    for place, (number, line) in enumerate(filled_lines(path, "list of images")):
        name = finder.find(line.strip())
        if name is not None:
            listed.setdefault(name)
        elif not line.lstrip().startswith("#") and (place or not _is_heading(line)):
            raise EdmHlocError(
                f"{path}, line {number}: there is no image {line.strip()!r}. Names must be "
                "relative to the image folder, with '/', one a line."
            )
    finder.report(path)
    if not listed:
        raise EdmHlocError(f"The list of images {path} is empty: it must hold one name a line.")
    return list(listed)


def _no_pair(path: Path, number: int, line: str) -> EdmHlocError:
    return EdmHlocError(
        f"{path}, line {number}: expected two image names, got {line.strip()!r}. "
        "Separate names that hold spaces by a tab."
    )


def _fields(line: str, separator: str) -> list[str]:
    """The two fields of a line, a third one that is a number left out; empty if there are not."""
    words = [word for word in line.split(separator, maxsplit=3) if word]
    if len(words) == 3 and _is_number(words[2]):
        words.pop()
    return words if len(words) == 2 else []


def _is_number(word: str) -> bool:
    try:
        float(word.strip().strip("\"'").replace(",", "."))
    except ValueError:
        return False
    return True


def _is_heading(line: str) -> bool:
    """Whether all words of a line are such as stand above the columns of a list."""
    words = re.findall(r"[^\W\d_]+", line[:_LONGEST_LINE].casefold())
    return bool(words) and all(map(_HEADINGS.fullmatch, words))


def _rows(line: str) -> Iterator[list[str]]:
    """The fields of a line by each of the separators that split it."""
    if "\t" in line:
        yield line.split("\t")
    yield line.split()
    for separator in ",;|":
        if separator in line:
            yield next(csv.reader([line], delimiter=separator, skipinitialspace=True))


def _best_way(line: str, first: NameFinder, second: NameFinder) -> tuple[Pair | None, int]:
    """The two names in a line, None if they cannot be told apart, and how many are at hand."""
    if len(line) > _LONGEST_LINE:
        return None, 0
    text = line.strip()
    best: tuple[Pair | None, int] = (None, 0)
    more: dict[Pair, None] = {}  # readings that leave out more than numbers behind the names
    for row in _rows(text):
        fields = [word for word in row if word.strip()]
        for a, b in itertools.pairwise(fields[:3]):
            names = first.find(a), second.find(b)
            found = 2 - names.count(None)
            pair = names[0] or a.strip(), names[1] or b.strip()
            whole = a is fields[0] and all(map(_is_number, fields[2:]))
            if whole and (best[0] is None or found > best[1]):
                best = pair, found
            elif found == 2 and (a is fields[0] or _is_number(fields[0])):
                more.setdefault(pair)
        if best[1] == 2:
            return best
    places = [i for i, c in enumerate(text) if c.isspace() or c in ",;|"]
    if len(places) > 1:
        split = ((first.find(text[:i]), second.find(text[i + 1 :])) for i in places)
        whole_text = {(a, b) for a, b in split if a is not None and b is not None}
        if len(whole_text) == 1:
            return whole_text.pop(), 2
    return (next(iter(more)), 2) if len(more) == 1 else best


def from_file(path: Path, names: Iterable[str]) -> list[Pair]:
    """The pairs of a file (see `find_pairs`) whose images are among `names`, without repeats.

    Pairs of other images are left out with a warning.

    Raises:
        EdmHlocError: as `find_pairs`; or no pair is left.
    """
    known = frozenset(names)
    finder = NameFinder(known)
    return among(known, unique_pairs(find_pairs(path, finder, finder)), path)


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
        if not pairs:
            raise EdmHlocError(f"{path} holds no pair of two different images.")
        raise EdmHlocError(
            f"{path} holds no pair of the images at hand. It names {unknown[0]!r}, which is not "
            "there. Names must be relative to the image folder, with '/'."
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
