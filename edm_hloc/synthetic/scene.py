"""Scenes as batched tensors: shapes, materials and cameras; and random numbers for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


class Random:
    """Random numbers on one device from one generator: same seed and device, same numbers."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        values = torch.rand(shape, generator=self.generator, device=self.device)
        return values * (high - low) + low

    def log_uniform(self, *shape: int, low: float, high: float) -> Tensor:
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def integers(self, *shape: int, low: int, high: int) -> Tensor:
        """Draw from low..high-1."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device)

    def between(self, low: Sequence[float], high: Sequence[float], *shape: int) -> Tensor:
        """Draw points (*shape, D) from the box between two corners (D)."""
        a, b = self.values(*low), self.values(*high)
        return a + (b - a) * self.uniform(*shape, len(low))

    def values(self, *values: float) -> Tensor:
        """Put numbers on the device: (len(values),) float."""
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device)

    def chance(self, *shape: int, p: float | Tensor) -> Tensor:
        return self.uniform(*shape) < p

    def sign(self, *shape: int) -> Tensor:
        return self.integers(*shape, low=0, high=2).float() * 2 - 1


@dataclass(frozen=True)
class Shapes:
    """Geometry of B scenes in world coordinates, z up; scenes hold equal counts, some `present`.

    quads: (B, P, 3, 3) rows origin, edge u, edge v: points origin + u·edge_u + v·edge_v, u, v in
    [0, 1].
    round_centre: (B, Q, 3). round_axes: (B, Q, 3, 3), columns are the half axes, at right angles.
    round_cylinder: (B, Q) bool; a cylinder runs along its second axis and has no caps.
    quad_present, round_present: (B, P) and (B, Q) bool.
    quad_solid: (B, P) bool; such a face of a body cannot be seen from the side its normal, edge u
    × edge v, points to.
    quad_group, round_group: (B, P) and (B, Q) int64; one group is one material.
    """

    quads: Tensor
    quad_solid: Tensor
    quad_present: Tensor
    quad_group: Tensor
    round_centre: Tensor
    round_axes: Tensor
    round_cylinder: Tensor
    round_present: Tensor
    round_group: Tensor

    def select(self, index: Tensor) -> Shapes:
        """Take scenes by index or mask."""
        return Shapes(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True)
class Materials:
    """How primitives look: (B, P + Q + 1) each, quads first, then round ones, then the sky.

    The grey value is offset + gain · (texel - 0.5), times the light. `texture` (int64) is a number
    in the bank; `x`, `y` the texel at u = v = 0 and `width`, `height` (may be negative) the texels
    along u and v. `blur` is the lowest mip level.
    """

    texture: Tensor
    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    gain: Tensor
    offset: Tensor
    blur: Tensor


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras of B scenes, OpenCV axes (x right, y down, z forward).

    K: (B, V, 3, 3) without skew, in the frame where the top-left pixel's centre is (0, 0).
    cam_from_world: (B, V, 4, 4).
    """

    K: Tensor
    cam_from_world: Tensor

    def select(self, index: Tensor) -> Cameras:
        return Cameras(self.K[index], self.cam_from_world[index])

    @property
    def centres(self) -> Tensor:
        """(B, V, 3) positions in the world."""
        R, t = self.cam_from_world[..., :3, :3], self.cam_from_world[..., :3, 3]
        return -(R.mT @ t[..., None])[..., 0]

    def at_size(self, old: tuple[int, int], new: tuple[int, int]) -> Cameras:
        """Give the cameras for images resized from `old` to `new` (height, width)."""
        sy, sx = new[0] / old[0], new[1] / old[1]
        K = self.K.clone()
        K[..., 0, 0] *= sx
        K[..., 1, 1] *= sy
        K[..., 0, 2] = (K[..., 0, 2] + 0.5) * sx - 0.5
        K[..., 1, 2] = (K[..., 1, 2] + 0.5) * sy - 0.5
        return replace(self, K=K)


def look_at(centre: Tensor, target: Tensor, roll: Tensor) -> Tensor:
    """Point cameras at `centre` (..., 3) to `target` (..., 3), z up, then roll them (..., radians).

    Returns cam_from_world (..., 4, 4). A positive roll turns the camera clockwise.
    """
    forward = F.normalize(target - centre, dim=-1)
    up = torch.zeros_like(forward)
    up[..., 2] = 1
    right = F.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    c, s = roll.cos()[..., None], roll.sin()[..., None]
    R = torch.stack([c * right + s * down, c * down - s * right, forward], -2)
    T = torch.zeros(*centre.shape[:-1], 4, 4, device=centre.device)
    T[..., :3, :3] = R
    T[..., :3, 3] = -(R @ centre[..., None])[..., 0]
    T[..., 3, 3] = 1
    return T


def intrinsics(focal: Tensor, height: int, width: int) -> Tensor:
    """Make K (..., 3, 3) from focal lengths (...) in pixels; the principal point is the centre."""
    K = torch.zeros(*focal.shape, 3, 3, device=focal.device)
    K[..., 0, 0] = K[..., 1, 1] = focal
    K[..., 0, 2] = (width - 1) / 2
    K[..., 1, 2] = (height - 1) / 2
    K[..., 2, 2] = 1
    return K


def rotation(angles: Tensor) -> Tensor:
    """Rotate about x, then y, then z by `angles` (..., 3) radians; gives (..., 3, 3)."""
    cx, cy, cz = angles.cos().unbind(-1)
    sx, sy, sz = angles.sin().unbind(-1)
    rows = [
        torch.stack([cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx], -1),
        torch.stack([sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx], -1),
        torch.stack([-sy, cy * sx, cy * cx], -1),
    ]
    return torch.stack(rows, -2)


