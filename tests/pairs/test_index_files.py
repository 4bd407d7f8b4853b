"""LoFTR's index files: the pixel frames of their intrinsics, on rows of the published files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.pairs.arrays import load_arrays
from edm_hloc.pairs.index_files import (
    ScanNetIntrinsics,
    megadepth_intrinsics,
    read_megadepth_index,
    read_scannet_index,
    scannet_intrinsics,
)


def K(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


MEGADEPTH = {  # size of the photo: K of it in scenes 0015 and 0022
    (1600, 1199): K(1750.01, 1749.62, 800.0, 599.5),
    (1599, 1199): K(1764.33, 1764.33, 799.5, 599.5),
    (1014, 599): K(2581.6, 2581.6, 507.0, 299.5),
    (1014, 760): K(4166.04, 4166.04, 507.0, 380.0),
}


@pytest.mark.parametrize("size", MEGADEPTH)
def test_megadepth_s_principal_point_is_the_photo_s_centre(size: tuple[int, int]) -> None:
    width, height = size
    expected = MEGADEPTH[size].copy()
    expected[:2, 2] = (width - 1) / 2, (height - 1) / 2
    np.testing.assert_array_equal(megadepth_intrinsics(MEGADEPTH[size]), expected)


def test_scannet_s_depth_cameras_are_in_hloc_s_frame() -> None:
    """The row of scene0686_01, and that of a depth camera without calibration."""
    calibrated = np.array([574.5408, 0, 322.52283, 0, 577.58374, 238.55885, 0, 0, 1], np.float32)
    np.testing.assert_allclose(
        scannet_intrinsics(calibrated, 686), K(574.5408, 577.58374, 322.52283, 238.55885), rtol=1e-6
    )
    nominal = scannet_intrinsics(K(577.87060547, 577.87060547, 319.5, 239.5), 0)
    assert nominal[:2, 2].tolist() == [(640 - 1) / 2, (480 - 1) / 2]


def test_scannet_s_colour_cameras_are_resized() -> None:
    """scene0737_00, of the same sensor as scene0686_01; `colour` is from SuperGlue's list."""
    colour = K(1163.45, 1164.79, 653.626, 481.6)  # at 1296 × 968 px
    resized = scannet_intrinsics(K(574.54320988, 577.58181818, 322.7782716, 238.80991736), 737)
    sx, sy = 640 / 1296, 480 / 968
    expected = K(1163.45 * sx, 1164.79 * sy, 654.126 * sx - 0.5, 482.1 * sy - 0.5)
    np.testing.assert_allclose(resized, expected, atol=1e-5)
    depth = K(574.5408, 577.58374, 322.52283, 238.55885)
    np.testing.assert_allclose(resized, depth, atol=0.004)
    assert colour[0, 2] * sx == pytest.approx(322.7782716)


@pytest.mark.parametrize("pickled", [True, False])
def test_megadepth_index(tmp_path: Path, pickled: bool) -> None:
    """The published files are pickled dictionaries in spite of their suffix."""
    rotated = np.eye(4)
    rotated[:3, :3] = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    infos = np.empty(2, object)
    infos[0] = (np.array([0, 2]), np.float64(0.25), np.zeros(4))
    infos[1] = (np.array([2, 0]), np.float64(0.5), np.zeros(4))
    content = {
        "image_paths": np.array(["a.jpg", None, "b.jpg"], object),
        "intrinsics": np.array([MEGADEPTH[1600, 1199], None, MEGADEPTH[1014, 599]], object),
        "poses": np.array([np.eye(4), None, rotated], object),
        "pair_infos": list(infos) if pickled else infos,
    }
    path = tmp_path / "0015_0.1_0.3.npz"
    if pickled:
        path.write_bytes(pickle.dumps(content))
    else:
        np.savez(path, **content)
    index = read_megadepth_index(path)
    assert index.pairs == ((0, 2), (2, 0))
    assert index.overlaps.tolist() == [0.25, 0.5]
    assert [index.image_path(i) for i in (0, 2)] == ["a.jpg", "b.jpg"]
    assert index.K(0)[0, 2] == 799.5
    np.testing.assert_array_equal(index.T_0to1(0, 2), rotated)
    with pytest.raises(EdmHlocError, match="lacks depth_paths"):
        read_megadepth_index(path, with_depth=True)
    path.write_bytes(b"junk")
    with pytest.raises(EdmHlocError, match="is not an index file"):
        read_megadepth_index(path)


def test_scannet_index(tmp_path: Path) -> None:
    path = tmp_path / "test.npz"
    np.savez(path, name=np.array([[707, 0, 15, 585]], np.uint16))
    index = read_scannet_index(path)
    assert index.pairs == (("scene0707_00", 15, 585),)
    assert index.overlaps is None
    with pytest.raises(EdmHlocError, match="lacks score"):
        read_scannet_index(path, with_overlap=True)
    four = np.eye(4)
    four[:3, :3] = K(578, 578, 319.5, 239.5)
    np.savez(tmp_path / "intrinsics.npz", scene0000_01=four)
    intrinsics = ScanNetIntrinsics(tmp_path / "intrinsics.npz")
    np.testing.assert_array_equal(intrinsics.K("scene0000_01"), four[:3, :3])
    with pytest.raises(EdmHlocError, match="lacks scene0707_00"):
        intrinsics.K("scene0707_00")


class _Command:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("kind", ["dictionary", "array", "module", "builtin"])
def test_no_code_of_an_index_file_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "0022_0.1_0.3.npz"
    if kind == "array":
        np.savez(path, name=np.array([_Command()], object))
    elif kind == "dictionary":
        path.write_bytes(pickle.dumps({"name": _Command()}))
    elif kind == "module":
        path.write_bytes(b"cnumpy\ntestfromnumpyimport\n.")
    else:
        path.write_bytes(b'c__builtin__\neval\n(S\'__import__("os").mkdir("ran")\'\ntR.')
    with pytest.raises(EdmHlocError, match=r"0022_0\.1_0\.3\.npz is not an index file"):
        read_scannet_index(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    infos = np.array([((0, 1), np.float64(0.5), None), ((1, 2), 0.25, b"x")], object)
    poses = np.arange(32, dtype=">f4").reshape(2, 4, 4)
    path = tmp_path / "index.npz"
    path.write_bytes(pickle.dumps({"infos": infos, "poses": poses, "k": np.int32(3)}, protocol))
    found = load_arrays(path)
    assert found["infos"].tolist() == infos.tolist()
    np.testing.assert_array_equal(found["poses"], poses)
    assert found["k"] == 3
    np.savez(path, infos=infos, poses=poses, fortran=np.asfortranarray(poses), words=["é", "b"])
    found = load_arrays(path)
    assert found["infos"].tolist() == infos.tolist()
    np.testing.assert_array_equal(found["fortran"], poses)
    assert found["words"].tolist() == ["é", "b"]
