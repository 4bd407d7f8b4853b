"""Geometry of batches of scenes, made of flat and round primitives, and how it is put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shapes:
    """Geometry of B scenes: P quads and Q round primitives each, in world coordinates, z up.

    All scenes of a batch have the same numbers of primitives; those a scene lacks are not present.

    Attributes:
        quads: (B, P, 3, 3) parallelograms, in rows: origin, edge u, edge v. Their points are
            origin + u·edge_u + v·edge_v with u and v in [0, 1].
        quad_solid: (B, P) bool; the quad is a face of a closed body and is invisible from the
            side to which its normal, edge u × edge v, points: the inside.
        quad_present: (B, P) bool.
        quad_group: (B, P) int64; primitives of one group share a material.
        round_centre: (B, Q, 3) centres of ellipsoids and cylinders.
        round_axes: (B, Q, 3, 3) their half axes as columns, at right angles to each other.
        round_cylinder: (B, Q) bool; a cylinder runs along its second axis and has no caps.
        round_present: (B, Q) bool.
        round_group: (B, Q) int64, numbered together with `quad_group`.
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
        """Some of the scenes, by indices or mask over B."""
        return Shapes(**{name: value[index] for name, value in vars(self).items()})

    @property
    def texture_lengths(self) -> Tensor:
        """(B, P + Q, 2) lengths in metres that a texture covers along u and v.

        They are the edges of a quad. On a round primitive a texture covers about half of the
        circumference: 3 times the mean radius.
        """
        edges = self.quads[..., 1:, :].norm(dim=-1)
        girth = 3 * self.round_axes.square().sum(-2).prod(-1) ** (1 / 6)
        return torch.cat([edges, girth[..., None].expand(-1, -1, 2)], 1)


def rotation(angles: Tensor) -> Tensor:
    """(..., 3, 3) rotations about x, then y, then z by `angles` (..., 3) in radians."""
    cx, cy, cz = angles.cos().unbind(-1)
    sx, sy, sz = angles.sin().unbind(-1)
    rows = [
        torch.stack([cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx], -1),
        torch.stack([sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx], -1),
        torch.stack([-sy, cy * sx, cy * cx], -1),
    ]
    return torch.stack(rows, -2)


def turn_about_z(angle: Tensor) -> Tensor:
    """(..., 3, 3) rotations about z by `angle` (...) in radians."""
    turn = torch.zeros(*angle.shape, 3, 3, device=angle.device)
    turn[..., 0, 0] = turn[..., 1, 1] = angle.cos()
    turn[..., 1, 0] = angle.sin()
    turn[..., 0, 1] = -turn[..., 1, 0]
    turn[..., 2, 2] = 1
    return turn


def box_quads(centre: Tensor, size: Tensor, turn: Tensor) -> Tensor:
    """The six faces of boxes as quads whose normals, edge u × edge v, point inwards.

    Args:
        centre: (..., 3) middles of the boxes.
        size: (..., 3) full edge lengths.
        turn: (..., 3, 3) rotations.

    Returns:
        (..., 6, 3, 3) rows origin, edge u, edge v of the top, the bottom, then the sides at -y, +y,
        +x and -x, on which v runs downwards.
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
    """Collects the primitives of `batch` scenes; each call adds k of them to every scene.

    In all methods `present` is (B, k) or (B, 1) bool, by default all True, and `group` is (B, k) or
    (B, 1) int64 from `new_groups`, by default a group of its own for each of the k.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.batch = batch
        self.device = device
        self._quads: list[tuple[Tensor, ...]] = []
        self._round: list[tuple[Tensor, ...]] = []
        self._next_group = 0

    def new_groups(self, count: int) -> Tensor:
        """Reserve `count` material groups, the same in each scene: (B, count) int64."""
        groups = torch.arange(self._next_group, self._next_group + count, device=self.device)
        self._next_group += count
        return groups.expand(self.batch, count)

    def add_quads(
        self, quads: Tensor, present: Tensor | None = None, group: Tensor | None = None
    ) -> None:
        """Add quads (B, k, 3, 3), rows origin, edge u, edge v, visible from both sides."""
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
        """Add rectangles, upright in the x-z plane and then turned, visible from both sides.

        Args:
            centre: (B, k, 3) middles.
            size: (B, k, 2) width and height.
            turn: (B, k, 3, 3) rotations.
            present, group: see the class.
        """
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
        """Add boxes, whose faces share the box's group.

        Args:
            centre: (B, k, 3) middles.
            size: (B, k, 3) full edge lengths.
            turn: (B, k, 3, 3) rotations.
            present, group: see the class.
            faces: numbers of the faces to add, as in `box_quads`; all but the bottom by default.
        """
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
        """Add ellipsoids, or open cylinders along their second axis.

        Args:
            centre: (B, k, 3).
            axes: (B, k, 3, 3) half axes as columns, at right angles to each other.
            present, group: see the class.
            cylinder: add cylinders instead of ellipsoids.
        """
        present, group = self._defaults(centre.shape[1], present, group)
        self._round.append((centre, axes, torch.full_like(present, cylinder), present, group))

    def build(self) -> Shapes:
        """The scenes with everything that was added.

        There is at least one round primitive, absent if none was added, so that Q is never 0.
        """
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
    """One batch of several, in order; scenes with fewer primitives get absent ones at the end."""
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