def turn_about_z(angle: Tensor) -> Tensor:
    """Rotate about z by `angle` (...) radians; gives (..., 3, 3)."""
    turn = torch.zeros(*angle.shape, 3, 3, device=angle.device)
    turn[..., 0, 0] = turn[..., 1, 1] = angle.cos()
    turn[..., 1, 0] = angle.sin()
    turn[..., 0, 1] = -turn[..., 1, 0]
    turn[..., 2, 2] = 1
    return turn


def box_quads(centre: Tensor, size: Tensor, turn: Tensor) -> Tensor:
    """Give the 6 faces of boxes: top, bottom, then the sides at -y, +y, +x, -x, where v runs down.

    The normals edge u × edge v point inwards.

    Args:
        centre, size: (..., 3) middle and full edge lengths. turn: (..., 3, 3) rotation.

    Returns:
        (..., 6, 3, 3) quads (origin, edge u, edge v).
    """
    axes = turn * size[..., None, :]  # columns: the box's edges
    x, y, z = axes.unbind(-1)
    middle = centre
    low, high = middle - z / 2, middle + z / 2
    faces = [
        (high - x / 2 - y / 2, y, x),
        (low - x / 2 - y / 2, x, y),
        (high - x / 2 - y / 2, x, -z),
        (high + x / 2 + y / 2, -x, -z),
        (high + x / 2 - y / 2, y, -z),
        (high - x / 2 + y / 2, -y, -z),
    ]
    return torch.stack([torch.stack(face, -2) for face in faces], -3)


class ShapesBuilder:
    """Collects primitives of `batch` scenes; every addition has the same count in each scene."""

    def __init__(self, batch: int, device: torch.device) -> None:
        self.batch = batch
        self.device = device
        self._quads: list[tuple[Tensor, ...]] = []
        self._round: list[tuple[Tensor, ...]] = []
        self._next_group = 0

    def new_groups(self, count: int) -> Tensor:
        """Reserve `count` material groups: (B, count) int64."""
        groups = torch.arange(self._next_group, self._next_group + count, device=self.device)
        self._next_group += count
        return groups.expand(self.batch, count)

    def add_quads(
        self, quads: Tensor, present: Tensor | None = None, group: Tensor | None = None
    ) -> None:
        """Add (B, k, 3, 3) quads seen from both sides; present, group: (B, k) or (B, 1)."""
        present, group = self._defaults(quads.shape[1], present, group)
        self._quads.append((quads, torch.zeros_like(present), present, group))

    def add_panels(
        self,
        centre: Tensor,
        size: Tensor,
        turn: Tensor,
        present: Tensor | None = None,
        group: Tensor | None = None,
    ) -> None:
        """Add rectangles of size (B, k, 2), upright in the x-z plane, then turned (B, k, 3, 3)."""
        u = turn[..., :, 0] * size[..., :1]
        v = -turn[..., :, 2] * size[..., 1:]
        self.add_quads(torch.stack([centre - u / 2 - v / 2, u, v], -2), present, group)

    def add_boxes(
        self,
        centre: Tensor,
        size: Tensor,
        turn: Tensor,
        present: Tensor | None = None,
        group: Tensor | None = None,
        faces: Sequence[int] = (0, 2, 3, 4, 5),
    ) -> None:
        """Add (B, k) boxes by some faces (see `box_quads`); those of a box share its group."""
        present, group = self._defaults(centre.shape[1], present, group)
        quads = box_quads(centre, size, turn)[:, :, list(faces)].flatten(1, 2)
        present = present.repeat_interleave(len(faces), 1)
        group = group.repeat_interleave(len(faces), 1)
        self._quads.append((quads, torch.ones_like(present), present, group))

    def add_round(
        self,
        centre: Tensor,
        axes: Tensor,
        present: Tensor | None = None,
        group: Tensor | None = None,
        cylinder: bool = False,
    ) -> None:
        """Add (B, k) ellipsoids, or cylinders along the second axis; axes: columns (B, k, 3, 3)."""
        present, group = self._defaults(centre.shape[1], present, group)
        self._round.append((centre, axes, torch.full_like(present, cylinder), present, group))

    def build(self) -> Shapes:
        if not self._round:
            absent = torch.zeros(self.batch, 1, dtype=torch.bool, device=self.device)
            axes = torch.eye(3, device=self.device).expand(self.batch, 1, 3, 3)
            self.add_round(axes[..., 0], axes, absent)
        return Shapes(
            *(torch.cat(parts, 1) for parts in zip(*self._quads, strict=True)),
            *(torch.cat(parts, 1) for parts in zip(*self._round, strict=True)),
        )

    def _defaults(
        self, count: int, present: Tensor | None, group: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if present is None:
            present = torch.ones(self.batch, count, dtype=torch.bool, device=self.device)
        if group is None:
            group = self.new_groups(count)
        return present.expand(self.batch, count), group.expand(self.batch, count)


def concatenate(parts: Sequence[Shapes]) -> Shapes:
    """Join batches of scenes, padding the smaller ones with absent primitives."""
    quads = max(part.quads.shape[1] for part in parts)
    rounds = max(part.round_centre.shape[1] for part in parts)
    merged = {}
    for name in vars(parts[0]):
        padded = []
        for part in parts:
            value = getattr(part, name)
            missing = (rounds if name.startswith("round") else quads) - value.shape[1]
            filler = value.new_zeros((value.shape[0], missing, *value.shape[2:]))
            padded.append(torch.cat([value, filler], 1))
        merged[name] = torch.cat(padded)
    return Shapes(**merged)
