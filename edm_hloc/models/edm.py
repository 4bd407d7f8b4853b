"""EDM, the efficient semi-dense matcher (arXiv 2503.05122): the whole network in one file.

    image ─ Backbone ─▶ 1/8, 1/16, 1/32 maps and a second 1/8 map for refinement   (Sec. 3.1)
          ─ CorrelationInjection ─▶ one 1/8 map that has seen the other image      (Sec. 3.2)
    two 1/8 maps ─ dual softmax ─▶ K cell-to-cell matches                          (Sec. 3.3)
                 ─ FineMatching ─▶ offset inside the cell and its uncertainty      (Sec. 3.4)

`EDM.encode` does everything that depends on one image alone, `EDM.match` the rest, so that
an image is encoded once however many partners it has. Parameter names are those of the
official checkpoint (without its `matcher.` prefix).

Pixel frame: the network's input, centre of the top-left pixel at (0, 0), (x, y) order. The
coarse cell (row r, column c) stands for the pixel (8c, 8r).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edm_hloc.base.threads import single_core_pool

CELL = 8  # pixels of the input per coarse cell
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
            & _inside(self.keypoints0, sides0[0] * CELL, sides0[1] * CELL, border)
            & _inside(self.keypoints1, sides1[0] * CELL, sides1[1] * CELL, border)
        )
        return self._replace(valid=valid)


# --- Backbone (Sec. 3.1) ---------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut (ResNet's basic block)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(in_channels, channels, stride), ResidualBlock(channels, channels)
    )


class Backbone(nn.Module):
    """A thin ResNet-18 that goes down to 1/32."""

    def __init__(self, widths: tuple[int, int, int, int, int]) -> None:
        super().__init__()
        w2, w4, w8, w16, w32 = widths
        self.conv1 = nn.Conv2d(1, w2, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(w2)
        self.layer1 = _stage(w2, w2, 1)
        self.layer2 = _stage(w2, w4, 2)
        self.layer3 = _stage(w4, w8, 2)
        self.layer4 = _stage(w8, w16, 2)
        self.layer5 = _stage(w16, w32, 2)
        self.fine_conv = nn.Sequential(
            _stage(w8, w8, 1), nn.Conv2d(w8, w32, 1, bias=False), nn.BatchNorm2d(w32)
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 1, H, W) → maps at 1/8, 1/16, 1/32 and the refinement's map at 1/8."""
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x8 = self.layer3(self.layer2(self.layer1(x)))
        x16 = self.layer4(x8)
        x32 = self.layer5(x16)
        return x8, x16, x32, self.fine_conv(x8)


# --- Correlation injection module (Sec. 3.2) ---------------------------------------------------


