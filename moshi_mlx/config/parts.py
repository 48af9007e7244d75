"""Configuration of every part, built once from a checkpoint's `config.json`.

Keys and defaults are those of the published files (spec: lm.md section 1, mimi.md section 1). A key that is
unknown, missing or in contradiction with another is an error that names it; nothing is guessed. Derived numbers are
properties, so that a configuration changed by a script stays consistent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import ConfigError, quoted

NORMS = ("layer_norm", "layer_norm_f32", "rms_norm", "rms_norm_f32")
POSITIONS = ("rope", "rope_concat", "sin", "sin_rope", "none")
GATINGS = (
    "none", "silu", "gelu", "relu", "sigmoid", "tanh", "leaky_relu", "elu", "mish", "softsign", "identity",
)  # fmt: skip
# Each codebook sees the layers of the depth transformer with weights of its own; published models have 128 in all.
MOST_DEPTH_LAYERS = 4096
MODEL_TYPES = ("moshi", "hibiki", "stt", "tts", "personaplex")


# ----------------------------------------------------------------------------------------------------------------
# Language model
# ----------------------------------------------------------------------------------------------------------------


def gated_hidden(feedforward: int, dim: int) -> int:
    """Hidden width of a gated MLP (lm.md 1.3): 21/8 of dim when the feed-forward size is 4 * dim, else two thirds."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


