"""Damaged COLMAP models are refused at once, whole ones are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pycolmap
import pytest

from edm_hloc.base.binary_models import ModelArrays
from edm_hloc.base.colmap import quiet_colmap, read_model, write_model_files
from edm_hloc.base.errors import EdmHlocError, NoRoomError
from tests.full_disk import largest_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 4, 30
    pycolmap.synthesize_dataset(options).write_binary(tmp_path)
    return tmp_path


def test_a_whole_model_is_read(model: Path) -> None:
    assert read_model(model).num_points3D() == 30


@pytest.mark.parametrize(
    "name", ["cameras.bin", "images.bin", "points3D.bin", "frames.bin", "rigs.bin"]
)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_named(model: Path, name: str, share: float) -> None:
    data = (model / name).read_bytes()
    (model / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(EdmHlocError, match=f"damaged: {name} ends too early"):
        read_model(model)


@pytest.mark.parametrize("text", [True, False])
def test_a_full_disk_is_noticed_in_any_file(model: Path, tmp_path: Path, text: bool) -> None:
    """COLMAP says nothing when its files do not become whole."""
    read = read_model(model)
    out = tmp_path / "out"
    out.mkdir()
    write_model_files(read, out, text=text)
    assert read_model(out).num_points3D() == 30
    sizes = {path.stat().st_size for path in out.iterdir()}
    limits = {limit for size in sizes for limit in (0, size // 3, size - 1) if limit < max(sizes)}
    for limit in sorted(limits):
        with largest_file(limit), pytest.raises(NoRoomError, match=f"Cannot write {out}: "):
            write_model_files(read, out, text=text)


def test_pillow_works_beside_pycolmap() -> None:
    """pycolmap brings a zlib of its own; imported first, it crashes Pillow as it writes a PNG."""
    code = (
        "import edm_hloc.base.colmap, io, os\n"
        "from PIL import Image\n"
        "Image.frombytes('RGB', (200, 200), os.urandom(120000)).save(io.BytesIO(), 'PNG')\n"
        "print('written')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "written\n", result.stderr[-500:]


def test_a_model_that_a_kill_has_left_under_another_name_is_named(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()  # killed between the renames, when replaced in place
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        (tmp_path / ".model.old" / name).touch()
    with pytest.raises(EdmHlocError, match=r"has left it as .*\.model\.old: rename that to"):
        read_model(tmp_path / "model")


def test_quiet_colmap_restores_the_level(capfd: pytest.CaptureFixture[str]) -> None:
    before = pycolmap.logging.minloglevel

    def fail() -> None:
        with quiet_colmap():
            pycolmap.logging.error("unheard of")
            raise ValueError("anything")

    with pytest.raises(ValueError, match="anything"):
        fail()
    assert pycolmap.logging.minloglevel == before
    assert "unheard of" not in capfd.readouterr().err


def test_points_and_observations_as_arrays(model: Path) -> None:
    """The same as by COLMAP's objects, one by one; of registered photos only."""
    whole = pycolmap.Reconstruction(model)
    whole.delete_point3D(min(whole.point3D_ids()))
    whole.deregister_frame(min(whole.reg_frame_ids()))
    found = ModelArrays.of(whole)
    assert found.ids.tolist() == sorted(whole.point3D_ids())
    for point_id, xyz in zip(found.ids.tolist(), found.xyz, strict=True):
        assert (whole.points3D[point_id].xyz == xyz).all()
    rows = [
        (image_id, index, point.point3D_id, *point.xy)
        for image_id, image in sorted(whole.images.items())
        for index, point in enumerate(image.points2D)
        if image.has_pose and point.has_point3D()
    ]
    assert len(rows) > 50
    columns = (found.image, found.index, found.point, *found.xy.T)
    assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == rows


def test_a_model_without_points_as_arrays() -> None:
    found = ModelArrays.of(pycolmap.Reconstruction())
    assert found.xyz.shape == (0, 3)
    assert found.xy.shape == (0, 2)


def test_colmaps_log_is_silent_until_the_last_of_several_threads_is_done() -> None:
    """As when one thread reads EXIF data while another maps: the level is the process'."""
    before = pycolmap.logging.minloglevel
    first, second = quiet_colmap(), quiet_colmap()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert pycolmap.logging.minloglevel > 2
    second.__exit__(None, None, None)
    assert pycolmap.logging.minloglevel == before
