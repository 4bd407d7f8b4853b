"""Meshes and clouds as binary PLY files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm_hloc.base.errors import NoRoomError
from edm_hloc.surface.cloud import Cloud

Array = np.ndarray

MARK = b"comment made by edm_hloc\n"
"""In the header of every file that is written here."""

_KINDS = {"<f4": "float", "<f8": "double", "u1": "uchar"}
_TYPES = {"float": "<f4", "double": "<f8", "uchar": "u1", "int": "<i4", "uint": "<u4"}
_FINE = 1e-6  # of the extent: a step of single precision, up to which it is enough
_XYZ, _RGB = ("x", "y", "z"), ("red", "green", "blue")


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh with a colour for each vertex.

    Attributes:
        vertices: (V, 3) in the frame of the model.
        colours: (V, 3) uint8.
        triangles: (T, 3) int32, rows of `vertices`, counter-clockwise seen from outside.
    """

    vertices: Array
    colours: Array
    triangles: Array

    def __len__(self) -> int:
        """The number of triangles."""
        return len(self.triangles)

    def vertex_cloud(self) -> Cloud:
        """The vertices with the mean normals and edges of their triangles."""
        corners = self.vertices[self.triangles]
        edges = np.roll(corners, -1, axis=1) - corners
        areas = np.cross(edges[:, 0], edges[:, 1])
        number, at = len(self.vertices), self.triangles.ravel()
        normals = [np.bincount(at, np.repeat(column, 3), number) for column in areas.T]
        lengths = np.linalg.norm(edges, axis=2).ravel()
        count = np.maximum(np.bincount(at, minlength=number), 1)
        return Cloud(
            self.vertices,
            np.stack(normals, axis=1)
            / np.maximum(np.linalg.norm(normals, axis=0), 1e-300)[:, None],
            np.bincount(at, lengths, number) / count,
        )

    def with_triangles(self, kept: Array) -> Mesh:
        """The mesh of some triangles (T,) bool, and of their vertices."""
        triangles = self.triangles[kept]
        used, numbers = np.unique(triangles, return_inverse=True)
        renumbered = numbers.reshape(-1, 3).astype(np.int32)
        return Mesh(self.vertices[used], self.colours[used], renumbered)


def cloud_ply(cloud: Cloud, colours: Array, origin: Array | float = 0.0) -> bytes:
    """The PLY file of a cloud with normals and colours (N, 3), relative to `origin` (3,)."""
    columns = [*(cloud.points - origin).T, *cloud.normals.T]
    table = _table((*_XYZ, "nx", "ny", "nz"), columns, colours)
    return _header(table) + b"end_header\n" + table.tobytes()


def mesh_ply(mesh: Mesh) -> bytes:
    """The PLY file of a mesh, its vertices with colours."""
    table = _table(_XYZ, list(mesh.vertices.T), mesh.colours)
    rows = np.zeros(len(mesh.triangles), [("number", "u1"), ("corners", "<i4", 3)])
    rows["number"], rows["corners"] = 3, mesh.triangles
    faces = f"element face {len(rows)}\nproperty list uchar int vertex_indices\nend_header\n"
    return _header(table) + faces.encode() + table.tobytes() + rows.tobytes()


def points_ply(points: Array, colours: Array, *, normals: bool = False) -> bytes:
    """The PLY file of points (N, 3) with colours (N, 3) uint8, and normals of zero if asked."""
    zeros = [np.zeros(len(points))] * 3 if normals else []
    names = (*_XYZ, "nx", "ny", "nz")[: 3 + len(zeros)]
    table = _table(names, [*points.T, *zeros], colours)
    return _header(table) + b"end_header\n" + table.tobytes()


def _table(names: Sequence[str], columns: Sequence[Array], colours: Array) -> Array:
    """The rows of a PLY file, the first three columns of which are coordinates: in double precision
    where they are far from the origin, as on Earth."""
    xyz = np.stack(columns[:3], axis=1)
    largest = np.float32(np.abs(xyz).max(initial=0))
    fine = np.spacing(largest) <= _FINE * np.ptp(xyz, axis=0).max(initial=0) if len(xyz) else True
    kinds = ["<f4" if fine or name not in _XYZ else "<f8" for name in names]
    table = np.zeros(
        len(colours), [*zip(names, kinds, strict=True), *((name, "u1") for name in _RGB)]
    )
    for name, column in zip((*names, *_RGB), (*columns, *colours.T), strict=True):
        table[name] = column
    return table


def _header(table: Array) -> bytes:
    kinds = [(name, table.dtype[name].str.lstrip("|")) for name in table.dtype.names or ()]
    lines = [f"property {_KINDS[kind]} {name}\n" for name, kind in kinds]
    start = b"ply\nformat binary_little_endian 1.0\n" + MARK
    return start + f"element vertex {len(table)}\n{''.join(lines)}".encode()


def read_mesh(path: Path) -> Mesh:
    """A mesh of triangles, as COLMAP writes it (binary, little endian); grey without colours.

    Raises:
        NoRoomError: it is not whole: COLMAP does not notice that a disk is full.
    """
    try:
        return _mesh_in(path.read_bytes())
    except (OSError, ValueError) as error:
        raise NoRoomError(
            f"COLMAP could not write all of {path}: free some disk space there, or set TMPDIR to a "
            "folder on another disk."
        ) from error


def _mesh_in(data: bytes) -> Mesh:
    start = data.index(b"end_header\n") + len(b"end_header\n")
    numbers: dict[str, int] = {}
    vertex: list[tuple[str, str]] = []
    length = "<i4"
    for line in data[:start].decode().splitlines():
        words = line.split()
        if words[0] == "element":
            numbers[words[1]] = int(words[2])
        elif words[:2] == ["property", "list"]:
            length = _TYPES[words[2]]
        elif words[0] == "property":
            vertex.append((words[2], _TYPES[words[1]]))
    table = np.frombuffer(data, np.dtype(vertex), numbers["vertex"], start)
    face = np.dtype([("number", length), ("corners", "<i4", 3)])
    faces = np.frombuffer(data, face, numbers["face"], start + table.nbytes)
    xyz = np.stack([table[name] for name in _XYZ], axis=1).astype(np.float64)
    rgb = np.full(xyz.shape, 128, np.uint8)
    if "red" in (table.dtype.names or ()):  # COLMAP leaves them out of simplified meshes
        rgb = np.stack([table[name] for name in _RGB], axis=1)
    return Mesh(xyz, rgb, faces["corners"].copy())
