"""Checks of the types and ranges of settings, from Python, JSON files and the command line."""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edm_hloc.base.errors import EdmHlocError

_PLAIN: dict[Any, type] = {int: Integral, float: Real, str: str, bool: bool, Path: Path}


def check_types(config: Any, what: str = "") -> None:
    """Refuses a configuration of which a field, or one of those inside it, is of a wrong type.

    Of what holds others, such as a sequence, the items are not checked.

    Args:
        config: a dataclass.
        what: its fields are called in the message, as "the training setting"; by default they have
            the name of its class before theirs.

    Raises:
        EdmHlocError: it names the field, its value and its type.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{what} {field.name}" if what else f"{type(config).__name__}.{field.name}"
        check_type(name, value, hints[field.name])
        if dataclasses.is_dataclass(value):
            check_types(value)


def check_type(name: str, value: Any, hint: Any) -> None:
    """Refuses a value that is not of a type, see `check_types`.

    Raises:
        EdmHlocError: it names both.
    """
    if not fits(value, hint):
        raise EdmHlocError(f"{name} is {value!r}: it must be {_description(hint)}.")


def check_range(name: str, value: Any, least: float, below: float = math.inf) -> None:
    """Refuses a number outside [least, below). What is none, `check_types` refuses if it has to.

    Raises:
        EdmHlocError: it names the setting and its value.
    """
    if isinstance(value, Real) and not least <= float(value) < below:  # NaN is in no range
        lower, upper = (f"{bound:,}".removesuffix(".0") for bound in (least, below))
        limit = f" and below {upper}" if below < math.inf else ""
        raise EdmHlocError(f"{name} is {value!r}: it must be at least {lower}{limit}.")


def as_path(name: str, value: Any) -> Path:
    """The path that a text or a path is; pathlib takes an empty text for the current folder.

    Raises:
        EdmHlocError: it is empty, or of another type; the message has the name.
    """
    check_type(name, value, str | os.PathLike)
    if value == "":
        raise EdmHlocError(f"{name} is empty: give its path, which is '.' for the current folder.")
    return Path(value)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation; int counts as float, bool as neither."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple and isinstance(value, tuple):
        if parts[-1] is Ellipsis:
            return all(fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if hint in _PLAIN:
        return isinstance(value, _PLAIN[hint]) and (hint is bool or not isinstance(value, bool))
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _description(hint: Any) -> str:
    """A type in words: "int or None"."""
    if get_origin(hint) in (Union, types.UnionType):
        return _listed(map(_description, get_args(hint)))
    if get_origin(hint) is Literal:
        return _listed(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return str(hint)
    return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))


def _listed(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} or {last}" if some else last