def rotary_table(
    height: int, width: int, dim: int, scale: tuple[float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the 2-D rotary position embedding, each (height·width, dim).

    Rows and columns count from 1 and are multiplied by `scale`; channels come in fours:
    two for the row, two for the column, of one frequency. Values are rounded to half
    precision as in the official checkpoint's training.
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
    """Turn each pair of channels of x (B, N, dim) by the angle of its position."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


class AttentionLayer(nn.Module):
    """Query–key normalised attention followed by a feed-forward network, with a shortcut."""

    def __init__(self, dim: int, heads: int, scale: float) -> None:
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
        self, x: Tensor, source: Tensor, position: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """x (B, N, dim) attends to source (B, M, dim); `position` is the rotary table."""
        normed = self.norm1(x)
        normed_source = normed if source is x else self.norm1(source)
        q, k, v = self.q_proj(normed), self.k_proj(normed_source), self.v_proj(normed_source)
        if position is not None:
            q, k = rotate(q, *position), rotate(k, *position)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        # Normalised in fp32: in half precision the guard against zero vectors rounds to zero.
        q = F.normalize(q.float(), dim=-1).to(v.dtype)
        k = F.normalize(k.float(), dim=-1).to(v.dtype)
        message = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        message = self.merge(message.transpose(1, 2).flatten(-2))
        message = self.mlp(torch.cat([x, message], dim=-1))
        return x + self.norm2(message)


class LocalFeatureTransformer(nn.Module):
    """The self- and cross-attention layers at 1/32; positions enter the self layers only."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        self.names = config.layers
        self.layers = nn.ModuleList(
            AttentionLayer(config.dim, config.heads, config.attention_scale) for _ in self.names
        )
        first_cross = self.names.index("cross") if "cross" in self.names else len(self.names)
        self.leading_self = first_cross

    def encode(self, x: Tensor, scale: tuple[float, float]) -> Tensor:
        """The self layers before the first cross layer, which need one image alone."""
        tokens, position = self._tokens(x, scale)
        for layer in self.layers[: self.leading_self]:
            tokens = layer(tokens, tokens, position)
        return tokens.transpose(1, 2).reshape(x.shape)

    def interact(self, x0: Tensor, x1: Tensor, scales: tuple[tuple[float, float], ...]) -> tuple:
        """The other layers; within a cross layer image 1 sees the updated image 0."""
        tokens0, position0 = self._tokens(x0, scales[0])
        tokens1, position1 = self._tokens(x1, scales[1])
        remaining = slice(self.leading_self, None)
        for name, layer in zip(self.names[remaining], self.layers[remaining], strict=True):
            if name == "self":
                tokens0 = layer(tokens0, tokens0, position0)
                tokens1 = layer(tokens1, tokens1, position1)
            else:
                tokens0 = layer(tokens0, tokens1)
                tokens1 = layer(tokens1, tokens0)
        return (
            tokens0.transpose(1, 2).reshape(x0.shape),
            tokens1.transpose(1, 2).reshape(x1.shape),
        )

    @staticmethod
    def _tokens(x: Tensor, scale: tuple[float, float]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        height, width = x.shape[-2:]
        table = rotary_table(height, width, x.shape[1], scale, x.device)
        return x.flatten(2).transpose(1, 2), table


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch normalisation, optional activation."""

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


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class CorrelationInjection(nn.Module):
    """CIM: correlate the images at 1/32 and inject the result into 1/16 and 1/8."""

    def __init__(self, config: EDMConfig) -> None:
        super().__init__()
        _, _, w8, w16, w32 = config.widths
        dim = config.dim
        self.fc32 = ConvNorm(w32, dim)
        self.fc16 = ConvNorm(w16, dim)
        self.fc8 = ConvNorm(w8, dim)
        self.att32 = ConvNorm(dim, dim, nn.Sigmoid())
        self.att16 = ConvNorm(dim, dim, nn.Sigmoid())
        self.dwconv16 = nn.Sequential(
            ConvNorm(dim, dim, nn.GELU(), depthwise=True), ConvNorm(dim, dim)
        )
        self.dwconv8 = nn.Sequential(
            ConvNorm(dim, dim, nn.GELU(), depthwise=True), ConvNorm(dim, dim)
        )
        self.loftr_32 = LocalFeatureTransformer(config)

    def encode(
        self, x8: Tensor, x16: Tensor, x32: Tensor, scale: tuple[float, float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The part of one image alone: projections and the leading self-attention."""
        return self.fc8(x8), self.fc16(x16), self.loftr_32.encode(self.fc32(x32), scale)

    def forward(self, features0: EDMFeatures, features1: EDMFeatures) -> tuple[Tensor, Tensor]:
        """Coarse maps (B, dim, H/8, W/8) of both images, each aware of the other."""
        scales = (features0.position_scale, features1.position_scale)
        f32_0, f32_1 = self.loftr_32.interact(features0.f32, features1.f32, scales)
        return self._inject(features0, f32_0), self._inject(features1, f32_1)

    def _inject(self, features: EDMFeatures, f32: Tensor) -> Tensor:
        f16 = self.dwconv16(features.f16 * _twice(self.att32(f32)) + _twice(f32))
        return self.dwconv8(features.f8 * _twice(self.att16(f16)) + _twice(f16))


# --- Coarse matching (Sec. 3.3) ----------------------------------------------------------------


# Below this threshold a row can have so many candidates that all columns are searched instead.
_LEAST_THRESHOLD = 0.01
# A sum of exponentials in fp32 is exact to rounding for terms down to exp(−60) of the scale it
# is kept at: those that underflow, below exp(−87), are too few to matter.
_COMMON_SCALE = 60.0


def _block_rows(rows: int, batch: int, columns: int, block_bytes: int) -> int:
    return max(1, min(rows, block_bytes // (4 * batch * columns)))


def _default_block(device: torch.device) -> int:
    """Bytes of similarities held at a time: about a core's cache, or enough to fill a GPU."""
    return 64 << 20 if device.type == "cuda" else 4 << 20


def similarity(features0: Tensor, features1: Tensor, temperature: float) -> Tensor:
    """⟨a, b⟩ / (C·τ) for (B, N, C) and (B, M, C) → (B, N, M), always in fp32 (Eq. 1)."""
    scale = 1.0 / (features0.shape[-1] * temperature)
    with torch.autocast(features0.device.type, enabled=False):
        return torch.matmul(features0.float() * scale, features1.float().transpose(1, 2))


def best_columns(
    features0: Tensor, features1: Tensor, temperature: float, block_bytes: int | None = None
) -> tuple[Tensor, Tensor]:
    """For every row of the dual softmax (Eq. 2) its largest entry and that entry's column.

    The logarithm of the dual softmax at (i, j) is 2·s_ij − row_lse_i − column_lse_j, so the
    sums of the exponentials are all that is needed of the whole matrix. It is made in blocks
    of rows, twice when one block does not hold it: memory stays at a few times `block_bytes`,
    and the shifted exponentials cannot overflow.

    Args:
        features0: (B, N, C).
        features1: (B, M, C).
        temperature: τ of Eq. 1.
        block_bytes: memory for similarities held at a time; None for what suits the device.

    Returns:
        probability (B, N) and column (B, N) long.
    """
    batch, rows = features0.shape[:2]
    block_bytes = block_bytes or _default_block(features0.device)
    step = _block_rows(rows, batch, features1.shape[1], block_bytes)
    blocks = features0.split(step, dim=1)
    kept: Tensor | None = None
    row_lse, column_lse = [], None
    for block in blocks:
        s = similarity(block, features1, temperature)
        row_lse.append(s.logsumexp(dim=2))
        block_lse = s.logsumexp(dim=1)
        column_lse = block_lse if column_lse is None else torch.logaddexp(column_lse, block_lse)
        kept = s if len(blocks) == 1 else None
    assert column_lse is not None
    best, columns = [], []
    for block in blocks:
        s = similarity(block, features1, temperature) if kept is None else kept
        value, column = s.mul_(2.0).sub_(column_lse[:, None]).max(dim=2)
        best.append(value)
        columns.append(column)
    log_probability = torch.cat(best, dim=1) - torch.cat(row_lse, dim=1)
    return log_probability.exp(), torch.cat(columns, dim=1)


T = TypeVar("T")


def _on_cores(work: Callable[[range], T], shares: Sequence[range]) -> list[T]:
    """`work` of each share that is not empty, side by side with one thread of torch's each."""
    shares = [share for share in shares if share]
    if len(shares) == 1:
        return [work(shares[0])]
    with single_core_pool(len(shares), "coarse") as pool:
        return list(pool.map(torch.no_grad()(work), shares))


def default_topk(cells: int) -> int:
    """K where none is asked for: 0.35 of the cells of image 0."""
    return max(1, int(0.35 * cells))


class _Block(NamedTuple):
    """The similarities of R rows of each pair, as they are searched.

    Attributes:
        start: the first of these rows.
        e: (B, R, M) exponentials, relative to the rows' maxima.
        top: (B, R, 1) those maxima.
        peaks: (B, R, G) maxima of groups of similarities; group g is of columns g, g + G, …
    """

    start: int
    e: Tensor
    top: Tensor
    peaks: Tensor


class _Entries(NamedTuple):
    """Entries of the similarities that may be the largest of their rows.

    Attributes:
        row: (E,) of all pairs' rows, one pair after the other: pair · N + row of the pair.
        column: (E,) of the pair's columns.
        share: (E,) row softmax.
        s: (E,) similarity.
    """

    row: Tensor
    column: Tensor
    share: Tensor
    s: Tensor


def _column_sums(block: _Block) -> Tensor:
    """(B, M) log-sum-exps of the columns."""
    level = block.top.amax(dim=1, keepdim=True)
    sums = torch.matmul((block.top - level).exp().transpose(1, 2), block.e)
    return (sums.log() + level)[:, 0]


def _promising(block: _Block, rows: int, threshold: float) -> _Entries:
    """Entries whose row softmax exceeds `threshold`; `rows` is N."""
    start, e, top, peaks = block
    size, groups = peaks.shape[1:]
    total = e.sum(dim=2, keepdim=True)
    least = total * threshold
    promising = (peaks > top + least.log()).flatten().nonzero()[:, 0]
    line, group = promising // groups, promising % groups  # line: pair · R + row of the block
    few = e.view(-1, e.shape[2] // groups, groups)[line, :, group]
    index, member = (few > least.flatten()[line, None]).nonzero(as_tuple=True)
    line, column = line[index], member * groups + group[index]
    row = line + line // size * (rows - size) + start
    value = few[index, member]
    return _Entries(row, column, value / total.flatten()[line], top.flatten()[line] + value.log())


def _sums_again(
    scaled: Tensor, transposed: Tensor, pair: Tensor, column: Tensor, step: int
) -> Tensor:
    """(E,) log-sum-exps of single columns of the pairs' matrices, `step` columns at a time."""
    sums = scaled.new_empty(len(column))
    for part in torch.arange(len(column), device=column.device).split(step):
        for i in pair[part].unique():
            here = part[pair[part] == i]
            with torch.autocast(scaled.device.type, enabled=False):
                alone = torch.matmul(scaled[i], transposed[i][:, column[here]])
            sums[here] = alone.logsumexp(dim=0)
    return sums


@torch.no_grad()
def confident_columns(
    features0: Tensor,
    features1: Tensor,
    temperature: float,
    threshold: float,
    block_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`best_columns` of the rows whose probability exceeds `threshold`, several times faster.

    An entry of the dual softmax is at most the row softmax at the same place, so only entries
    whose row softmax exceeds `threshold` count, fewer than 1/threshold a row. They are picked
    out of each block of rows when it is made, and wait for the sums of the columns: every
    similarity is computed once, and goes through one exponential, relative to its row's maximum.

    Args:
        features0: (B, N, C).
        features1: (B, M, C).
        temperature: τ of Eq. 1.
        threshold: the least probability of interest.
        block_bytes: memory for similarities held at a time; None for what suits the device.

    Returns:
        probability (B, N) and column (B, N) long, both 0 in the other rows.
    """
    if threshold < _LEAST_THRESHOLD:
        return best_columns(features0, features1, temperature, block_bytes)
    batch, rows, channels = features0.shape
    others = features1.shape[1]
    block_bytes = block_bytes or _default_block(features0.device)
    step = _block_rows(rows, batch, others, block_bytes)
    scaled = (features0.float() / (channels * temperature)).contiguous()
    transposed = features1.float().transpose(1, 2).contiguous()
    members = math.gcd(others, 16)  # of a group: maxima are vectorised, `nonzero` is not

    def search(starts: range) -> tuple[Tensor, list[_Entries]]:
        """Sums of the columns over some blocks, and their promising entries."""
        # Memory that is used again: fresh pages for a block cost as much as its exponentials.
        buffer = scaled.new_empty(batch * step * others)
        column_lse = scaled.new_full((batch, others), -math.inf)
        found = []
        for start in starts:
            some = scaled[:, start : start + step]
            e = buffer[: batch * some.shape[1] * others].view(batch, -1, others)
            with torch.autocast(scaled.device.type, enabled=False):
                torch.matmul(some, transposed, out=e)
                peaks = e.unflatten(2, (members, -1)).amax(dim=2)
                top = peaks.amax(dim=2, keepdim=True)
                block = _Block(start, e.sub_(top).exp_(), top, peaks)
                column_lse = torch.logaddexp(column_lse, _column_sums(block))
            found.append(_promising(block, rows, threshold))
        return column_lse, found

    # Blocks fit a core's cache, which is too little to share: each core has its own.
    cores = torch.get_num_threads() if features0.device.type == "cpu" else 1
    parts = _on_cores(search, [range(k * step, rows, cores * step) for k in range(cores)])
    column_lse = torch.stack([sums for sums, _ in parts]).logsumexp(dim=0)
    found = [entries for _, some in parts for entries in some]
    row, column, share, s = (torch.cat(values) for values in zip(*found, strict=True))

    pair = row // rows
    lse = column_lse.flatten()[pair * others + column]
    # Of columns far below the largest similarity the sum may have underflowed.
    low = (s < column_lse.max() - _COMMON_SCALE).nonzero()[:, 0]
    lse[low] = _sums_again(scaled, transposed, pair[low], column[low], step)
    candidate = share * (s - lse).exp()
    probability = candidate.new_zeros(batch * rows).scatter_reduce_(0, row, candidate, "amax")
    best = candidate == probability[row]
    columns = column.new_zeros(batch * rows)
    columns[row[best]] = column[best]
    probability = probability.where(probability > threshold, 0.0)
    return probability.view(batch, rows), columns.view(batch, rows)


# --- Fine matching (Sec. 3.4) --------------------------------------------------------------------


class RealNVP(nn.Module):
    """Normalising flow for the density of the residuals (Eq. 8; arXiv 1605.08803).

    Used by the training loss only; it is here because the checkpoint carries it.
    """

    loc: Tensor
    cov: Tensor
    mask: Tensor

    def __init__(self, couplings: int = 6, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(2))
        self.register_buffer("cov", torch.eye(2))
        self.register_buffer("mask", torch.tensor([[0.0, 1.0], [1.0, 0.0]] * (couplings // 2)))
        self.s = nn.ModuleList(
            nn.Sequential(*self._perceptron(hidden), nn.Tanh()) for _ in range(couplings)
        )
        self.t = nn.ModuleList(nn.Sequential(*self._perceptron(hidden)) for _ in range(couplings))

    @staticmethod
    def _perceptron(hidden: int) -> list[nn.Module]:
        return [
            nn.Linear(2, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 2),
        ]

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of x (M, 2) → (M,): latent normal density times the map's Jacobian."""
        z, log_det = x, x.new_zeros(x.shape[0])
        for mask, scale_net, shift_net in reversed(
            list(zip(self.mask, self.s, self.t, strict=True))
        ):
            fixed, moving = mask * z, 1 - mask
            log_scale = scale_net(fixed) * moving
            z = fixed + moving * (z - shift_net(fixed)) * torch.exp(-log_scale)
            log_det = log_det - log_scale.sum(dim=1)
        log_normal = -0.5 * z.square().sum(dim=1) - math.log(2 * math.pi)
        return log_normal + log_det


def _perceptron1d(channels: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(channels, channels, nn.GELU(), one_dimensional=True),
        ConvNorm(channels, channels, nn.GELU(), one_dimensional=True),
    )


class FineMatching(nn.Module):
    """Regress where, within its cell, the reference sees the query's grid point."""

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
            query, reference: (B, dim, K), the sum of fine and coarse features at the cells.

        Returns:
            offset (B, K, 2) as (x, y) in cells, within ±0.5, and σ (B, K, 2) in (0, 1).
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


# --- The whole ------------------------------------------------------------------------------------


def _gather(features: Tensor, cells: Tensor) -> Tensor:
    """Columns `cells` (B, K) of a map (B, C, h, w) → (B, C, K)."""
    index = cells[:, None].expand(-1, features.shape[1], -1)
    return features.flatten(2).gather(2, index)


def _cell_to_pixel(cells: Tensor, columns: int) -> Tensor:
    """(B, K) cells in row-major order → (B, K, 2) pixels as (x, y)."""
    rows = torch.div(cells, columns, rounding_mode="floor")
    return torch.stack([cells - rows * columns, rows], dim=-1).float() * CELL


def _inside(keypoints: Tensor, height: int, width: int, border: int) -> Tensor:
    x, y = keypoints.unbind(-1)
    return (x >= border) & (x <= width - border) & (y >= border) & (y <= height - border)


def _finite(x: Tensor) -> Tensor:
    """Replace what overflowed, so that one absurd activation cannot poison all matches.

    The bound is below the largest half-precision number; trained features stay under 100.
    """
    return torch.nan_to_num(x, nan=0.0).clamp_(-6e4, 6e4)


class EDM(nn.Module):
    """Efficient semi-dense matching of two grey images.

    >>> model = EDM().eval()
    >>> a, b = (model.encode(torch.rand(1, 1, 96, 128)) for _ in range(2))
    >>> model.match(a, b, topk=10).keypoints0.shape
    torch.Size([1, 10, 2])
    """

    def __init__(self, config: EDMConfig = CONFIGS["edm"]) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.widths)
        self.neck = CorrelationInjection(config)
        self.fine_matching = FineMatching(config)
        # May be replaced by another of the same meaning, as `models.coarse_triton` on a GPU.
        self.coarse_search: Callable[..., tuple[Tensor, Tensor]] = confident_columns

    def encode(
        self, images: Tensor, position_scale: tuple[float, float] | None = None
    ) -> EDMFeatures:
        """Everything that depends on one image alone.

        Args:
            images: (B, 1, H, W) grey in [0, 1]; H and W multiples of 32.
            position_scale: factors on row and column positions; by default
                `config.train_size` over the actual sides.

        Raises:
            ValueError: for another shape.
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
        f8, f16, f32 = self.neck.encode(x8, x16, x32, position_scale)
        return EDMFeatures(f32, f16, f8, fine, position_scale)

    def interact(self, features0: EDMFeatures, features1: EDMFeatures) -> tuple[Tensor, Tensor]:
        """Coarse maps (B, dim, H/8, W/8) of both images after correlation injection."""
        coarse0, coarse1 = self.neck(features0, features1)
        return _finite(coarse0), _finite(coarse1)

    @torch.no_grad()
    def coarse_match(
        self, coarse0: Tensor, coarse1: Tensor, topk: int, threshold: float = 0.0
    ) -> CoarseMatches:
        """The best column of each row, then the `topk` best rows; no mutual check (Sec. 3.3).

        Rows that do not exceed `threshold` are left out where all pairs of the batch have them.
        A selection without gradient: training differentiates the similarities themselves.
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

    def refine(
        self,
        features0: EDMFeatures,
        features1: EDMFeatures,
        coarse0: Tensor,
        coarse1: Tensor,
        cells: CoarseMatches,
    ) -> tuple[Tensor, Tensor]:
        """Offsets in both directions.

        Returns:
            offset (B, 2K, 2) in cells and σ (B, 2K, 2): first the K offsets in image 1, then
            (if `config.bidirectional`) the K offsets in image 0.
        """
        f0 = _finite(_gather(features0.fine, cells.cell0) + _gather(coarse0, cells.cell0))
        f1 = _finite(_gather(features1.fine, cells.cell1) + _gather(coarse1, cells.cell1))
        if self.config.bidirectional:
            f0, f1 = torch.cat([f0, f1], dim=2), torch.cat([f1, f0], dim=2)
        offset, sigma = self.fine_matching(f0, f1)
        return torch.nan_to_num(offset, nan=0.0), torch.nan_to_num(sigma, nan=1.0)

    def match(
        self,
        features0: EDMFeatures,
        features1: EDMFeatures,
        *,
        topk: int | None = None,
        threshold: float = 0.2,
        sigma_threshold: float = 1e-6,
        border_cells: int = 0,
        refined: RefinedImage = "best",
    ) -> EDMMatches:
        """Match B pairs of encoded images.

        Args:
            features0, features1: of `encode`, with the same B; sizes may differ between the two.
            topk: at most this many matches a pair; by default 0.35 of image 0's cells.
            threshold: smallest dual-softmax probability.
            sigma_threshold: smallest 1 − mean σ.
            border_cells: matches closer than this to an image's edge are dropped.
            refined: the image in which matches leave the 8 px grid: the one with the smaller
                σ for each match, or always the same.
        """
        (h0, w0), sides1 = features0.f8.shape[-2:], features1.f8.shape[-2:]
        if topk is None:
            topk = default_topk(h0 * w0)
        coarse0, coarse1 = self.interact(features0, features1)
        cells = self.coarse_match(coarse0, coarse1, topk, threshold)
        found = self.locate(features0, features1, coarse0, coarse1, cells, refined)
        return found.within((h0, w0), sides1, threshold, sigma_threshold, border_cells)

    def locate(
        self,
        features0: EDMFeatures,
        features1: EDMFeatures,
        coarse0: Tensor,
        coarse1: Tensor,
        cells: CoarseMatches,
        refined: RefinedImage = "best",
    ) -> EDMMatches:
        """Sub-pixel positions of coarse matches, all of them valid so far; see `match`."""
        offset, sigma = self.refine(features0, features1, coarse0, coarse1, cells)
        grid0 = _cell_to_pixel(cells.cell0, coarse0.shape[-1])
        grid1 = _cell_to_pixel(cells.cell1, coarse1.shape[-1])
        certainty = 1.0 - sigma.mean(dim=-1)
        k = cells.cell0.shape[1]
        offset1, certainty1 = offset[:, :k] * CELL, certainty[:, :k]
        if not self.config.bidirectional:
            if refined == "image0":
                raise ValueError("this network was built to refine in image 1 only")
            in_image1 = torch.ones_like(certainty1, dtype=torch.bool)
            offset0, certainty0 = torch.zeros_like(offset1), certainty1
        else:
            offset0, certainty0 = offset[:, k:] * CELL, certainty[:, k:]
            if refined == "best":
                in_image1 = certainty1 > certainty0
            else:
                in_image1 = torch.full_like(certainty1, refined == "image1", dtype=torch.bool)
        return EDMMatches(
            torch.where(in_image1[..., None], grid0, grid0 + offset0),
            torch.where(in_image1[..., None], grid1 + offset1, grid1),
            cells.confidence,
            torch.where(in_image1, certainty1, certainty0),
            torch.ones_like(in_image1),
        )

    def forward(self, image0: Tensor, image1: Tensor, topk: int | None = None) -> EDMMatches:
        """Encode and match B pairs (B, 1, H, W); see `match`."""
        return self.match(self.encode(image0), self.encode(image1), topk=topk)


def fold_batch_norms(model: EDM) -> EDM:
    """A copy for inference in which each batch norm is part of the convolution before it.

    Its results are the model's in evaluation mode, to rounding. It can be neither trained nor
    loaded from a checkpoint.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for module in folded.modules():
        pairs: list[tuple[str, str]] = [("conv1", "bn1"), ("conv2", "bn2")]
        if isinstance(module, nn.Sequential):
            pairs = list(itertools.pairwise(module._modules))
        for first, second in pairs:
            convolution, norm = getattr(module, first, None), getattr(module, second, None)
            if isinstance(convolution, nn.Conv1d | nn.Conv2d) and isinstance(
                norm, nn.BatchNorm1d | nn.BatchNorm2d
            ):
                setattr(module, first, fuse_conv_bn_eval(convolution, norm))
                setattr(module, second, nn.Identity())
    return folded
