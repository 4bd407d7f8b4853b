"""What goes into EDM and comes out of it: architecture, match options, features and matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from edm_hloc.base.errors import EdmHlocError
from edm_hloc.base.frames import inside
from edm_hloc.base.grid import CELL
from edm_hloc.base.settings import check_types

STRIDE = 32  # pixels of the input per position of the coarsest map; sides are multiples of it

RefinedImage = Literal["best", "image0", "image1", "neither"]
"""The image in which a match leaves the 8 px grid: where its uncertainty σ is smaller, or always
the same one; or in neither, which leaves out the fine stage."""


_LARGEST = 10**5  # of a network's numbers; what is larger is a mistake


@dataclass(frozen=True)
class EDMConfig:
    """Architecture of EDM; the defaults are the paper's.

    Attributes:
        widths: channels of the backbone at 1/2, 1/4, 1/8, 1/16 and 1/32.
        heads: number of attention heads.
        layers: the attention layers at 1/32, in order, each "self" or "cross".
        attention_scale: factor on the cosine similarity of query and key, in place of 1/√d.
        normalised_attention: whether queries and keys are normalised; else their product is divided
            by √d as in plain attention, and `attention_scale` is not used.
        injection: how a finer map takes in the coarser one that is conditioned on the other image:
            "gated", multiplied by a gate and added, or "summed", added only.
        temperature: τ of the dual softmax (Eq. 1).
        bins: number of intervals of the soft-argmax along one axis of a cell, which has
            bins + 1 nodes.
        bidirectional: whether matches are refined in both images, or in image 1 only.
        train_size: side of the training images in pixels; positions are multiplied by
            train_size / actual side along each axis. None: positions are not scaled.

    Raises:
        EdmHlocError: there is no such network.
    """

    widths: tuple[int, int, int, int, int] = (32, 64, 128, 256, 256)
    heads: int = 8
    layers: tuple[Literal["self", "cross"], ...] = ("self", "cross", "self", "cross")
    attention_scale: float = 20.0
    normalised_attention: bool = True
    injection: Literal["gated", "summed"] = "gated"
    temperature: float = 0.1
    bins: int = 16
    bidirectional: bool = True
    train_size: int | None = 832

    def __post_init__(self) -> None:
        check_types(self, "the network's setting")
        numbers: dict[str, tuple[float, ...]] = {
            "widths": self.widths,
            "heads": (self.heads,),
            "attention_scale": (self.attention_scale,),
            "temperature": (self.temperature,),
            "bins": (self.bins,),
            "train_size": () if self.train_size is None else (self.train_size,),
        }
        for name, values in numbers.items():
            for value in values:
                if not 0 < value <= _LARGEST:  # NaN is neither
                    raise EdmHlocError(
                        f"the network's setting {name} must be above 0 and at most {_LARGEST:,}, "
                        f"not {value}"
                    )
        if self.dim % self.heads or self.dim % 4:
            raise EdmHlocError(
                f"the last of the network's widths, {self.dim}, must be a multiple of its number "
                f"of heads, {self.heads}, and of 4"
            )
        if not self.layers:
            raise EdmHlocError('the network needs layers, such as ["self", "cross"]')

    @property
    def dim(self) -> int:
        """Channels of the feature maps that are matched."""
        return self.widths[-1]

    def position_scale(self, height: int, width: int) -> tuple[float, float]:
        """Factors on the row and column positions of an image of this size in pixels."""
        size = self.train_size
        return (1.0, 1.0) if size is None else (size / height, size / width)


CONFIGS: dict[str, EDMConfig] = {
    "edm": EDMConfig(),
    "edm_s": EDMConfig(widths=(16, 32, 64, 128, 128), heads=4, train_size=None),
}


@dataclass(frozen=True)
class MatchOptions:
    """Which matches of a pair `EDM.match` gives.

    Attributes:
        topk: maximum number of coarse matches of a pair; None for `default_topk`.
        threshold: matches must exceed this dual-softmax probability. The best value depends on
            the weights, see `WeightsInfo.threshold`; 0.2 is that of `edm_s`.
        sigma_threshold: matches must exceed this certainty, 1 − mean σ of the refinement.
        border_cells: width in 8 px cells of a border, in both images, without matches.
        refined: the image in which matches leave the 8 px grid.
        plenty: with `refined` "best", number of matches of a pair from which on they leave the grid
            in image 1 alone, which takes half the time of the fine stage; None for none.
    """

    topk: int | None = None
    threshold: float = 0.2
    sigma_threshold: float = 1e-6
    border_cells: int = 0
    refined: RefinedImage = "best"
    plenty: int | None = None


def default_topk(cells: int) -> int:
    """Maximum number of matches where none is asked for: 0.35 of the coarse cells of image 0."""
    return max(1, int(0.35 * cells))


class EDMFeatures(NamedTuple):
    """Feature maps of B images of one size, as `EDM.encode` gives them.

    Attributes:
        f32: (B, dim, H/32, W/32), after the self-attention layers before the first cross layer.
        f16: (B, dim, H/16, W/16).
        f8: (B, dim, H/8, W/8).
        fine: (B, dim, H/8, W/8), for the refinement.
        position_scale: factors on the row and column positions in self-attention.
        shown: (rows, columns) of the cells at 1/8 that show the photos, where these are padded
            below or to the right; None where all do.
    """

    f32: Tensor
    f16: Tensor
    f8: Tensor
    fine: Tensor
    position_scale: tuple[float, float]
    shown: tuple[int, int] | None = None

    def to(self, *args: object, **kwargs: object) -> EDMFeatures:
        """The features moved or cast; takes the arguments of `torch.Tensor.to`."""
        f32, f16, f8, fine = (m.to(*args, **kwargs) for m in self[:4])  # type: ignore[call-overload]
        return EDMFeatures(f32, f16, f8, fine, self.position_scale, self.shown)

    def cropped(self, x: Tensor) -> Tensor:
        """A map (B, C, H/8, W/8) of the images without their padding."""
        return x if self.shown is None else x[..., : self.shown[0], : self.shown[1]]

    def of_whole(self, cells: Tensor) -> Tensor:
        """Indices of cells of a `cropped` map → of the same cells of the whole one."""
        if self.shown is None:
            return cells
        row = torch.div(cells, self.shown[1], rounding_mode="floor")
        return cells + row * (self.f8.shape[-1] - self.shown[1])

    @property
    def nbytes(self) -> int:
        """Memory of the maps in bytes."""
        return sum(m.numel() * m.element_size() for m in self[:4])


class CoarseMatches(NamedTuple):
    """K cell-to-cell matches in each of B pairs.

    Attributes:
        cell0, cell1: (B, K) long, indices of the cells of image 0 and 1 in row-major order.
        confidence: (B, K), dual-softmax probability, in descending order.
    """

    cell0: Tensor
    cell1: Tensor
    confidence: Tensor


class EDMMatches(NamedTuple):
    """Sub-pixel matches of B pairs, in the frame of the network.

    Attributes:
        keypoints0, keypoints1: (B, K, 2) as (x, y), pixels of the network's inputs. Where in the
            top-left pixel (0, 0) lies depends on the weights (`WeightsInfo.origin`).
        confidence: (B, K), dual-softmax probability.
        certainty: (B, K), 1 − mean σ of the refinement.
        valid: (B, K) bool; the other matches do not satisfy the `MatchOptions`.
    """

    keypoints0: Tensor
    keypoints1: Tensor
    confidence: Tensor
    certainty: Tensor
    valid: Tensor

    def validated(
        self, grid0: Sequence[int], grid1: Sequence[int], options: MatchOptions
    ) -> EDMMatches:
        """The same matches with `valid` set by thresholds and border.

        Args:
            grid0, grid1: (rows, columns) of the coarse cells of each image.
            options: thresholds and border; the others are not used.
        """
        valid = (self.confidence > options.threshold) & (self.certainty > options.sigma_threshold)
        for keypoints, (rows, columns) in ((self.keypoints0, grid0), (self.keypoints1, grid1)):
            # The outer edges at x = width and y = height count as inside.
            width, height = columns * CELL + 1, rows * CELL + 1
            valid = valid & inside(keypoints, width, height, -options.border_cells * CELL)
        return self._replace(valid=valid)
