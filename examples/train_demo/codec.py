"""A small Mimi in PyTorch, with the tensor names of Kyutai's published file.

24 kHz mono audio <-> 12.5 Hz columns of 8 codes. Everything is causal, so encoding a whole
recording at once gives the same codes as encoding it frame by frame with the window of
`CodecConfig.context` latent steps (25 Hz).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantizer import SplitResidualQuantizer
from .rates import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE

# Latent steps of 40 ms. The convolutions of the encoder see 3.5 of them.
OVERLAP = 4
PIECE = {"cpu": 40}
LONG_PIECE = 400


@dataclass(frozen=True)
class CodecConfig:
    """Sizes of the codec; `mimi_json` spells them in the published vocabulary."""

    n_filters: int = 16
    dimension: int = 128
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    compress: int = 2
    num_layers: int = 3
    num_heads: int = 4
    feedforward: int = 512
    context: int = 16  # latent steps of 40 ms, the current one included
    max_period: float = 10_000.0
    layer_scale: float = 0.1  # initial value; the learnt one is in the weights
    n_q: int = 8
    bins: int = 256
    codebook_dim: int = 64

    def mimi_json(self) -> dict:
        """The content of the codec's JSON file in the published layout."""
        seanet = dict(
            channels=1, dimension=self.dimension, causal=True, n_filters=self.n_filters,
            n_residual_layers=1, activation="ELU", compress=self.compress, dilation_base=2,
            disable_norm_outer_blocks=0, kernel_size=self.kernel_size,
            residual_kernel_size=self.residual_kernel_size,
            last_kernel_size=self.last_kernel_size, norm="none", pad_mode="constant",
            ratios=list(self.ratios), true_skip=True,
        )  # fmt: skip
        quantizer = dict(
            dimension=self.codebook_dim, n_q=self.n_q, bins=self.bins,
            input_dimension=self.dimension, output_dimension=self.dimension,
        )  # fmt: skip
        transformer = dict(
            d_model=self.dimension, num_heads=self.num_heads, num_layers=self.num_layers,
            causal=True, layer_scale=self.layer_scale, context=self.context, conv_layout=True,
            max_period=int(self.max_period), gating="none", norm="layer_norm",
            positional_embedding="rope", dim_feedforward=self.feedforward,
            input_dimension=self.dimension, output_dimensions=[self.dimension],
        )  # fmt: skip
        return dict(
            sample_rate=SAMPLE_RATE, channels=1, frame_rate=FRAME_RATE, seanet=seanet,
            quantizer=quantizer, transformer=transformer,
        )  # fmt: skip


class CausalConv1d(nn.Module):
    """Convolution that sees only the past: `kernel - stride` columns are prepended."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, bias: bool = True,
                 replicate: bool = False):  # fmt: skip
        super().__init__()
        self.conv = nn.ModuleDict({"conv": nn.Conv1d(c_in, c_out, kernel, stride, bias=bias)})
        self.left = kernel - stride
        self.pad_mode = "replicate" if replicate else "constant"
        _unit_gain(self.conv["conv"], c_in * kernel)

    def forward(self, x: Tensor) -> Tensor:
        if self.left:
            x = F.pad(x, (self.left, 0), mode=self.pad_mode)
        return self.conv["conv"](x)


class CausalConvTranspose1d(nn.Module):
    """Transposed convolution of kernel `2 * stride`; the surplus is cut on the right."""

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int = 1, bias: bool = True):
        super().__init__()
        convtr = nn.ConvTranspose1d(c_in, c_out, 2 * stride, stride, groups=groups, bias=bias)
        self.convtr = nn.ModuleDict({"convtr": convtr})
        self.stride = stride
        # Two input columns overlap at every output sample.
        _unit_gain(convtr, c_in // groups * 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.convtr["convtr"](x)[..., : -self.stride]


def _unit_gain(conv: nn.Module, fan_in: int) -> None:
    """Initialise so that the signal's variance survives the stack.

    The framework's default shrinks it at each of the ~25 layers until nothing is left and the
    loss stays flat; 1.1 makes up for what the ELU takes.
    """
    nn.init.normal_(conv.weight, std=1.1 / math.sqrt(fan_in))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, cfg: CodecConfig):
        super().__init__()
        hidden = channels // cfg.compress
        self.block = nn.Sequential(
            nn.ELU(), CausalConv1d(channels, hidden, cfg.residual_kernel_size),
            nn.ELU(), CausalConv1d(hidden, channels, 1),
        )  # fmt: skip
        with torch.no_grad():
            self.block[3].conv["conv"].weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class SeanetEncoder(nn.Module):
    """[B, 1, T] samples -> [B, dimension, T / 960]."""

    def __init__(self, cfg: CodecConfig):
        super().__init__()
        ch = cfg.n_filters
        layers: list[nn.Module] = [CausalConv1d(1, ch, cfg.kernel_size)]
        for ratio in reversed(cfg.ratios):
            layers += [ResidualBlock(ch, cfg), nn.ELU(),
                       CausalConv1d(ch, 2 * ch, 2 * ratio, ratio)]  # fmt: skip
            ch *= 2
        layers += [nn.ELU(), CausalConv1d(ch, cfg.dimension, cfg.last_kernel_size)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SeanetDecoder(nn.Module):
    """[B, dimension, N] -> [B, 1, 960 N] samples."""

    def __init__(self, cfg: CodecConfig):
        super().__init__()
        ch = cfg.n_filters * 2 ** len(cfg.ratios)
        layers: list[nn.Module] = [CausalConv1d(cfg.dimension, ch, cfg.kernel_size)]
        for ratio in cfg.ratios:
            layers += [nn.ELU(), CausalConvTranspose1d(ch, ch // 2, ratio),
                       ResidualBlock(ch // 2, cfg)]  # fmt: skip
            ch //= 2
        layers += [nn.ELU(), CausalConv1d(ch, 1, cfg.last_kernel_size)]
        self.model = nn.Sequential(*layers)
        with torch.no_grad():  # start near silence instead of near full-scale noise
            self.model[-1].conv["conv"].weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Scale(nn.Module):
    def __init__(self, dim: int, init: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Attention(nn.Module):
    def __init__(self, cfg: CodecConfig):
        super().__init__()
        dim = cfg.dimension
        self.heads = cfg.num_heads
        self.max_period = cfg.max_period
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) / math.sqrt(dim))
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, D]; mask [T, T], true where a key is visible."""
        batch, steps, dim = x.shape
        qkv = F.linear(x, self.in_proj_weight).view(batch, steps, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, self.max_period), rotate(k, self.max_period)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(y.transpose(1, 2).reshape(batch, steps, dim))


