"""PLY and glTF files of meshes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from edm_hloc.base.errors import NoRoomError
from edm_hloc.surface.atlas import TexturedMesh
from edm_hloc.surface.glb import mesh_glb
from edm_hloc.surface.ply import Mesh, mesh_ply, points_ply, read_mesh

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


def test_coordinates_on_earth_keep_their_digits(tmp_path: Path) -> None:
    moved = np.array([500_000.0, 5_200_000.0, 400.0])
    rng = np.random.default_rng(0)
    points = moved + rng.uniform(0, 8, (1000, 3))
    triangles = np.arange(999, dtype=np.int32).reshape(-1, 3)
    mesh = Mesh(points, np.full((1000, 3), 128, np.uint8), triangles)
    (tmp_path / "a.ply").write_bytes(mesh_ply(mesh))
    assert read_mesh(tmp_path / "a.ply").vertices == pytest.approx(points, abs=1e-9)
    assert b"property double y" in points_ply(points, mesh.colours)
    near = points_ply(points - moved, mesh.colours)
    assert b"property float y" in near
    assert len(near) < 1000 * 15 + 300


def test_half_a_file_of_colmap_is_no_room(tmp_path: Path) -> None:
    data = mesh_ply(TETRAHEDRON)
    for length in (0, 40, len(data) - 20):
        (tmp_path / "a.ply").write_bytes(data[:length])
        with pytest.raises(NoRoomError, match="TMPDIR"):
            read_mesh(tmp_path / "a.ply")


class _Glb:
    """A glTF file, read as its specification says."""

    def __init__(self, data: bytes) -> None:
        magic, version, length = struct.unpack_from("<4sII", data)
        assert (magic, version, length) == (b"glTF", 2, len(data))
        size, kind = struct.unpack_from("<I4s", data, 12)
        self.document = json.loads(data[20 : 20 + size])
        rest, binary = struct.unpack_from("<I4s", data, 20 + size)
        assert (kind, binary, size % 4, rest % 4) == (b"JSON", b"BIN\0", 0, 0)
        assert rest == self.document["buffers"][0]["byteLength"] == len(data) - 28 - size
        self._binary = data[28 + size :]

    def view(self, number: int) -> bytes:
        view = self.document["bufferViews"][number]
        assert view["byteOffset"] % 4 == 0
        return self._binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]

    def values(self, number: int) -> np.ndarray:
        accessor = self.document["accessors"][number]
        dtype = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[accessor["componentType"]]
        columns = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor["type"]]
        found = np.frombuffer(self.view(accessor["bufferView"]), dtype)
        return found.reshape(accessor["count"], columns)


def _plain(mesh: Mesh) -> TexturedMesh:
    return TexturedMesh(np.zeros((0, 3)), np.zeros((0, 2)), [], [], mesh)


TURN = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # z up


def test_glb_has_the_mesh_upright_about_its_middle() -> None:
    glb = _Glb(mesh_glb(_plain(TETRAHEDRON), TURN))
    (primitive,) = glb.document["meshes"][0]["primitives"]
    number = primitive["attributes"]["POSITION"]
    positions = glb.values(number)
    assert positions[3] - positions[0] == pytest.approx([0, 3, 0])
    assert positions[2] - positions[0] == pytest.approx([0, 0, -2])
    accessor = glb.document["accessors"][number]
    assert positions.min(axis=0) == pytest.approx(accessor["min"])
    assert positions.max(axis=0) == pytest.approx(accessor["max"])
    assert np.array(accessor["min"]) == pytest.approx(-np.array(accessor["max"]))
    assert (glb.values(primitive["indices"]).ravel() == TETRAHEDRON.triangles.ravel()).all()
    colours = glb.values(primitive["attributes"]["COLOR_0"]) / 0xFFFF
    assert colours[:, 3].tolist() == [1] * 4
    assert colours[1, :3].tolist() == [1, 0, 0]
    assert colours[2, 1] == pytest.approx(0.5029, abs=1e-4)  # 188 of sRGB is half the light
    assert "baseColorTexture" not in glb.document["materials"][0]["pbrMetallicRoughness"]


def test_glb_has_the_pages_of_a_texture() -> None:
    pages = [b"\xff\xd8 one", b"\xff\xd8 another"]
    vertices = TETRAHEDRON.vertices + np.array([10.0, 0, 0])
    uv = np.array([[0, 0], [0.5, 0], [0, 1.0], [0.25, 0.75]])
    split = [TETRAHEDRON.triangles[:1], TETRAHEDRON.triangles[1:]]
    mesh = TexturedMesh(vertices, uv, split, pages, TETRAHEDRON)
    assert len(mesh) == 8
    glb = _Glb(mesh_glb(mesh, TURN))
    document = glb.document
    first, second, rest = document["meshes"][0]["primitives"]
    for primitive, triangles, page in zip((first, second), split, pages, strict=True):
        assert glb.values(primitive["attributes"]["TEXCOORD_0"]) == pytest.approx(uv)
        assert (glb.values(primitive["indices"]).ravel() == triangles.ravel()).all()
        material = document["materials"][primitive["material"]]
        texture = material["pbrMetallicRoughness"]["baseColorTexture"]["index"]
        image = document["images"][document["textures"][texture]["source"]]
        assert image["mimeType"] == "image/jpeg"
        assert glb.view(image["bufferView"]) == page
    # both parts keep their distance
    textured = glb.values(first["attributes"]["POSITION"])
    plain = glb.values(rest["attributes"]["POSITION"])
    assert textured - plain == pytest.approx(np.tile([10.0, 0, 0], (4, 1)))


def test_triangles_take_their_vertices_along() -> None:
    mesh = TETRAHEDRON.with_triangles(np.array([False, False, False, True]))
    assert mesh.vertices.tolist() == TETRAHEDRON.vertices[1:].tolist()
    assert mesh.triangles.tolist() == [[0, 1, 2]]
