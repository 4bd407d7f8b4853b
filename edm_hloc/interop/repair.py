"""Repairs COLMAP databases whose verified pairs hloc left without a configuration."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pycolmap

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.files import scratch_folder

_UNDEFINED = int(pycolmap.TwoViewGeometryConfiguration.UNDEFINED)
_CALIBRATED = int(pycolmap.TwoViewGeometryConfiguration.CALIBRATED)


@dataclass(frozen=True)
class Repair:
    """What `repair_database` found and did.

    Attributes:
        pairs: number of image pairs with verified matches in the database.
        repaired: number of those whose configuration was undefined.
        matches: number of verified matches of the repaired pairs.
    """

    pairs: int
    repaired: int
    matches: int


def repair_database(path: Path) -> Repair:
    """Give a configuration to the two-view geometries that hloc left without one, in place.

    hloc writes two-view geometries with the configuration UNDEFINED. pycolmap 4.2.1 ignores such
    pairs, so triangulation ends with 0 points and without an error. Those that have matches become
    CALIBRATED here, in one transaction: either all of them do, or the database stays as it is.

    Args:
        path: the database.

    Raises:
        EdmHlocError: there is no such file, it is not a COLMAP database, another program uses it,
            or it is not writable.
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
            raise EdmHlocError(
                f"{path} cannot be written: copy it to a place where it can."
            ) from None
        raise EdmHlocError(f"{path} is not a COLMAP database ({error}).") from None
    return Repair(pairs, repaired, matches)


def undefined_pairs_are_ignored() -> bool:
    """Whether the installed pycolmap triangulates no points from undefined two-view geometries.

    It is tried out on a small synthetic database.
    """
    pycolmap.set_random_seed(0)
    with scratch_folder() as folder, quiet_colmap():
        path = folder / "database.db"
        options = pycolmap.SyntheticDatasetOptions()
        options.num_points3D = 20
        with pycolmap.Database.open(path) as database:
            model = pycolmap.synthesize_dataset(options, database)
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE two_view_geometries SET config = ?", (_UNDEFINED,))
        return not pycolmap.triangulate_points(model, path, folder, folder).num_points3D()
