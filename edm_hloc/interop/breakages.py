"""Known breakages of hloc, recognised in its source, and those that a command would run into."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROKEN_PYCOLMAP = "4.2.1"
"""The version of pycolmap that ignores verified pairs without a configuration: this one alone."""

INSTALL_OLDER = 'pip install "pycolmap<4.2.1"'


@dataclass(frozen=True)
class Breakage:
    """Something that does not work with what is installed, and what to do about it.

    Attributes:
        problem: what goes wrong, in whole sentences.
        remedy: what to do, in whole sentences.
    """

    problem: str
    remedy: str


def _always(arguments: Sequence[str]) -> bool:
    return True


def _never(arguments: Sequence[str]) -> bool:
    return False


@dataclass(frozen=True)
class SourceCheck:
    """A breakage that can be recognised in the source of a module of hloc.

    Attributes:
        module: name of the module within hloc.
        applies: whether the given source has the breakage.
        breakage: what is wrong then.
        met_by: whether a command line with these arguments runs into it.
        command: the module whose command line that is; None: `module` itself.
    """

    module: str
    applies: Callable[[str], bool]
    breakage: Breakage
    met_by: Callable[[Sequence[str]], bool] = _always
    command: str | None = None


def no_points() -> Breakage:
    """That hloc's triangulation is empty, which depends on pycolmap too."""
    return Breakage(
        "hloc.triangulation gives 0 points with this pycolmap, without an error, because hloc "
        "leaves the configuration of verified pairs undefined; what is localized against such a "
        "model is metres off.",
        f"{INSTALL_OLDER}; then triangulate again. Or triangulate with edm-hloc triangulate; or "
        "run edm-hloc repair-database on the database.db that hloc wrote, then "
        "hloc.triangulation.run_triangulation.",
    )


def leaves_pairs_undefined() -> bool:
    """Whether the installed hloc writes verified pairs without a configuration."""
    source = hloc_source("triangulation")
    return "TwoViewGeometry(" in source and "TwoViewGeometryConfiguration" not in source


def about_to_happen(module: str, arguments: Sequence[str]) -> list[Breakage]:
    """The breakages that a command line of hloc runs into, as far as its source shows.

    Args:
        module: name of the module within hloc.
        arguments: of its command line.
    """
    if {"-h", "--help"} & set(arguments):
        return []
    return [
        check.breakage
        for check in SOURCE_CHECKS
        if module == (check.command or check.module)
        and check.applies(hloc_source(check.module))
        and check.met_by(arguments)
    ]


def hloc_source(module: str) -> str:
    """The source of a module of hloc, without running it; empty if there is no such module."""
    *folders, name = module.split(".")
    for place in hloc_folders():
        path = place.joinpath(*folders, f"{name}.py")
        if path.is_file():
            return path.read_text("utf-8", errors="replace")
    return ""


def hloc_folders() -> list[Path]:
    """The folders that hloc's modules lie in, of which nothing is run; none if not installed."""
    try:
        spec = importlib.util.find_spec("hloc")
    except (ImportError, ValueError):  # ValueError: a module of this name without a spec
        return []
    return [Path(place) for place in spec.submodule_search_locations or ()] if spec else []


def _option(arguments: Sequence[str], name: str) -> str | None:
    """The value of an option in a command line; None where it is not given."""
    for position, word in enumerate(arguments):
        if word == name:
            return arguments[position + 1] if position + 1 < len(arguments) else ""
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return None


def _given(name: str) -> Callable[[Sequence[str]], bool]:
    return lambda arguments: _option(arguments, name) is not None


def _goes_on(arguments: Sequence[str]) -> bool:
    """Whether the match file of an earlier run is there, finished or not."""
    path = _option(arguments, "--matches")
    return bool(path) and Path(str(path)).is_file()


def _images_are_projected_flat(source: str) -> bool:
    """Whether points of two columns go to pycolmap's `img_from_cam`, and it refuses them."""
    if not re.search(r"img_from_cam\(p2D_norm\)", source):
        return False
    try:
        import numpy as np
        import pycolmap

        camera = pycolmap.Camera(
            model="SIMPLE_PINHOLE", width=2, height=2, params=np.array([1.0, 1, 1])
        )
        points: Any = np.zeros((3, 2))  # the types of some versions allow one point only
        camera.img_from_cam(points)
    except Exception:  # of any kind: it does not work
        return True
    return False


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
        _goes_on,
    ),
    SourceCheck(
        "match_dense",
        lambda source: '"score"' in source and '"scores" in' in source,
        Breakage(
            "hloc.match_dense writes the scores of keypoints under another name than it reads "
            "them: in a later run they all vote alike.",
            "Give it the features.h5 of edm-hloc match-pairs, which has the name that is read.",
        ),
        _goes_on,
    ),
    SourceCheck(
        "match_dense",
        lambda source: '"--matches", type=Path, default=confs' in source,
        Breakage(
            "The command line of hloc.match_dense writes matches into the current folder, under a "
            "name without .h5, unless told otherwise.",
            "Give it --matches OUT/matches.h5.",
        ),
        lambda arguments: not _given("--matches")(arguments),
    ),
    SourceCheck(
        "match_dense",
        lambda source: "features_ref" in source and "return features_q, matches" in source,
        Breakage(
            "With features_ref, the path of features that hloc.match_dense.main returns holds only "
            "the images that features_ref lacks; where it lacks none, there is no such file and "
            "later steps end with an AssertionError.",
            "Go on with the file that was given as features_ref, for the images that are in it.",
        ),
        _never,  # its command line has no features_ref
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
        "reconstruction",
        lambda source: "IncrementalMapperOptions()" in source and '"mapper":' not in source,
        Breakage(
            "hloc.reconstruction checks --mapper_options against COLMAP's mapper but gives them to "
            "its pipeline, which has no options of these names: it ends with an AttributeError.",
            'Call hloc.reconstruction.main from Python with mapper_options={"mapper": {…}}.',
        ),
        _given("--mapper_options"),
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
        "localize_inloc",
        lambda source: "assert np.all(kp > -1) and np.all(kp < 1)" in source,
        Breakage(
            "hloc.localize_inloc ends with an AssertionError as soon as one matched keypoint lies "
            "in the first or last row or column of pixels, as some of a dense matcher's do.",
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
    SourceCheck(
        "pipelines.7Scenes.create_gt_sfm",
        _images_are_projected_flat,
        Breakage(
            "hloc.pipelines.7Scenes.pipeline --use_dense_depth ends with a TypeError of "
            "img_from_cam with this pycolmap: it projects points of two columns, and since "
            "pycolmap 4.0 only points of three are taken.",
            'pip install "pycolmap==3.13.*" in an environment of its own (edm_hloc needs 4.2), or '
            "leave out --use_dense_depth.",
        ),
        _given("--use_dense_depth"),
        command="pipelines.7Scenes.pipeline",
    ),
    SourceCheck(
        "pipelines.CMU.pipeline",
        lambda source: "args.slice ==" in source and '"--slice"' not in source,
        Breakage(
            "The command line of hloc.pipelines.CMU.pipeline always ends with an AttributeError: "
            "it asks for args.slice, and its option is --slices.",
            "Call its run_slice() from Python, for each slice.",
        ),
    ),
)
