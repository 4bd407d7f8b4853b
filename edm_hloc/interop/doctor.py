"""What is installed, and which known breakages of hloc apply to it."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pycolmap
import torch

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.version import __version__
from edm_hloc.interop.repair import undefined_pairs_are_ignored


@dataclass(frozen=True)
class Breakage:
    """Something that does not work with what is installed, and what to do about it.

    Attributes:
        problem: what goes wrong, in whole sentences.
        remedy: what to do, in whole sentences.
    """

    problem: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        versions: version of each library, by its name; None if it is not installed.
        breakages: those that apply: that hloc cannot be imported, then that it triangulates no
            points, then those of single modules.
    """

    versions: dict[str, str | None]
    breakages: tuple[Breakage, ...]


def diagnose() -> Diagnosis:
    """Look at what is installed. Takes a second or two, mostly to import hloc."""
    versions = {
        "edm_hloc": __version__,
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, {_device()}",
        "pycolmap": pycolmap.__version__,
        "h5py": _version("h5py"),
        "numpy": _version("numpy"),
        "hloc": hloc_version(),
        "torchvision": _version("torchvision"),
        "kornia": _version("kornia"),
        "transformers": _version("transformers"),
    }
    breakages = _breakages_of_hloc() if versions["hloc"] is not None else []
    return Diagnosis(versions, tuple(breakages))


@dataclass(frozen=True)
class SourceCheck:
    """A breakage that can be recognised in the source of a module of hloc.

    Attributes:
        module: name of the module within hloc.
        applies: whether the given source has the breakage.
        breakage: what is wrong then.
    """

    module: str
    applies: Callable[[str], bool]
    breakage: Breakage


SOURCE_CHECKS = (
    SourceCheck(
        "match_dense",
        lambda source: "None if overwrite else match_path" in source,
        Breakage(
            "When hloc.match_dense is interrupted before its aggregation, pairs have no matches0 "
            "but count as finished in a second run: later steps end with a KeyError.",
            "After an interruption delete its match file or pass overwrite=True; edm-hloc "
            "match-pairs resumes where it was interrupted.",
        ),
    ),
    SourceCheck(
        "match_dense",
        lambda source: '"score"' in source and '"scores" in' in source,
        Breakage(
            "hloc.match_dense writes the scores of keypoints under another name than it reads "
            "them: in a later run they all vote alike.",
            "Give it the features.h5 of edm-hloc match-pairs, which has the name that is read.",
        ),
    ),
    SourceCheck(
        "match_dense",
        lambda source: '"--matches", type=Path, default=confs' in source,
        Breakage(
            "The command line of hloc.match_dense writes matches into the current folder, under a "
            "name without .h5, unless told otherwise.",
            "Give it --matches OUT/matches.h5.",
        ),
    ),
    SourceCheck(
        "triangulation",
        lambda source: 'pop("mapper_options")' in source and '"--mapper_options"' not in source,
        Breakage(
            "The command line of hloc.triangulation always ends with KeyError: 'mapper_options'.",
            "Call hloc.triangulation.main from Python, or use edm-hloc triangulate.",
        ),
    ),
    SourceCheck(
        "localize_inloc",
        lambda source: "kpq[v], kpr[m[v]]" in source,
        Breakage(
            "hloc.localize_inloc fails on matches of dense matchers, including hloc's own, because "
            "their arrays end at the last matched keypoint; and on queries without a pose.",
            "Use edm-hloc inloc.",
        ),
    ),
    SourceCheck(
        "pipelines.Aachen_v1_1.pipeline_loftr",
        lambda source: "run(args)" not in source.partition("__main__")[2],
        Breakage(
            "hloc.pipelines.Aachen_v1_1.pipeline_loftr parses its arguments and does nothing else.",
            "Call its run() from Python.",
        ),
    ),
)


def _breakages_of_hloc() -> list[Breakage]:
    """The breakages that apply to the installed hloc."""
    found = []
    try:
        from edm_hloc.interop import hloc_plugin  # noqa: F401 (imports hloc, and raises if it cannot)
    except EdmHlocError as error:
        found.append(
            Breakage(
                str(error), "Install versions of the libraries that fit each other, then try again."
            )
        )
    source = hloc_source("triangulation")
    if (
        "TwoViewGeometry(" in source
        and "TwoViewGeometryConfiguration" not in source
        and undefined_pairs_are_ignored()
    ):
        found.append(
            Breakage(
                "hloc.triangulation gives 0 points with this pycolmap, without an error, because "
                "hloc leaves the configuration of verified pairs undefined.",
                "Triangulate with edm-hloc triangulate; or run edm-hloc repair-database on the "
                "database.db that hloc wrote, then hloc.triangulation.run_triangulation.",
            )
        )
    found += [c.breakage for c in SOURCE_CHECKS if c.applies(hloc_source(c.module))]
    return found


def hloc_source(module: str) -> str:
    """The source of a module of hloc, without running it; empty if there is no such module."""
    try:
        spec = importlib.util.find_spec(f"hloc.{module}")
    except ImportError:
        return ""
    return Path(spec.origin).read_text("utf-8") if spec and spec.origin else ""


def hloc_version() -> str | None:
    """Version and folder of hloc, or why it cannot be imported; None if it is not installed."""
    spec = importlib.util.find_spec("hloc")
    if spec is None:
        return None
    where = next(iter(spec.submodule_search_locations or ()), "")
    try:
        import hloc
    except Exception as error:  # the user wants to know of it, whatever it is
        return f"in {where}, cannot be imported: {error}"
    return f"{getattr(hloc, '__version__', 'of unknown version')} in {where}"


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "mps" if torch.backends.mps.is_available() else "CPU only"
