"""EDM, the efficient semi-dense matcher (arXiv 2503.05122): the network.

    image ─ Backbone ─▶ maps at 1/8, 1/16, 1/32 and a second 1/8 map for refinement     (Sec. 3.1)
          ─ CorrelationInjection ─▶ a coarse 1/8 map conditioned on the other image     (Sec. 3.2)
    two coarse maps ─ dual softmax (coarse.py) ─▶ K cell-to-cell matches                (Sec. 3.3)
                    ─ FineMatching ─▶ offset within the cell and its uncertainty        (Sec. 3.4)

`EDM.encode` computes what depends on one image alone and `EDM.match` the rest, so an image is
encoded once however many partners it has. Parameter names are those of the official checkpoint
without its prefix `matcher.`.

Pixel frame: (x, y) in pixels of the network's input; the coarse cell (row r, column c) stands for
the point (8c, 8r). Where in the top-left pixel (0, 0) lies depends on the training data and is
recorded with the weights (`WeightsInfo.origin`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm_hloc.base.grid import CELL
from edm_hloc.models.attention import LocalFeatureTransformer
from edm_hloc.models.backbone import Backbone
from edm_hloc.models.coarse import confident_columns, distinctness
from edm_hloc.models.flow import RealNVP
from edm_hloc.models.types import (
    CONFIGS,
    STRIDE,
    CoarseMatches,
    EDMConfig,
    EDMFeatures,
    EDMMatches,
    MatchOptions,
    RefinedImage,
    default_topk,
)

# --- Correlation injection module (Sec. 3.2) ---------------------------------------------------


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch normalisation, and an optional activation.

    1×1, or 3×3 depthwise; `one_dimensional`: over (B, C, K) rather than (B, C, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        activation: nn.Module | None = None,
        *,
        depthwise: bool = False,
        one_dimensional: bool = False,
    ) -> None:
        super().__init__()
        if one_dimensional:
            self.add_module("c", nn.Conv1d(in_channels, channels, 1, bias=False))
            self.add_module("bn", nn.BatchNorm1d(channels))
        else:
            size, groups = (3, in_channels) if depthwise else (1, 1)
            self.add_module(
                "c",
                nn.Conv2d(
                    in_channels, channels, size, padding=size // 2, groups=groups, bias=False
                ),
            )
            self.add_module("bn", nn.BatchNorm2d(channels))
        if activation is not None:
            self.add_module("a", activation)


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def inject_gated(finer: Tensor, gate: Tensor, coarser: Tensor) -> Tensor:
    """A map (B, C, H, W), times a gate and plus a map that are both (B, C, H/2, W/2)."""
    return finer * _upsample(gate) + _upsample(coarser)


class CorrelationInjection(nn.Module):
    """Correlation injection module (CIM): correlates the images at 1/32 and injects the result
    into their maps at 1/16 and 1/8.

    Attributes:
        inject_gated: with the signature of the function of this name; on a CPU
            `injection_compiled.inject_gated` is faster.
    """

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        _, _, w8, w16, w32 = config.widths
        dim = config.dim
        self.fc32 = ConvNorm(w32, dim)
        self.fc16 = ConvNorm(w16, dim)
        self.fc8 = ConvNorm(w8, dim)
        self.gated = config.injection == "gated"
        if self.gated:
            self.att32 = ConvNorm(dim, dim, nn.Sigmoid())
            self.att16 = ConvNorm(dim, dim, nn.Sigmoid())
        self.dwconv16 = nn.Sequential(
            ConvNorm(dim, dim, nn.GELU(), depthwise=True), ConvNorm(dim, dim)
        )
        self.dwconv8 = nn.Sequential(
            ConvNorm(dim, dim, nn.GELU(), depthwise=True), ConvNorm(dim, dim)
        )
        self.loftr_32 = LocalFeatureTransformer(config)
        self.inject_gated: Callable[[Tensor, Tensor, Tensor], Tensor] = inject_gated

    def encode(
        self,
        maps: tuple[Tensor, Tensor, Tensor],
        scale: tuple[float, float],
        shown: tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on one image alone: projections to `dim` channels, first self-attention."""
        x8, x16, x32 = maps
        return self.fc8(x8), self.fc16(x16), self.loftr_32.encode(self.fc32(x32), scale, shown)

    def forward(self, features0: EDMFeatures, features1: EDMFeatures) -> tuple[Tensor, Tensor]:
        """Coarse maps (B, dim, H/8, W/8) of both images, each conditioned on the other."""
        scales = (features0.position_scale, features1.position_scale)
        shown = (features0.shown, features1.shown)
        f32_0, f32_1 = self.loftr_32.interact(features0.f32, features1.f32, scales, shown)
        return self._inject(features0, f32_0), self._inject(features1, f32_1)

    def _inject(self, features: EDMFeatures, f32: Tensor) -> Tensor:
        if not self.gated:
            f16 = self.dwconv16(features.f16 + _upsample(f32))
            return self.dwconv8(features.f8 + _upsample(f16))
        f16 = self.dwconv16(self.inject_gated(features.f16, self.att32(f32), f32))
        return self.dwconv8(self.inject_gated(features.f8, self.att16(f16), f16))


