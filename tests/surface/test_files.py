"""PLY and glTF files of meshes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from edm_hloc.surface.glb import mesh_glb
from edm_hloc.surface.ply import Mesh, mesh_ply, read_mesh

TETRAHEDRON = Mesh(
    vertices=np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3.0]]),
    colours=np.array([[0, 0, 0], [255, 0, 0], [0, 188, 0], [0, 0, 255]], np.uint8),
    triangles=np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32),
)


def test_ply_comes_back(tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(mesh_ply(TETRAHEDRON))
    mesh = read_mesh(tmp_path / "a.ply")
    assert mesh.vertices == pytest.approx(TETRAHEDRON.vertices)
    assert (mesh.colours == TETRAHEDRON.colours).all()
    assert (mesh.triangles == TETRAHEDRON.triangles).all()


def test_ply_is_read_by_colmap(tmp_path: Path) -> None:
    import pycolmap

    (tmp_path / "a.ply").write_bytes(mesh_ply(TETRAHEDRON))
    options = pycolmap.MeshSimplificationOptions()
    options.target_face_ratio = 1.0
    pycolmap.simplify_mesh(tmp_path / "a.ply", tmp_path / "b.ply", options)
    written = (tmp_path / "b.ply").read_bytes()
    assert b"element vertex 4\n" in written
    assert b"element face 4\n" in written


def test_glb_has_the_mesh_upright_about_its_middle() -> None:
    turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # z up
    data = mesh_glb(TETRAHEDRON, turn)
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    document = json.loads(data[20 : 20 + size])
    rest, binary = struct.unpack_from("<I4s", data, 20 + size)
    assert (kind, binary, size % 4, rest % 4) == (b"JSON", b"BIN\0", 0, 0)
    assert rest == document["buffers"][0]["byteLength"] == len(data) - 28 - size

    def values(number: int, dtype: str, columns: int) -> np.ndarray:
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        start = 28 + size + view["byteOffset"]
        found = np.frombuffer(data[start : start + view["byteLength"]], dtype)
        return found.reshape(accessor["count"], columns)

    positions = values(0, "<f4", 3)
    assert positions[3] - positions[0] == pytest.approx([0, 3, 0])
    assert positions[2] - positions[0] == pytest.approx([0, 0, -2])
    accessor = document["accessors"][0]
    assert positions.min(axis=0) == pytest.approx(accessor["min"])
    assert positions.max(axis=0) == pytest.approx(accessor["max"])
    assert np.array(accessor["min"]) == pytest.approx(-np.array(accessor["max"]))
    assert (values(2, "<u4", 1).ravel() == TETRAHEDRON.triangles.ravel()).all()
    colours = values(1, "<u2", 4) / 0xFFFF
    assert colours[:, 3].tolist() == [1] * 4
    assert colours[1, :3].tolist() == [1, 0, 0]
    assert colours[2, 1] == pytest.approx(0.5029, abs=1e-4)  # 188 of sRGB is half the light


def test_triangles_take_their_vertices_along() -> None:
    mesh = TETRAHEDRON.with_triangles(np.array([False, False, False, True]))
    assert mesh.vertices.tolist() == TETRAHEDRON.vertices[1:].tolist()
    assert mesh.triangles.tolist() == [[0, 1, 2]]
