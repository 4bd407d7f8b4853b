"""What goes into EDM and what comes out: configuration, options, features and matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from edm_hloc.base.frames import inside
from edm_hloc.base.grid import CELL

STRIDE = 32  # sides of the input are multiples of this


RefinedImage = Literal["best", "image0", "image1"]


@dataclass(frozen=True)
class EDMConfig:
    """Architecture of EDM; the defaults are the paper's.

    Attributes:
        widths: channels of the backbone at 1/2, 1/4, 1/8, 1/16 and 1/32.
        heads: attention heads.
        layers: the attention layers at 1/32, each "self" or "cross".
        attention_scale: factor on the cosine of query and key.
        temperature: of the dual softmax.
        bins: intervals of the soft-argmax over one axis of a cell (it has bins + 1 nodes).
        bidirectional: refine in both images rather than in the second alone.
        train_size: side of the training images in pixels; positions are scaled by
            train_size / actual side along each axis. None: positions are not scaled.
    """

    widths: tuple[int, int, int, int, int] = (32, 64, 128, 256, 256)
    heads: int = 8
    layers: tuple[Literal["self", "cross"], ...] = ("self", "cross", "self", "cross")
    attention_scale: float = 20.0
    temperature: float = 0.1
    bins: int = 16
    bidirectional: bool = True
    train_size: int | None = 832

    @property
    def dim(self) -> int:
        """Channels of the maps that are matched."""
        return self.widths[-1]

    def position_scale(self, height: int, width: int) -> tuple[float, float]:
        """Factors on the row and column positions of an image of this size in pixels."""
        size = self.train_size
        return (1.0, 1.0) if size is None else (size / height, size / width)


CONFIGS: dict[str, EDMConfig] = {
    "edm": EDMConfig(),
    "edm_s": EDMConfig(widths=(16, 32, 64, 128, 128), heads=4, train_size=None),
}


class EDMFeatures(NamedTuple):
    """What `EDM.encode` knows of B images of one size.

    Attributes:
        f32: (B, dim, H/32, W/32), after the leading self-attention layers.
        f16: (B, dim, H/16, W/16).
        f8: (B, dim, H/8, W/8).
        fine: (B, dim, H/8, W/8), for refinement.
        position_scale: factors on the row and column positions of self-attention.
    """

    f32: Tensor
    f16: Tensor
    f8: Tensor
    fine: Tensor
    position_scale: tuple[float, float]

    def to(self, *args: object, **kwargs: object) -> EDMFeatures:
        """Move or cast the maps; takes the arguments of `torch.Tensor.to`."""
        f32, f16, f8, fine = (m.to(*args, **kwargs) for m in self[:4])  # type: ignore[call-overload]
        return EDMFeatures(f32, f16, f8, fine, self.position_scale)

    @property
    def nbytes(self) -> int:
        return sum(m.numel() * m.element_size() for m in self[:4])


class CoarseMatches(NamedTuple):
    """K cell-to-cell matches in each of B pairs.

    Attributes:
        cell0, cell1: (B, K) long, cells of image 0 and 1 in row-major order.
        confidence: (B, K), dual-softmax probability, falling.
    """

    cell0: Tensor
    cell1: Tensor
    confidence: Tensor


class EDMMatches(NamedTuple):
    """Sub-pixel matches of B pairs, in pixels of the network's inputs.

    Attributes:
        keypoints0, keypoints1: (B, K, 2) as (x, y).
        confidence: (B, K), dual-softmax probability.
        certainty: (B, K), 1 − mean σ of the refinement.
        valid: (B, K) bool; the rest are below a threshold or outside the border.
    """

    keypoints0: Tensor
    keypoints1: Tensor
    confidence: Tensor
    certainty: Tensor
    valid: Tensor

    def within(
        self,
        sides0: Sequence[int],
        sides1: Sequence[int],
        threshold: float,
        sigma_threshold: float,
        border_cells: int,
    ) -> EDMMatches:
        """The same with `valid` by these bounds; sides are (rows, columns) of cells."""
        border = border_cells * CELL
        valid = (
            (self.confidence > threshold)
            & (self.certainty > sigma_threshold)
            & inside(self.keypoints0, sides0[1] * CELL + 1, sides0[0] * CELL + 1, -border)
            & inside(self.keypoints1, sides1[1] * CELL + 1, sides1[0] * CELL + 1, -border)
        )
        return self._replace(valid=valid)


def default_topk(cells: int) -> int:
    """K where none is asked for: 0.35 of the cells of image 0."""
    return max(1, int(0.35 * cells))