# --- Fine matching (Sec. 3.4) --------------------------------------------------------------------


def _perceptron1d(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(channels, channels, nn.GELU(), one_dimensional=True),
        ConvNorm(channels, channels, nn.GELU(), one_dimensional=True),
    )


class FineMatching(nn.Module):
    """Regresses the position, within the reference's cell, that matches the query's grid point."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        dim = config.dim
        self.bins = config.bins
        self.query_encoder = _perceptron1d(dim)
        self.reference_encoder = _perceptron1d(dim)
        self.merge_qr = _perceptron1d(2 * dim)
        self.x_head = self._head(2 * dim)
        self.y_head = self._head(2 * dim)
        self.flow = RealNVP()

    def _head(self, channels: int) -> nn.Sequential:
        return nn.Sequential(
            ConvNorm(channels, channels, nn.GELU(), one_dimensional=True),
            nn.Conv1d(channels, self.bins + 2, 1),
        )

    def forward(self, query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets and uncertainties of the reference points.

        Args:
            query, reference: (B, dim, K), the sums of fine and coarse features at the cells.

        Returns:
            offset (B, K, 2) as (x, y) in cells, within ±0.5, and its uncertainty σ (B, K, 2) in
            (0, 1).
        """
        pair = torch.cat([self.query_encoder(query), self.reference_encoder(reference)], dim=1)
        pair = self.merge_qr(pair)
        axes = [self._axis(head(pair)) for head in (self.x_head, self.y_head)]
        offset, sigma = (torch.stack(values, dim=-1) for values in zip(*axes, strict=True))
        return offset, sigma

    def _axis(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(B, bins + 2, K) → soft-argmax offset and σ, each (B, K) (Eqs. 3–5)."""
        logits = logits.float()
        nodes = torch.linspace(-0.5, 0.5, self.bins + 1, device=logits.device)
        weights = logits[:, :-1].softmax(dim=1)
        return (weights * nodes[:, None]).sum(dim=1), logits[:, -1].sigmoid()


# --- The network ----------------------------------------------------------------------------------


def _gather(features: Tensor, cells: Tensor) -> Tensor:
    """Features of a map (B, C, h, w) at the cells (B, K) → (B, C, K)."""
    index = cells[:, None].expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, index)


def _grid_points(cells: Tensor, columns: int) -> Tensor:
    """(B, K) cells in row-major order → (B, K, 2) grid points as (x, y) in pixels."""
    rows = torch.div(cells, columns, rounding_mode="floor")
    return torch.stack([cells - rows * columns, rows], dim=-1).float() * CELL


def _finite(x: Tensor) -> Tensor:
    """Replaces overflowed activations, so that a single one cannot invalidate all matches.

    The bound of 6e4 is below the largest half-precision number; trained features stay below 100.
    """
    return torch.nan_to_num(x, nan=0.0).clamp_(-6e4, 6e4)


class EDM(nn.Module):
    """Efficient semi-dense matching of two greyscale images.

    >>> model = EDM().eval()
    >>> features = [model.encode(torch.rand(1, 1, 96, 128)) for _ in range(2)]
    >>> model.match(*features, MatchOptions(topk=10, threshold=0.0)).keypoints0.shape
    torch.Size([1, 10, 2])

    Attributes:
        config: the architecture.
        coarse_search: function that finds the best column of each row of the dual softmax, with
            the signature of `confident_columns`; on a GPU `coarse_triton.fused_columns` is faster.
    """

    def __init__(self, config: EDMConfig = CONFIGS["edm"]) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.widths)
        self.neck = CorrelationInjection(config)
        self.fine_matching = FineMatching(config)
        self.coarse_search: Callable[..., tuple[Tensor, Tensor]] = confident_columns

    def forward(
        self, image0: Tensor, image1: Tensor, options: MatchOptions | None = None
    ) -> EDMMatches:
        """Encodes and matches B pairs of images (B, 1, H, W); see `encode` and `match`."""
        return self.match(self.encode(image0), self.encode(image1), options)

    def encode(
        self,
        images: Tensor,
        position_scale: tuple[float, float] | None = None,
        shown: tuple[int, int] | None = None,
    ) -> EDMFeatures:
        """Computes everything that depends on one image alone.

        Args:
            images: (B, 1, H, W) greyscale in [0, 1]; H and W multiples of 32.
            position_scale: factors on row and column positions; by default
                `config.train_size` over the actual sides.
            shown: (rows, columns) of 8 px that show the photos, the same in all images, where these
                are padded below or to the right. Padding has no part in attention and no matches,
                as in the authors' evaluation; None where there is none.

        Raises:
            ValueError: the images have another shape.
        """
        if (
            images.ndim != 4
            or images.shape[1] != 1
            or images.shape[2] % STRIDE
            or images.shape[3] % STRIDE
            or 0 in images.shape
        ):
            raise ValueError(
                f"EDM takes (B, 1, H, W) with H and W positive multiples of {STRIDE}, "
                f"got {tuple(images.shape)}"
            )
        if position_scale is None:
            position_scale = self.config.position_scale(*images.shape[-2:])
        x8, x16, x32, fine = self.backbone(images)
        f8, f16, f32 = self.neck.encode((x8, x16, x32), position_scale, shown)
        return EDMFeatures(f32, f16, f8, fine, position_scale, shown)

    def match(
        self,
        features0: EDMFeatures,
        features1: EDMFeatures,
        options: MatchOptions | None = None,
    ) -> EDMMatches:
        """Matches B pairs of encoded images.

        Args:
            features0, features1: of `encode`, with the same B; image 0 and image 1 of the pairs
                may differ in size.
            options: how many and which matches; None for the defaults.

        Raises:
            ValueError: image 0 is to be refined by a network that is not bidirectional.
        """
        options = options or MatchOptions()
        grid0, grid1 = features0.f8.shape[-2:], features1.f8.shape[-2:]
        coarse0, coarse1 = self.interact(features0, features1)
        shown0, shown1 = features0.cropped(coarse0), features1.cropped(coarse1)
        cells0 = shown0.shape[-2:].numel()
        topk = default_topk(cells0) if options.topk is None else options.topk
        found = self.coarse_match(shown0, shown1, topk, options.threshold)
        cells = found._replace(
            cell0=features0.of_whole(found.cell0), cell1=features1.of_whole(found.cell1)
        )

        def located(refined: RefinedImage) -> EDMMatches:
            return self.locate(features0, features1, coarse0, coarse1, cells, refined)

        if options.refined != "best" or options.plenty is None:
            return located(options.refined).validated(grid0, grid1, options)
        many = (cells.confidence > options.threshold).sum(dim=1) >= options.plenty
        if many.all():
            matches = located("image1")
        elif not many.any():
            matches = located("best")
        else:
            both = zip(located("image1"), located("best"), strict=True)
            matches = EDMMatches(
                *(torch.where(many.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in both)
            )
        return matches.validated(grid0, grid1, options)

    def interact(self, features0: EDMFeatures, features1: EDMFeatures) -> tuple[Tensor, Tensor]:
        """Coarse maps (B, dim, H/8, W/8) of both images after correlation injection."""
        coarse0, coarse1 = self.neck(features0, features1)
        return _finite(coarse0), _finite(coarse1)

    @torch.no_grad()
    def coarse_match(
        self, coarse0: Tensor, coarse1: Tensor, topk: int, threshold: float = 0.0
    ) -> CoarseMatches:
        """The best column of each row, then the `topk` best rows; no mutual check (Sec. 3.3).

        K is at most the largest number of rows of a pair whose probability exceeds `threshold`.
        The selection has no gradient: training differentiates the similarities themselves.
        """
        probability, column = self.coarse_search(
            coarse0.flatten(2).transpose(1, 2),
            coarse1.flatten(2).transpose(1, 2),
            self.config.temperature,
            threshold,
        )
        exceeding = probability.shape[1]
        if threshold > 0:
            exceeding = int((probability > threshold).sum(dim=1).max())
        confidence, cell0 = probability.topk(max(1, min(topk, exceeding)), dim=1)
        return CoarseMatches(cell0, column.gather(1, cell0), confidence)

    def distinctness(self, features: EDMFeatures, step: int = 1) -> Tensor:
        """`coarse.distinctness` of every so many cells of one image, without its padding."""
        coarse0, coarse1 = (features.cropped(c)[0] for c in self.interact(features, features))
        rows, columns = coarse0.shape[-2:]
        return distinctness(
            coarse0.flatten(1).T,
            coarse1.flatten(1).T,
            self.config.temperature,
            (rows, columns),
            step,
        )

    def locate(
        self,
        features0: EDMFeatures,
        features1: EDMFeatures,
        coarse0: Tensor,
        coarse1: Tensor,
        cells: CoarseMatches,
        refined: RefinedImage = "best",
    ) -> EDMMatches:
        """Sub-pixel positions of coarse matches, all of them marked valid.

        Args:
            features0, features1: of `encode`.
            coarse0, coarse1: of `interact`.
            cells: of `coarse_match`.
            refined: the image in which each match leaves the 8 px grid.

        Raises:
            ValueError: image 0 is to be refined by a network that is not bidirectional.
        """
        grid0 = _grid_points(cells.cell0, coarse0.shape[-1])
        grid1 = _grid_points(cells.cell1, coarse1.shape[-1])
        if refined == "neither":
            one = torch.ones_like(cells.confidence)
            return EDMMatches(grid0, grid1, cells.confidence, one, one.bool())
        if not self.config.bidirectional:
            if refined == "image0":
                raise ValueError("this network was built to refine in image 1 only")
            refined = "image1"
        offset, sigma = self.refine(features0, features1, coarse0, coarse1, cells, refined)
        offset, certainty = offset * CELL, 1.0 - sigma.mean(dim=-1)
        if refined == "best":
            offset1, offset0 = offset.chunk(2, dim=1)
            certainty1, certainty0 = certainty.chunk(2, dim=1)
            in_image1 = certainty1 > certainty0
            offset = torch.where(in_image1[..., None], offset1, offset0)
            certainty = torch.where(in_image1, certainty1, certainty0)
        else:
            in_image1 = torch.full_like(certainty, refined == "image1", dtype=torch.bool)
        return EDMMatches(
            torch.where(in_image1[..., None], grid0, grid0 + offset),
            torch.where(in_image1[..., None], grid1 + offset, grid1),
            cells.confidence,
            certainty,
            torch.ones_like(in_image1),
        )

    def refine(
        self,
        features0: EDMFeatures,
        features1: EDMFeatures,
        coarse0: Tensor,
        coarse1: Tensor,
        cells: CoarseMatches,
        refined: RefinedImage = "best",
    ) -> tuple[Tensor, Tensor]:
        """Offsets of coarse matches, and their uncertainties (Sec. 3.4).

        Returns:
            offset (B, 2K, 2) in cells and σ (B, 2K, 2): first the K offsets in image 1, then
            the K offsets in image 0. With `refined` "image1" or "image0" (B, K, 2), in that image
            only, in half the time, and without `config.bidirectional` in image 1.
        """
        f0 = _finite(_gather(features0.fine, cells.cell0) + _gather(coarse0, cells.cell0))
        f1 = _finite(_gather(features1.fine, cells.cell1) + _gather(coarse1, cells.cell1))
        if refined == "best" and self.config.bidirectional:
            f0, f1 = torch.cat([f0, f1], dim=2), torch.cat([f1, f0], dim=2)
        elif refined == "image0":
            f0, f1 = f1, f0
        offset, sigma = self.fine_matching(f0, f1)
        return torch.nan_to_num(offset, nan=0.0), torch.nan_to_num(sigma, nan=1.0)
