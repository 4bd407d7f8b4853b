"""Meshes as binary glTF 2.0 files (.glb), which viewers, browsers and Blender open."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from edm_hloc.surface.ply import Mesh

Array = np.ndarray

_FLOAT, _USHORT, _UINT = 5126, 5123, 5125  # glTF's component types
_VERTICES, _INDICES = 34962, 34963  # its buffer targets


def mesh_glb(mesh: Mesh, rotation: Array) -> bytes:
    """The glTF file of a mesh, shown in the colours of its vertices, without light and shade.

    Args:
        mesh: with a vertex at least. Its middle becomes the origin, as coordinates on Earth are too
            large for single precision.
        rotation: (3, 3) glTF's frame (y up, z to the viewer) from that of the mesh.
    """
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    positions = ((mesh.vertices - (low + high) / 2) @ rotation.T).astype("<f4")
    colours = np.full((len(positions), 4), 0xFFFF, "<u2")
    colours[:, :3] = np.rint(_linear(mesh.colours / 255) * 0xFFFF)
    parts = [positions.tobytes(), colours.tobytes(), mesh.triangles.astype("<u4").tobytes()]
    vertices = {"componentType": _FLOAT, "count": len(positions), "type": "VEC3"}
    document = {
        "asset": {"version": "2.0", "generator": "edm_hloc"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [
            {
                "primitives": [
                    {"attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}
                ]
            }
        ],
        "materials": [
            {
                "doubleSided": True,
                "extensions": {"KHR_materials_unlit": {}},
                "pbrMetallicRoughness": {"metallicFactor": 0, "roughnessFactor": 1},
            }
        ],
        "accessors": [
            {
                **vertices,
                "bufferView": 0,
                "min": positions.min(axis=0).tolist(),
                "max": positions.max(axis=0).tolist(),
            },
            {
                "bufferView": 1,
                "componentType": _USHORT,
                "count": len(colours),
                "type": "VEC4",
                "normalized": True,
            },
            {
                "bufferView": 2,
                "componentType": _UINT,
                "count": mesh.triangles.size,
                "type": "SCALAR",
            },
        ],
        "bufferViews": _views(parts),
        "buffers": [{"byteLength": sum(map(len, parts))}],
    }
    return _container(document, b"".join(parts))


def _linear(srgb: Array) -> Array:
    """Linear values in [0, 1], which glTF's vertex colours are, of sRGB's."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _views(parts: list[bytes]) -> list[dict[str, int]]:
    """Where each part of the binary chunk is; the lengths of all are multiples of four."""
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    targets = (_VERTICES, _VERTICES, _INDICES)
    return [
        {"buffer": 0, "byteOffset": start, "byteLength": len(part), "target": target}
        for start, part, target in zip(starts, parts, targets, strict=False)
    ]


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
