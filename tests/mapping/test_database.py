"""Import of keypoints and matches into COLMAP databases."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from edm_hloc.base.colmap import quiet_colmap
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.keypoints.h5 import FeatureWriter
from edm_hloc.mapping.database import build_database, new_database
from edm_hloc.mapping.options import MappingOptions
from tests.h5_files import posix_only
from tests.mapping.scenes import NAMES, Scene, build, make_scene


def test_database_holds_what_the_files_do(scene: Scene, database: Path, tmp_path: Path) -> None:
    twice = scene.pairs + [(b, a) for a, b in scene.pairs] + [(NAMES[0], NAMES[0])]
    imported, verified = build_database(
        tmp_path / "new" / "database.db",
        replace(scene.matched, pairs=[*twice, (NAMES[0], "unknown.jpg")]),
        CameraOptions(mode="single"),
        MappingOptions(threads=2),
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["database.db"]
    assert (imported.images, imported.cameras, imported.prior_focal) == (6, 1, 0)
    assert (imported.pairs, imported.missing_pairs, imported.skipped) == (15, 1, {})
    assert verified.pairs == verified.verified_pairs == 15
    assert verified.matches == imported.matches
    correct = sum(
        len(set(scene.ids[a][scene.ids[a] >= 0]) & set(scene.ids[b])) for a, b in scene.pairs
    )
    assert 0.9 * correct < verified.inliers < correct

    # the reversed and repeated pairs changed nothing, nor did the number of threads
    with quiet_colmap():
        for path in (database, tmp_path / "new" / "database.db"):
            db = pycolmap.Database.open(path)
            geometries = db.read_two_view_geometries()[1]
            if path == database:
                before = geometries
            assert len(geometries) == 15
            for a, b in zip(before, geometries, strict=True):
                np.testing.assert_array_equal(a.inlier_matches, b.inlier_matches)
            db.close()


def test_half_a_pixel_is_added_once(scene: Scene, database: Path) -> None:
    import h5py

    db = pycolmap.Database.open(database)
    with h5py.File(scene.features) as h5:
        for image in db.read_all_images():
            expected = h5[image.name]["keypoints"][:] + np.float32(0.5)
            np.testing.assert_array_equal(db.read_keypoints(image.image_id), expected)
    db.close()


def test_unreadable_photos_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = make_scene(tmp_path, NAMES)
    (scene.images / NAMES[1]).write_bytes(b"")
    (scene.images / NAMES[2]).write_text("not a photo")
    (scene.images / NAMES[4]).unlink()
    with caplog.at_level(logging.WARNING):
        imported = build(scene, tmp_path / "d.db")
    assert set(imported.skipped) == {NAMES[1], NAMES[2], NAMES[4]}
    assert (imported.images, imported.pairs, imported.missing_pairs) == (3, 3, 12)
    assert caplog.text.count("Skipping a photo") == 3
    shutil.rmtree(scene.images)
    with pytest.raises(EdmHlocError, match="None of the 6 images"):
        build(scene, tmp_path / "d.db")
    assert not list(tmp_path.glob(".d.db*"))
    db = pycolmap.Database.open(tmp_path / "d.db")  # the older one is still there
    assert db.num_images() == 3
    db.close()


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, NAMES[:3])
    other = make_scene(tmp_path / "other", NAMES[:3], seed=5)
    with FeatureWriter(tmp_path / "few.h5", {}) as features:
        for name in NAMES[:3]:
            features.add(name, np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(EdmHlocError, match="two files of one run"):
        build(scene, tmp_path / "d.db", features=tmp_path / "few.h5")
    for name in NAMES[:3]:
        Image.new("L", (320, 240)).save(other.images / name)
    with pytest.raises(EdmHlocError, match="another size"):
        build(other, tmp_path / "d.db")
    with pytest.raises(EdmHlocError, match="No camera model 'FISH'"):
        build(scene, tmp_path / "d.db", CameraOptions(model="FISH"))
    assert not (tmp_path / "d.db").exists()


def test_a_disk_without_room_is_an_error_beforehand(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    database = tmp_path / "database.db"
    with pytest.raises(
        EdmHlocError, match=r"database\.db: it may need \d+ MiB .* are 0\. Free some"
    ):
        build_database(database, scene.matched)
    assert not any(tmp_path.iterdir())


_WITH_A_QUOTA = """
import resource, signal, sys
from pathlib import Path
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.mapping.database import MatchedImages, build_database
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
root, out, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    matched = MatchedImages(root / "images", root / "features.h5", root / "matches.h5", [])
    build_database(out, matched)
