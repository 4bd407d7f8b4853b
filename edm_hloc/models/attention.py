"""EDM's transformer at 1/32: self- and cross-attention with rotary positions (Sec. 3.2)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm_hloc.models.types import EDMConfig


def rotary_table(
    height: int, width: int, dim: int, scale: tuple[float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 2-D rotary position embedding, each (height·width, dim).

    Channels come in fours of one frequency: two for the row, two for the column. Values are rounded
    to half precision, as in the training of the official checkpoint.

    Args:
        height, width: of the map; rows and columns count from 1.
        dim: channels, a multiple of 4.
        scale: factors on the rows and on the columns.
        device: of the table.
    """
    rows = torch.arange(1, height + 1, device=device, dtype=torch.float32) * scale[0]
    columns = torch.arange(1, width + 1, device=device, dtype=torch.float32) * scale[1]
    steps = torch.arange(dim // 4, device=device, dtype=torch.float32)
    frequency = torch.exp(steps * (-math.log(10000.0) / (dim // 4)))
    row_angle = (rows[:, None] * frequency)[:, None].expand(height, width, -1)
    column_angle = (columns[:, None] * frequency)[None].expand(height, width, -1)
    angle = torch.stack([row_angle, column_angle], dim=-1).reshape(height * width, dim // 2)
    angle = angle.repeat_interleave(2, dim=-1)
    return angle.cos().half().float(), angle.sin().half().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair of channels of x (B, N, dim) by the angle of its position."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


class AttentionLayer(nn.Module):
    """Attention, then a feed-forward network, with a shortcut.

    Args:
        dim: channels.
        heads: number of heads.
        scale: factor on the cosine similarity of queries and keys; None for plain attention,
            without normalisation and with 1/√(dim / heads).
    """

    def __init__(self, dim: int, heads: int, scale: float | None) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.merge = nn.Linear(dim, dim, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim, bias=False),
            nn.LeakyReLU(),
            nn.Linear(2 * dim, dim, bias=False),
        )
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        position: tuple[Tensor, Tensor] | None = None,
        shown: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Tensor:
        """Updates x (B, N, dim) by attention to source (B, M, dim) → (B, N, dim).

        Args:
            x, source: the same tensor in self-attention.
            position: cosines and sines of `rotary_table`; None for no positions.
            shown: indices of the tokens of x and of source that show their photos. The others
                neither attend nor are attended to; None where all do.
        """
        normed = self.norm1(x)
        normed_source = normed if source is x else self.norm1(source)
        q, k, v = self.q_proj(normed), self.k_proj(normed_source), self.v_proj(normed_source)
        if position is not None:
            q, k = rotate(q, *position), rotate(k, *position)
        of_x, of_source = shown
        if of_x is not None:
            q = q[:, of_x]
        if of_source is not None:
            k, v = k[:, of_source], v[:, of_source]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.scale is not None:
            # Normalised in fp32: in half precision the guard against zero vectors rounds to zero.
            q = F.normalize(q.float(), dim=-1).to(v.dtype)
            k = F.normalize(k.float(), dim=-1).to(v.dtype)
        message = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        message = message.transpose(1, 2).flatten(-2)
        if of_x is not None:
            message = torch.zeros_like(x).index_copy(1, of_x, message.to(x.dtype))
        message = self.merge(message)
        message = self.mlp(torch.cat([x, message], dim=-1))
        return x + self.norm2(message)


def _shown_tokens(x: Tensor, shown: tuple[int, int] | None) -> Tensor | None:
    """Indices of the tokens of a map (B, C, h, w) at 1/32 in which there is some of the photo."""
    if shown is None:
        return None
    rows, columns = (torch.arange(-(-cells // 4), device=x.device) for cells in shown)
    return (rows[:, None] * x.shape[-1] + columns).flatten()


class LocalFeatureTransformer(nn.Module):
    """The self- and cross-attention layers at 1/32; positions are used in self-attention only."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        self.names = config.layers
        scale = config.attention_scale if config.normalised_attention else None
        self.layers = nn.ModuleList(
            AttentionLayer(config.dim, config.heads, scale) for _ in self.names
        )
        self.first_cross = self.names.index("cross") if "cross" in self.names else len(self.names)

    def encode(
        self, x: Tensor, scale: tuple[float, float], shown: tuple[int, int] | None = None
    ) -> Tensor:
        """The self-attention layers before the first cross layer, which need one image alone.

        Args:
            x: (B, dim, h, w).
            scale: factors on the row and column positions.
            shown: as in `EDMFeatures`.

        Returns:
            (B, dim, h, w).
        """
        tokens, position = self._tokens(x, scale)
        of_photo = _shown_tokens(x, shown)
        for layer in self.layers[: self.first_cross]:
            tokens = layer(tokens, tokens, position, (of_photo, of_photo))
        return tokens.transpose(1, 2).reshape(x.shape)

    def interact(
        self,
        x0: Tensor,
        x1: Tensor,
        scales: tuple[tuple[float, float], tuple[float, float]],
        shown: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None),
    ) -> tuple[Tensor, Tensor]:
        """The remaining layers; in a cross layer image 1 attends to the already updated image 0.

        Args:
            x0, x1: (B, dim, h, w) of `encode`; h and w may differ between the two.
            scales: factors on the row and column positions of each image.
            shown: of each image, as in `EDMFeatures`.

        Returns:
            both maps, in the same shapes.
        """
        tokens0, position0 = self._tokens(x0, scales[0])
        tokens1, position1 = self._tokens(x1, scales[1])
        of0, of1 = _shown_tokens(x0, shown[0]), _shown_tokens(x1, shown[1])
        remaining = slice(self.first_cross, None)
        for name, layer in zip(self.names[remaining], self.layers[remaining], strict=True):
            if name == "self":
                tokens0 = layer(tokens0, tokens0, position0, (of0, of0))
                tokens1 = layer(tokens1, tokens1, position1, (of1, of1))
            else:
                tokens0 = layer(tokens0, tokens1, shown=(of0, of1))
                tokens1 = layer(tokens1, tokens0, shown=(of1, of0))
        return (
            tokens0.transpose(1, 2).reshape(x0.shape),
            tokens1.transpose(1, 2).reshape(x1.shape),
        )

    @staticmethod
    def _tokens(x: Tensor, scale: tuple[float, float]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        height, width = x.shape[-2:]
        table = rotary_table(height, width, x.shape[1], scale, x.device)
        return x.flatten(2).transpose(1, 2), table
