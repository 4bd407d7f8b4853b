"""What is said where no model is found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping.mappers import map_database
from edm_hloc.mapping.no_model import explain_no_model
from tests.h5_files import posix_only
from tests.mapping.scenes import CAMERA, NAMES, THREADS, Scene, build, make_scene


def test_no_matches_no_model_but_a_reason(scene: Scene, tmp_path: Path) -> None:
    build(scene, tmp_path / "none.db", pairs=[])
    with pytest.raises(EdmHlocError, match=r"0 of their pairs have matches.*Nothing was matched"):
        map_database(tmp_path / "none.db", scene.images, tmp_path / "m")

    wrong = make_scene(tmp_path / "wrong", NAMES[:3], outliers=1.0)
    build(wrong, tmp_path / "wrong.db")
    with pytest.raises(EdmHlocError, match="agree with one geometry"):
        map_database(tmp_path / "wrong.db", wrong.images, tmp_path / "m")
    assert re.search(
        r"3 of their pairs have matches, [\d,]+ in all; 0 pairs",
        explain_no_model(tmp_path / "wrong.db"),
    )
    assert "f.jpg" not in explain_no_model(tmp_path / "wrong.db")
    with pytest.raises(EdmHlocError, match=r"No COLMAP database .*absent\.db"):
        map_database(tmp_path / "absent.db", scene.images, tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("whole", [0, 8192])
def test_a_scrambled_database_is_named(database: Path, tmp_path: Path, whole: int) -> None:
    data = bytearray(database.read_bytes())
    data[whole:] = np.random.default_rng(0).bytes(len(data) - whole)
    (tmp_path / "d.db").write_bytes(data)
    with pytest.raises(EdmHlocError, match=r"database .*d\.db is damaged .* delete it"):
        map_database(tmp_path / "d.db", tmp_path, tmp_path / "model")


_ON_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from edm_hloc.base.colmap import open_database
from edm_hloc.base.errors import EdmHlocError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    with open_database(Path(sys.argv[1])) as db:
        print(db.num_images())
except EdmHlocError as error:
    print(error)
"""


@posix_only
def test_a_whole_database_on_a_full_disk_is_not_called_damaged(
    database: Path, tmp_path: Path
) -> None:
    path = tmp_path / "d d.db"
    path.write_bytes(database.read_bytes())
    said = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert said.startswith(f"The COLMAP database {path} is whole, but cannot be opened: the disk")
    assert "delete" not in said


def test_turning_on_the_spot_gives_a_reason(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, NAMES[:4], centres=np.array([[0.0, 0.0, -6.0]] * 4), noise=0.1)
    build(scene, tmp_path / "d.db", CameraOptions(known=dict.fromkeys(NAMES, CAMERA)))
    with pytest.raises(EdmHlocError, match=r"turned without moving.*different places"):
        map_database(tmp_path / "d.db", scene.images, tmp_path / "m", THREADS, known=NAMES)
    assert [p.name for p in tmp_path.glob("*m*") if p.name.startswith(".")] == []