def rotate(x: Tensor, max_period: float, first: int = 0) -> Tensor:
    """Rotary embedding of interleaved pairs; x [B, H, T, D] at positions first..first+T-1."""
    *_, steps, dim = x.shape
    freq = torch.exp(torch.arange(0, dim, 2, device=x.device) * (-math.log(max_period) / dim))
    angle = torch.arange(first, first + steps, device=x.device)[:, None] * freq
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


def window_mask(steps: int, context: int, device=None) -> Tensor:
    """[T, T] booleans: query p sees keys with 0 <= p - k < context."""
    gap = torch.arange(steps, device=device)[:, None] - torch.arange(steps, device=device)
    return (gap >= 0) & (gap < context)


class TransformerLayer(nn.Module):
    def __init__(self, cfg: CodecConfig):
        super().__init__()
        dim = cfg.dimension
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attn = Attention(cfg)
        self.linear1 = nn.Linear(dim, cfg.feedforward, bias=False)
        self.linear2 = nn.Linear(cfg.feedforward, dim, bias=False)
        self.layer_scale_1 = Scale(dim, cfg.layer_scale)
        self.layer_scale_2 = Scale(dim, cfg.layer_scale)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x), mask))
        return x + self.layer_scale_2(self.linear2(F.gelu(self.linear1(self.norm2(x)))))


class CodecTransformer(nn.Module):
    """[B, D, T] -> [B, D, T] with a sliding causal window."""

    def __init__(self, cfg: CodecConfig):
        super().__init__()
        self.context = cfg.context
        layers = nn.ModuleList(TransformerLayer(cfg) for _ in range(cfg.num_layers))
        self.transformer = nn.ModuleDict({"layers": layers})

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        mask = window_mask(x.shape[1], self.context, x.device)
        for layer in self.transformer["layers"]:
            x = layer(x, mask)
        return x.transpose(1, 2)


class Codec(nn.Module):
    """Encoder, split residual quantiser, decoder."""

    def __init__(self, cfg: CodecConfig):
        super().__init__()
        self.cfg = cfg
        dim = cfg.dimension
        self.encoder = SeanetEncoder(cfg)
        self.decoder = SeanetDecoder(cfg)
        self.encoder_transformer = CodecTransformer(cfg)
        self.decoder_transformer = CodecTransformer(cfg)
        down = CausalConv1d(dim, dim, 4, 2, bias=False, replicate=True)
        up = CausalConvTranspose1d(dim, dim, 2, groups=dim, bias=False)
        self.downsample = nn.ModuleDict({"conv": down})
        self.upsample = nn.ModuleDict({"convtr": up})
        self.quantizer = SplitResidualQuantizer(dim, cfg.codebook_dim, cfg.bins, cfg.n_q)

    def latent(self, wav: Tensor) -> Tensor:
        """[B, 1, 1920 F] samples -> [B, D, F] latent before the quantiser."""
        return self.downsample["conv"](self.encoder_transformer(self.encoder(wav)))

    def synthesize(self, latent: Tensor) -> Tensor:
        """[B, D, F] -> [B, 1, 1920 F]."""
        return self.decoder(self.decoder_transformer(self.upsample["convtr"](latent)))

    @torch.no_grad()
    def encode(self, wav: Tensor) -> Tensor:
        """[B, 1, T] samples, zero-padded to whole frames -> codes [B, n_q, F] int64.

        Long recordings go through the convolutions in pieces, which stay in the cache (more
        than twice as fast); the overlap covers the receptive field, so nothing changes.
        """
        wav = F.pad(wav, (0, -wav.shape[-1] % FRAME_SIZE))
        hop, parts, piece = math.prod(self.cfg.ratios), [], PIECE.get(wav.device.type, LONG_PIECE)
        for start in range(0, wav.shape[-1] // hop, piece):
            first = max(0, start - OVERLAP)
            part = self.encoder(wav[..., first * hop : (start + piece) * hop])
            parts.append(part[..., start - first :])
        latent = self.downsample["conv"](self.encoder_transformer(torch.cat(parts, -1)))
        return self.quantizer.encode(latent)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, n_q, F] -> [B, 1, 1920 F] samples."""
        return self.synthesize(self.quantizer.decode(codes))
