"""Pairs that were left out as workers failed at them, kept beside the raw matches.

Whoever goes on with the folder leaves them out as well, and says so: in a single process they would
end all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import write_whole
from edm_hloc.base.text import read_json_object
from edm_hloc.pairs.rules import Pair


def left_out_path(directory: Path) -> Path:
    """The file in a folder of raw matches; removing it has the pairs tried again."""
    return Path(directory) / "left_out.json"


def read_left_out(directory: Path) -> dict[Pair, str]:
    """The pairs that were left out of a folder of raw matches, with the reason; empty if none.

    Raises:
        EdmHlocError: they cannot be read.
    """
    path = left_out_path(directory)
    if not path.exists():
        return {}
    values = read_json_object(path, "list of pairs that were left out")
    try:
        return {(str(a), str(b)): str(reason) for a, b, reason in values["pairs"]}
    except (KeyError, TypeError, ValueError) as error:
        raise EdmHlocError(f"{path} is damaged: delete it to match its pairs again.") from error


def store_left_out(directory: Path, pairs: Mapping[Pair, str]) -> None:
    """Stores the pairs that were left out, with the reason, in place of those before.

    Raises:
        EdmHlocError: the file cannot be written.
    """
    if pairs:
        listed = [[*pair, reason] for pair, reason in pairs.items()]
        write_whole(left_out_path(directory), json.dumps({"pairs": listed}, indent=1))
    else:
        left_out_path(directory).unlink(missing_ok=True)


def without_left_out(directory: Path, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs but those, in either order, that were left out of a folder of raw matches.

    Raises:
        EdmHlocError: the list of those cannot be read.
    """
    left_out = read_left_out(directory)
    return [pair for pair in pairs if pair not in left_out and pair[::-1] not in left_out]
