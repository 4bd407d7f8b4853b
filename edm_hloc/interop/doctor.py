"""What is installed, which known breakages apply to it, and mending databases that hloc wrote."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pycolmap
import torch

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.version import __version__

_UNDEFINED = int(pycolmap.TwoViewGeometryConfiguration.UNDEFINED)
_CALIBRATED = int(pycolmap.TwoViewGeometryConfiguration.CALIBRATED)


@dataclass(frozen=True)
class Breakage:
    """Something that does not work with what is installed, and what to do about it."""

    problem: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        versions: of each library, None if it is not installed.
        breakages: those that apply, worst first.
    """

    versions: dict[str, str | None]
    breakages: tuple[Breakage, ...]


@dataclass(frozen=True)
class Repair:
    """What `repair_database` did.

    Attributes:
        pairs: image pairs with verified matches in the database.
        repaired: those of them that had no configuration.
        matches: verified matches of the repaired pairs.
    """

    pairs: int
    repaired: int
    matches: int


def diagnose() -> Diagnosis:
    """Looks at what is installed; takes a second or two, mostly to import hloc."""
    versions = {
        "edm_hloc": __version__,
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, {_device()}",
        "pycolmap": pycolmap.__version__,
        "h5py": _version("h5py"),
        "numpy": _version("numpy"),
        "hloc": _hloc_version(),
        "torchvision": _version("torchvision"),
        "kornia": _version("kornia"),
        "transformers": _version("transformers"),
    }
    breakages = _breakages_of_hloc() if versions["hloc"] is not None else []
    return Diagnosis(versions, tuple(breakages))


def repair_database(path: Path) -> Repair:
    """Gives a configuration to the verified pairs that hloc left without one.

    hloc writes two-view geometries as UNDEFINED. pycolmap 4.2 ignores such pairs, so that
    triangulation ends with 0 points and no error. Here those that have matches become CALIBRATED,
    all in one transaction: a database is repaired or as it was.

    Raises:
        EdmHlocError: no such file, not a COLMAP database, in use, or not writable.
    """
    path = Path(path)
    if not path.is_file():
        raise EdmHlocError(f"No COLMAP database {path}.")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=5)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            pairs, repaired, matches = connection.execute(
                "SELECT COUNT(*), COALESCE(SUM(config = ?1), 0),"
                " COALESCE(SUM(rows * (config = ?1)), 0)"
                " FROM two_view_geometries WHERE rows > 0",
                (_UNDEFINED,),
            ).fetchone()
            connection.execute(
                "UPDATE two_view_geometries SET config = ? WHERE rows > 0 AND config = ?",
                (_CALIBRATED, _UNDEFINED),
            )
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise EdmHlocError(f"{path} is in use by another program: close it first.") from None
        if "readonly" in str(error):
            raise EdmHlocError(f"{path} cannot be written: copy it to where it can.") from None
        raise EdmHlocError(f"{path} is not a COLMAP database ({error}).") from None
    return Repair(pairs, repaired, matches)


def undefined_pairs_are_ignored() -> bool:
    """Whether this pycolmap makes no points of pairs without a configuration (measured)."""
    pycolmap.set_random_seed(0)
    with tempfile.TemporaryDirectory() as folder, quiet_colmap():
        path = Path(folder) / "database.db"
        options = pycolmap.SyntheticDatasetOptions()
        options.num_points3D = 20
        with pycolmap.Database.open(path) as database:
            model = pycolmap.synthesize_dataset(options, database)
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE two_view_geometries SET config = ?", (_UNDEFINED,))
        return not pycolmap.triangulate_points(model, path, folder, folder).num_points3D()


# What is known to be wrong in hloc: module, how to tell from its source, problem, remedy.
_IN_SOURCE: tuple[tuple[str, Callable[[str], bool], str, str], ...] = (
    (
        "match_dense",
        lambda source: "None if overwrite else match_path" in source,
        "hloc.match_dense interrupted before its aggregation leaves pairs without matches0, which "
        "a second run takes for finished: later steps end with a KeyError.",
        "After an interruption delete its match file or pass overwrite=True; "
        "edm-hloc match-pairs goes on where it was.",
    ),
    (
        "match_dense",
        lambda source: '"score"' in source and '"scores" in' in source,
        "hloc.match_dense writes the scores of keypoints under a name that it does not read: in a "
        "later run they all vote alike.",
        "Give it features.h5 of edm-hloc match-pairs, which has the name that is read.",
    ),
    (
        "match_dense",
        lambda source: '"--matches", type=Path, default=confs' in source,
        "The command line of hloc.match_dense puts matches into the current folder, under a name "
        "without .h5, unless told otherwise.",
        "Give it --matches OUT/matches.h5.",
    ),
    (
        "triangulation",
        lambda source: 'pop("mapper_options")' in source and '"--mapper_options"' not in source,
        "The command line of hloc.triangulation always ends with KeyError: 'mapper_options'.",
        "Call hloc.triangulation.main from Python, or use edm-hloc triangulate.",
    ),
    (
        "localize_inloc",
        lambda source: "kpq[v], kpr[m[v]]" in source,
        "hloc.localize_inloc fails on matches of dense matchers, hloc's own included, whose arrays "
        "end at the last matched keypoint, and on queries without a pose.",
        "Use edm-hloc inloc.",
    ),
    (
        "pipelines.Aachen_v1_1.pipeline_loftr",
        lambda source: "run(args)" not in source.partition("__main__")[2],
        "hloc.pipelines.Aachen_v1_1.pipeline_loftr reads its arguments and does nothing.",
        "Call its run() from Python.",
    ),
)


def _breakages_of_hloc() -> list[Breakage]:
    found = []
    try:
        from edm_hloc.interop import hloc_plugin  # noqa: F401 (imports hloc, and raises if it cannot)
    except EdmHlocError as error:
        found.append(Breakage(str(error), "Install versions that belong together, then try again."))
    source = _source("triangulation")
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
                "database.db that hloc left, then hloc.triangulation.run_triangulation.",
            )
        )
    for module, applies, problem, remedy in _IN_SOURCE:
        if applies(_source(module)):
            found.append(Breakage(problem, remedy))
    return found


def _source(module: str) -> str:
    """The text of a module of hloc, empty if there is none; the module itself is not run."""
    try:
        spec = importlib.util.find_spec(f"hloc.{module}")
    except ImportError:
        return ""
    return Path(spec.origin).read_text("utf-8") if spec and spec.origin else ""


def _hloc_version() -> str | None:
    spec = importlib.util.find_spec("hloc")
    if spec is None:
        return None
    where = next(iter(spec.submodule_search_locations or ()), "")
    try:
        import hloc
    except Exception as error:  # whatever goes wrong in it is what the user wants to know
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
