"""Mapping goes on after a kill."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pycolmap
import pytest

from edm_hloc.base.colmap import read_model
from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.journal import journal_path
from edm_hloc.images.cameras import CameraOptions
from edm_hloc.mapping import incremental, output, snapshots
from edm_hloc.mapping.mappers import map_database
from tests.mapping.scenes import THREADS, Scene, assert_near_truth, build, make_scene

NAMES = [f"{i:02}.jpg" for i in range(14)]


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, Path]:
    folder = tmp_path_factory.mktemp("large")
    scene = make_scene(folder, NAMES, outliers=0.0)
    build(scene, folder / "database.db", CameraOptions(mode="single"))
    return scene, folder / "database.db"


@pytest.fixture(scope="session")
def killed(large: tuple[Scene, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for "model", mapped in a process that was killed when it had 13 images."""
    (scene, database), out = large, tmp_path_factory.mktemp("killed") / "model"
    code = f"""
        import os, signal
        from pathlib import Path
        import pycolmap
        from edm_hloc.mapping import incremental, mappers
        from tests.mapping.scenes import THREADS
        class Progress(incremental.StepProgress):
            def update(self, number=1):
                super().update(number)
                if self.done >= 13:
                    os.kill(os.getpid(), signal.SIGKILL)
        incremental.StepProgress = Progress
        paths = [Path(p) for p in {[str(database), str(scene.images), str(out)]!r}]
        mappers.map_database(*paths, THREADS)
    """
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, check=False, cwd=root).returncode == -9
    return out.parent


@pytest.fixture
def callbacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each image that the mapper registers in this process."""
    number: list[int] = []
    mapping = pycolmap.incremental_mapping

    def counted(*arguments: object, next_image_callback: object, **named: object) -> object:
        def call() -> None:
            number.append(1)
            next_image_callback()  # type: ignore[operator]

        return mapping(*arguments, next_image_callback=call, **named)

    monkeypatch.setattr(pycolmap, "incremental_mapping", counted)
    return number


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("damage", [False, True])
def test_mapping_goes_on_from_the_last_whole_snapshot(
    large: tuple[Scene, Path],
    killed: Path,
    tmp_path: Path,
    callbacks: list[int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damage: bool,
) -> None:
    scene, database = large
    restarts: list[float] = []
    monkeypatch.setattr(
        incremental.StepProgress, "restart", lambda _, done, note="": restarts.append(done)
    )
    out = tmp_path / "model"
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    assert not out.exists()
    newest = max(journal_path(out).glob("*/*"))
    assert len(list(journal_path(out).glob("*/*"))) == 2
    if damage:  # as if it had been killed while it was written
        os.truncate(newest / "points3D.bin", 1000)
    summary = map_database(database, scene.images, out, THREADS)
    assert 0 < len(callbacks) < (11 if damage else 6)
    assert "Mapping goes on from" in caplog.text
    assert not restarts  # the count goes on as well
    assert summary.statistics.registered == len(NAMES)
    assert_near_truth(scene, out, 0.1, 0.5)
    assert read_model(out).num_reg_images() == len(NAMES)
    assert not journal_path(out).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_snapshots_of_another_database_are_not_taken(
    large: tuple[Scene, Path],
    killed: Path,
    tmp_path: Path,
    callbacks: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    scene, _ = large
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    other = tmp_path / "other.db"
    build(scene, other, CameraOptions(mode="single"), pairs=scene.pairs[1:])
    map_database(other, scene.images, tmp_path / "model", THREADS)
    assert len(callbacks) >= len(NAMES) - 2
    assert "Mapping starts again, as the database or a setting has changed" in caplog.text
    assert_near_truth(scene, tmp_path / "model", 0.1, 0.5)


def test_the_largest_model_is_gone_on_from_though_another_was_begun(
    large: tuple[Scene, Path], tmp_path: Path
) -> None:
    """In one run COLMAP makes several models of photos that do not fit together."""
    kept = snapshots.Snapshots(tmp_path / "kept", "inputs")
    colmap = pycolmap.IncrementalPipelineOptions()
    kept.begin(colmap, 14, "run")
    model = read_model(large[0].truth)
    place = Path(colmap.snapshot_path)
    for time, images in ((5, 8), (6, 12), (7, 5), (8, 10), (9, 11)):
        for image_id in model.images:
            frame_id = model.images[image_id].frame_id
            if image_id > images and model.images[image_id].has_pose:
                model.deregister_frame(frame_id)
        (place / str(time)).mkdir()
        model.write_binary(place / str(time))
        kept.prune()
        model = read_model(large[0].truth)
    assert {path.name for path in place.iterdir()} == {"6", "8", "9"}
    assert kept.begin(colmap, 14, "run") == (place / "6", 12)
    (place / "6" / "points3D.bin").write_bytes(b"")  # cut off
    assert kept.begin(colmap, 14, "run") == (place / "9", 11)


@pytest.mark.parametrize("full", [True, False])
def test_snapshots_outlive_a_full_disk_but_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    def force_to_disk(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "force_to_disk", force_to_disk)

    def map_photos() -> None:
        with (
            snapshots.kept_snapshots(tmp_path / "kept", "inputs"),
            output.new_model_folder(tmp_path / "model"),
        ):
            if not full:
                raise EdmHlocError("no model")

    with pytest.raises(EdmHlocError, match="what is already stored is kept" if full else "no mod"):
        map_photos()
    assert (tmp_path / "kept").exists() == full


def test_all_snapshots_of_few_photos_are_removed(large: tuple[Scene, Path], tmp_path: Path) -> None:
    scene, database = large
    map_database(database, scene.images, tmp_path / "model", THREADS)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    kept = snapshots.Snapshots(tmp_path / ".part", "inputs")
    colmap = pycolmap.IncrementalPipelineOptions()
    assert kept.begin(colmap, 500, "run") == (None, 0)
    assert colmap.snapshot_frames_freq == 25
