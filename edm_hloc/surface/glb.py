"""Meshes as binary glTF 2.0 files (.glb), which viewers, browsers and Blender open."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from edm_hloc.surface.atlas import TexturedMesh

Array = np.ndarray

MARK = b'"generator":"edm_hloc"'
"""At the beginning of every file that is written here."""

_TYPES = {"<f4": 5126, "<u2": 5123, "<u4": 5125}  # glTF's component types
_VERTICES, _INDICES = 34962, 34963  # its buffer targets
_CLAMPED = 33071  # its mode beyond the borders of a texture


def mesh_glb(mesh: TexturedMesh, rotation: Array, *, two_sided: bool = True) -> bytes:
    """The glTF file of a mesh, shown in its colours without light and shade.

    Args:
        mesh: with a vertex at least. Its middle becomes the origin, as coordinates on Earth are too
            large for single precision.
        rotation: (3, 3) glTF's frame (y up, z to the viewer) from that of the mesh.
        two_sided: triangles are shown from behind as well.
    """
    file = _File(two_sided)
    every = np.concatenate([mesh.vertices, mesh.rest.vertices])
    middle = (every.min(axis=0) + every.max(axis=0)) / 2

    def positions(vertices: Array) -> int:
        placed = ((vertices - middle) @ rotation.T).astype("<f4")
        return file.accessor(placed, _VERTICES, ends=True)

    def primitive(attributes: dict[str, int], triangles: Array, page: int | None) -> None:
        indices = file.accessor(triangles.astype("<u4").reshape(-1), _INDICES)
        material = file.material(page)
        primitives.append({"attributes": attributes, "indices": indices, "material": material})

    primitives: list[dict[str, Any]] = []
    if len(mesh.vertices):
        uv = file.accessor(mesh.uv.astype("<f4"), _VERTICES)
        attributes = {"POSITION": positions(mesh.vertices), "TEXCOORD_0": uv}
        for triangles, page in zip(mesh.triangles, mesh.pages, strict=True):
            primitive(attributes, triangles, file.image(page))
    if len(mesh.rest.triangles):
        colours = np.full((len(mesh.rest.vertices), 4), 0xFFFF, "<u2")
        colours[:, :3] = np.rint(_linear(mesh.rest.colours / 255) * 0xFFFF)
        attributes = {
            "POSITION": positions(mesh.rest.vertices),
            "COLOR_0": file.accessor(colours, _VERTICES, normalized=True),
        }
        primitive(attributes, mesh.rest.triangles, None)
    file.document["meshes"] = [{"primitives": primitives}]
    return file.bytes()


class _File:
    """A glTF file in the making."""

    def __init__(self, two_sided: bool) -> None:
        self._two_sided = two_sided
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "edm_hloc"},
            "extensionsUsed": ["KHR_materials_unlit"],
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
        }
        self._binary = bytearray()

    def _add(self, key: str, entry: dict[str, Any]) -> int:
        """Appends to a list of the document; gives the number of the entry."""
        entries: list[dict[str, Any]] = self.document.setdefault(key, [])
        entries.append(entry)
        return len(entries) - 1

    def _view(self, data: bytes, **more: int) -> int:
        """Bytes of the binary chunk, which begin at a multiple of four."""
        entry = {"buffer": 0, "byteOffset": len(self._binary), "byteLength": len(data), **more}
        self._binary += data + b"\0" * (-len(data) % 4)
        return self._add("bufferViews", entry)

    def accessor(self, values: Array, target: int, *, ends: bool = False, **more: bool) -> int:
        """Numbers (N,) or vectors (N, 2 to 4); `ends` adds their least and greatest values."""
        entry = {
            "bufferView": self._view(values.tobytes(), target=target),
            "componentType": _TYPES[values.dtype.str],
            "count": len(values),
            "type": "SCALAR" if values.ndim == 1 else f"VEC{values.shape[1]}",
            **more,
        }
        if ends:
            entry |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        return self._add("accessors", entry)

    def image(self, jpeg: bytes) -> int:
        """A texture of an image, which is not repeated beyond its borders."""
        source = self._add("images", {"bufferView": self._view(jpeg), "mimeType": "image/jpeg"})
        if "samplers" not in self.document:
            self._add("samplers", {"wrapS": _CLAMPED, "wrapT": _CLAMPED})
        return self._add("textures", {"sampler": 0, "source": source})

    def material(self, texture: int | None) -> int:
        """A material without light and shade, of a texture or the colours of the vertices."""
        surface: dict[str, Any] = {"metallicFactor": 0, "roughnessFactor": 1}
        if texture is not None:
            surface["baseColorTexture"] = {"index": texture}
        entry = {
            "doubleSided": self._two_sided,
            "extensions": {"KHR_materials_unlit": {}},
            "pbrMetallicRoughness": surface,
        }
        return self._add("materials", entry)

    def bytes(self) -> bytes:
        """The file."""
        self.document["buffers"] = [{"byteLength": len(self._binary)}]
        text = json.dumps(self.document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(self._binary), b"BIN\0") + self._binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _linear(srgb: Array) -> Array:
    """Linear values in [0, 1], which glTF's vertex colours are, of sRGB's."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
