"""Matchers by name; the libraries of each are imported when it is made."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.settings import check_types

if TYPE_CHECKING:
    from edm_hloc.matchers.base import MatcherConfig, NetworkMatcher

Config = TypeVar("Config", bound="MatcherConfig")
MatcherName = Literal["edm", "eloftr", "loftr"]
NAMES: tuple[MatcherName, ...] = get_args(MatcherName)


def make_matcher(name: str, **settings: Any) -> NetworkMatcher:
    """The matcher called `name`, without refinement.

    Args:
        name: one of `NAMES`.
        settings: fields of `matchers.base.MatcherConfig`; for EDM also of
            `matchers.edm.EDMMatcherConfig`.

    Raises:
        EdmHlocError: no such matcher, setting or device, its library is not installed, no weights.
    """
    if name not in NAMES:
        raise EdmHlocError(f"There is no matcher {name!r}; there are {', '.join(NAMES)}.")
    from edm_hloc.matchers.base import MatcherConfig
    from edm_hloc.matchers.loading import check_device

    if settings.get("device") is not None:
        check_device(settings["device"])
    if name == "edm":
        from edm_hloc.matchers.edm import EDMMatcher, EDMMatcherConfig

        return EDMMatcher(_config(EDMMatcherConfig, name, settings))
    if settings.pop("onnx", None) is not None:
        raise EdmHlocError(f"ONNX graphs are of the matcher edm, not of {name}.")
    settings.pop("candidates", None)  # which only EDM can give
    config = _config(MatcherConfig, name, settings)
    if name == "eloftr":
        from edm_hloc.matchers.eloftr import ELoFTRMatcher

        return ELoFTRMatcher(config)
    from edm_hloc.matchers.loftr import LoFTRMatcher

    return LoFTRMatcher(config)


def _config(kind: type[Config], name: str, settings: dict[str, Any]) -> Config:
    """A matcher's configuration.

    Raises:
        EdmHlocError: it has no field of the name of a setting, or one of another type.
    """
    known = {field.name for field in fields(kind)}
    if unknown := sorted(settings.keys() - known):
        raise EdmHlocError(
            f"The matcher {name} has no setting {', '.join(map(repr, unknown))}: see "
            f"help(edm_hloc.load_matcher). Its own are {', '.join(sorted(known))}."
        )
    config = kind(**settings)
    check_types(config)
    return config