except EdmHlocError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.slow
@posix_only
@pytest.mark.parametrize(
    "limit",
    [
        0,
        4096,
        100_000,
        800_000,
    ],
)
def test_a_quota_is_one_sentence_and_leaves_nothing(
    scene: Scene, tmp_path: Path, limit: int
) -> None:
    database = tmp_path / "database.db"
    root = scene.features.parent
    ended = subprocess.run(
        [sys.executable, "-c", _WITH_A_QUOTA, str(root), str(database), str(limit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stdout.startswith(f"Cannot write {database}: File too large. Free some disk space")
    assert ended.stderr == ""
    assert not any(tmp_path.iterdir())


_FILLED_UP_LATER = """
import json, resource, signal, sys
from pathlib import Path
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.mapping import database
root, out = Path(sys.argv[1]), Path(sys.argv[2])
pairs = json.loads(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
matched = database.MatchedImages(root / "images", root / "features.h5", root / "matches.h5", pairs)
limit = 1000
while True:
    def fill(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    database._check_room = fill
    try:
        database.build_database(out, matched)
        break
    except EdmHlocError as error:
        print(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert {path.name for path in out.parent.iterdir()} <= {".database.db.part"}  # verified pairs
    limit = int(1.3 * limit)
"""


@posix_only
def test_a_disk_that_fills_up_in_the_middle_is_one_sentence(scene: Scene, tmp_path: Path) -> None:
    """After the check of the room somebody else takes it: at whatever point that is met, the
    process does not end with COLMAP's stack trace, and the database is whole when it is there."""
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "database.db"
    root = scene.features.parent
    ended = subprocess.run(
        [sys.executable, "-c", _FILLED_UP_LATER, str(root), str(out), json.dumps(scene.pairs)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    said = ended.stdout.splitlines()
    assert len(said) > 15
    assert all(line.startswith(f"Cannot write {out}: ") for line in said)
    assert {path.name for path in out.parent.iterdir()} == {"database.db"}
    with contextlib.closing(sqlite3.connect(out)) as db:
        assert db.execute("SELECT count(*) FROM two_view_geometries").fetchone() == (15,)


def test_what_is_left_in_the_log_is_no_success(scene: Scene, tmp_path: Path) -> None:
    """COLMAP closes a database without a word when its log cannot be merged into it."""
    path = tmp_path / "database.db"
    path.write_text("an older one")

    def fill() -> None:
        with new_database(path, scene.matched) as database:
            reader = readers.enter_context(
                contextlib.closing(sqlite3.connect(tmp_path / ".database.db.tmp"))
            )
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM cameras").fetchone() == (0,)
            camera = pycolmap.Camera(model="PINHOLE", width=64, height=48, params=[9, 9, 9, 9])
            database.write_camera(camera)

    message = r"Cannot write .*database\.db: its log could not be merged"
    with contextlib.ExitStack() as readers, pytest.raises(EdmHlocError, match=message):
        fill()
    assert path.read_text() == "an older one"
    assert [p.name for p in tmp_path.iterdir()] == ["database.db"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files there")
def test_a_pipe_is_not_replaced_by_the_database(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    os.mkfifo(path)
    with (
        pytest.raises(EdmHlocError, match=r"Cannot write .*database\.db: it is a device or a pipe"),
        new_database(path, scene.matched),
    ):
        pass
    assert path.is_fifo()