@dataclass
class TransformerConfig:
    """One transformer stack.

    `context` is the attention window in positions, including the current one (None: unbounded). `dim_feedforward` is
    the size before the gating rule of `gated_hidden`. `max_seq_len` is accepted because scripts written for the
    published package set it; it has no effect, a ring holds exactly `context` positions.
    """

    d_model: int
    num_heads: int
    num_layers: int
    dim_feedforward: int
    context: int | None = None
    max_period: float = 10000.0
    positional_embedding: str = "rope"
    norm: str = "rms_norm_f32"
    gating: str = "silu"
    layer_scale: float | None = None
    kv_repeat: int = 1
    cross_attention: bool = False
    max_seq_len: int | None = None

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_heads // self.kv_repeat

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP: gated or plain."""
        if self.gating == "none":
            return self.dim_feedforward
        return gated_hidden(self.dim_feedforward, self.d_model)


@dataclass
class DepFormerConfig:
    """The depth transformer: one slice per generated codebook.

    `weight_sets[k]` and `input_sets[k]` say which set of layer weights, and which input projection, codebook k uses;
    slices of the same set share arrays. `feedforwards` has one entry per weight set of the file. `stored_slices`, if given, says
    that the file has more slices than are used; the last ones are left out.
    """

    transformer: TransformerConfig
    num_slices: int
    weight_sets: list[int]
    input_sets: list[int]
    feedforwards: list[int]
    weights_per_step: bool = True
    low_rank_embeddings: int | None = None
    norm: str | None = None
    stored_slices: int | None = None

    def slice_transformer(self, k: int) -> TransformerConfig:
        """Transformer configuration of slice `k`, whose feed-forward size may be its own."""
        values = dict(vars(self.transformer))
        values["dim_feedforward"] = self.feedforwards[self.weight_sets[k]]
        return TransformerConfig(**values)


@dataclass
class LutConditionerConfig:
    """A table of named conditions. With `possible_values` None the index is a hash of the text (lm.md section 7)."""

    n_bins: int
    dim: int
    tokenizer: str = "noop"
    possible_values: list[str] | None = None
    learn_padding: bool = True
    force_linear: bool = True


@dataclass
class TensorConditionerConfig:
    """A condition given as a tensor `[T, dim]`."""

    dim: int
    learn_padding: bool = True
    force_linear: bool = True


@dataclass
class FuserConfig:
    """Which conditioners are summed into the input and which are attended to (lm.md section 7)."""

    sum: list[str] = field(default_factory=list)
    cross: list[str] = field(default_factory=list)
    cross_attention_pos_emb: bool = False
    cross_attention_pos_emb_scale: float = 1.0


@dataclass
class LmConfig:
    """The language model: temporal transformer, depth transformer, streams and their delays.

    Channel 0 is text, channel 1 + i is audio codebook i; codebooks 0..dep_q-1 are generated, the others are given by
    the caller. `delays` has one entry per channel, in frames.
    """

    transformer: TransformerConfig
    depformer: DepFormerConfig
    n_q: int
    card: int
    text_card: int
    delays: list[int]
    text_card_out: int | None = None
    text_in_vocab_size: int = 0
    conditioners: dict[str, LutConditionerConfig | TensorConditionerConfig] = field(default_factory=dict)
    fuser: FuserConfig | None = None
    demux_second_stream: bool = False
    norm_emb: bool = False
    bias_proj: bool = False
    extra_heads_num_heads: int = 0
    extra_heads_dim: int = 6
    padding_token: int = 3
    end_padding_token: int = 0
    model_type: str = "moshi"
    # From the content of a `config.json`; put on by `description`, which reads it.
    from_config_dict: ClassVar[Callable[[dict], LmConfig]]

    def __post_init__(self) -> None:
        if self.text_card_out is None:
            self.text_card_out = self.text_card
        if not self.text_in_vocab_size:
            self.text_in_vocab_size = self.text_card + 1
        _check_lm(self)

    @property
    def dep_q(self) -> int:
        return self.depformer.num_slices

    @property
    def num_channels(self) -> int:
        return 1 + self.n_q

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    @property
    def initial_tokens(self) -> list[int]:
        """Token fed to each channel before its first frame."""
        return [self.text_card] + [self.card] * self.n_q

    @property
    def is_hibiki_zero(self) -> bool:
        """Hibiki-Zero: the translation model without a quality condition (family.md 3)."""
        return self.model_type == "hibiki" and "description" not in self.conditioners

    # Names of the published package.
    @property
    def generated_codebooks(self) -> int:
        return self.dep_q

    @property
    def other_codebooks(self) -> int:
        return self.n_q - self.dep_q

    @property
    def audio_codebooks(self) -> int:
        return self.n_q

    @property
    def audio_delays(self) -> list[int]:
        return self.delays[1:]

    @property
    def audio_vocab_size(self) -> int:
        return self.card + 1

    @property
    def text_out_vocab_size(self) -> int:
        assert self.text_card_out is not None
        return self.text_card_out

    @property
    def audio_padding_token(self) -> int:
        return self.card

    @property
    def audio_eos_token(self) -> int:
        return self.card - 1


def _check_lm(cfg: LmConfig) -> None:
    """Contradictions between keys, each named."""
    if len(cfg.delays) != cfg.num_channels:
        raise ConfigError(
            f"config: 'delays' should have 1 + n_q = {cfg.num_channels} entries (n_q is {cfg.n_q}), found {len(cfg.delays)}."
        )
    if cfg.dep_q > cfg.n_q:
        raise ConfigError(f"config: 'dep_q' ({cfg.dep_q}) cannot exceed 'n_q' ({cfg.n_q}).")
    layers = cfg.dep_q * cfg.depformer.transformer.num_layers
    if layers > MOST_DEPTH_LAYERS:
        raise ConfigError(
            f"config: 'dep_q' times 'depformer_num_layers' should be at most {MOST_DEPTH_LAYERS}, found {layers}."
        )
    stacks = [("", cfg.transformer)] + ([("depformer_", cfg.depformer.transformer)] if cfg.dep_q else [])
    for prefix, stack in stacks:
        if stack.d_model % stack.num_heads:
            raise ConfigError(
                f"config: '{prefix}dim' ({stack.d_model}) should be a multiple of '{prefix}num_heads' ({stack.num_heads})."
            )
        if stack.num_heads % stack.kv_repeat:
            raise ConfigError(
                f"config: '{prefix}num_heads' ({stack.num_heads}) should be a multiple of '{prefix}kv_repeat' ({stack.kv_repeat})."
            )
        if "rope" in stack.positional_embedding and stack.head_dim % 2:
            raise ConfigError(
                f"config: rotary positions need an even head size, '{prefix}dim' / heads is {stack.head_dim}."
            )
        if "sin" in stack.positional_embedding and (stack.d_model % 2 or stack.d_model < 4):
            raise ConfigError(
                f"config: sinusoidal positions need an even '{prefix}dim' of at least 4, found {stack.d_model}."
            )
    if cfg.padding_token >= cfg.text_card or cfg.end_padding_token >= cfg.text_card:
        raise ConfigError(f"config: the text padding ids should be below 'text_card' ({cfg.text_card}).")
    if cfg.fuser is None:
        return
    for kind in ("sum", "cross"):
        for name in getattr(cfg.fuser, kind):
            # A list: what a file names may be nothing that can be looked up.
            if name not in [*cfg.conditioners]:
                raise ConfigError(
                    f"config: 'fuser' lists the conditioner {quoted(name)} under {kind!r}, but 'conditioners' does not define it."
                )
    if cfg.fuser.cross and not cfg.transformer.cross_attention:
        raise ConfigError("config: 'fuser' lists cross conditioners, but 'cross_attention' is false.")


# ----------------------------------------------------------------------------------------------------------------
# Codec
# ----------------------------------------------------------------------------------------------------------------


@dataclass
class SeanetConfig:
    """Convolutional encoder and decoder of Mimi (mimi.md section 3). `ratios` are in decoder order."""

    dimension: int = 512
    channels: int = 1
    n_filters: int = 64
    n_residual_layers: int = 1
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    dilation_base: int = 2
    compress: int = 2
    true_skip: bool = True
    pad_mode: str = "constant"


@dataclass
class MimiConfig:
    """The codec. `num_codebooks` levels are held, the first `n_semantic` of them in the semantic quantiser."""

    seanet: SeanetConfig
    transformer: TransformerConfig
    sample_rate: int = 24000
    frame_rate: float = 12.5
    num_codebooks: int = 32
    n_semantic: int = 1
    bins: int = 2048
    codebook_dim: int = 256
    # From the JSON object of a codec; put on by `description`.
    from_dict: ClassVar[Callable[..., MimiConfig]]

    def __post_init__(self) -> None:
        hop = math.prod(self.seanet.ratios)
        stride = self.sample_rate / hop / self.frame_rate
        if stride != int(stride) or stride < 1:
            raise ConfigError(
                f"mimi config: sample rate {self.sample_rate} / prod(ratios) {hop} / frame rate {self.frame_rate} "
                "should be a whole number of latent steps per frame."
            )
        if self.transformer.d_model != self.seanet.dimension:
            raise ConfigError(
                f"mimi config: transformer 'd_model' ({self.transformer.d_model}) should equal seanet 'dimension' ({self.seanet.dimension})."
            )
        if self.num_codebooks < self.n_semantic:
            raise ConfigError(
                f"mimi config: at least {self.n_semantic} codebook(s) are needed, found {self.num_codebooks}."
            )

    @property
    def stride(self) -> int:
        """Latent steps per frame (2 in the published codec)."""
        return int(self.sample_rate / math.prod(self.seanet.ratios) / self.frame_rate)

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        return int(self.sample_rate / self.frame_rate)

    @property
    def channels(self) -> int:
        return self.seanet.channels

    # Names of the published package.
    @property
    def quantizer_nq(self) -> int:
        return self.num_codebooks

    @property
    def quantizer_bins(self) -> int:
        return self.bins

    @property
    def quantizer_dim(self) -> int:
        return self.codebook_dim
