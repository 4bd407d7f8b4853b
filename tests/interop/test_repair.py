"""`repair-database` on databases as hloc leaves them."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pycolmap
import pytest

from edm_hloc import cli
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.interop.repair import Repair, repair_database, undefined_pairs_are_ignored

UNDEFINED, CALIBRATED, PLANAR = (
    int(getattr(pycolmap.TwoViewGeometryConfiguration, name))
    for name in ("UNDEFINED", "CALIBRATED", "PLANAR")
)


def query(path: Path, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def left_by_hloc(tmp_path: Path) -> tuple[Path, pycolmap.Reconstruction]:
    """A database of true matches whose pairs have no configuration, and the true cameras."""
    pycolmap.set_random_seed(0)
    path = tmp_path / "database.db"
    options = pycolmap.SyntheticDatasetOptions()
    options.num_points3D = 30
    with pycolmap.Database.open(path) as database:
        model = pycolmap.synthesize_dataset(options, database)
    query(path, f"UPDATE two_view_geometries SET config = {UNDEFINED}")
    return path, model


def points(path: Path, model: pycolmap.Reconstruction, folder: Path) -> int:
    return pycolmap.triangulate_points(model, path, folder, folder).num_points3D()


def test_repaired_database_gives_the_points(left_by_hloc: tuple, tmp_path: Path) -> None:
    path, model = left_by_hloc
    (pairs, matches), *_ = query(path, "SELECT COUNT(*), SUM(rows) FROM two_view_geometries")
    before = points(path, model, tmp_path)
    assert (before == 0) == undefined_pairs_are_ignored()
    assert repair_database(path) == Repair(pairs=pairs, repaired=pairs, matches=matches)
    assert points(path, model, tmp_path) == 30
    assert repair_database(path) == Repair(pairs=pairs, repaired=0, matches=0)


def test_repair_changes_nothing_else(left_by_hloc: tuple) -> None:
    path, _ = left_by_hloc
    first, second, *_ = query(path, "SELECT pair_id, rows FROM two_view_geometries")
    query(path, f"UPDATE two_view_geometries SET config = {PLANAR} WHERE pair_id = {first[0]}")
    query(
        path,
        "UPDATE two_view_geometries SET rows = 0, data = NULL, "
        f"config = {UNDEFINED} WHERE pair_id = {second[0]}",
    )
    tables = ["cameras", "images", "keypoints", "matches"]
    before = [query(path, f"SELECT * FROM {table}") for table in tables]
    rest = "SELECT pair_id, rows, cols, data, F, E, H FROM two_view_geometries"
    geometries = query(path, rest)
    done = repair_database(path)
    assert done.repaired == done.pairs - 1 == len(geometries) - 2
    configs = dict(query(path, "SELECT pair_id, config FROM two_view_geometries"))
    assert configs.pop(first[0]) == PLANAR
    assert configs.pop(second[0]) == UNDEFINED
    assert set(configs.values()) == {CALIBRATED}
    assert [query(path, f"SELECT * FROM {table}") for table in tables] == before
    assert query(path, rest) == geometries


def test_databases_that_cannot_be_repaired(
    left_by_hloc: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = left_by_hloc
    text, other = tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("not a database" * 100)
    query(other, "CREATE TABLE things (x)")
    for wrong, message in (
        (tmp_path / "none.db", "No COLMAP database"),
        (text, "is not a COLMAP database"),
        (other, "is not a COLMAP database"),
        (tmp_path, "No COLMAP database"),
    ):
        with pytest.raises(EdmHlocError, match=message):
            repair_database(wrong)
    assert not (tmp_path / "none.db").exists()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.1))
    with contextlib.closing(connect(path)) as user:
        user.execute("BEGIN IMMEDIATE")
        with pytest.raises(EdmHlocError, match="in use by another program"):
            repair_database(path)
    assert repair_database(path).repaired > 0


def test_command_line(left_by_hloc: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = left_by_hloc
    assert cli.main(["repair-database", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"Repaired    {repair_database(path).pairs} of" in said
    assert str(path) in said
    assert cli.main(["repair-database", str(path)]) == 0
    assert "Nothing to repair" in capsys.readouterr().out
    assert cli.main(["repair-database", f"{path}x"]) == 1
