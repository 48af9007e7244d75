"""JSON objects of published configurations made into the dataclasses of `config` (lm.md section 1, mimi.md section 1)."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import ConfigError, quoted
from .parts import (
    GATINGS,
    NORMS,
    POSITIONS,
    DepFormerConfig,
    FuserConfig,
    LmConfig,
    LutConditionerConfig,
    MimiConfig,
    SeanetConfig,
    TensorConditionerConfig,
    TransformerConfig,
)
from .reader import LARGEST, MOST, MOST_BLOCKS, NUMBER, OPTIONAL_NUMBER, REQUIRED, Reader


def _conditioners(data: dict) -> dict[str, LutConditionerConfig | TensorConditionerConfig]:
    out: dict[str, LutConditionerConfig | TensorConditionerConfig] = {}
    for name, entry in data.items():
        where = f"config: conditioner {quoted(name)}"
        outer = Reader(entry, where)
        kind = outer.take("type", str, one_of=("lut", "tensor"))
        inner = Reader(outer.take(kind, dict), where)
        outer.finish()
        common = {
            "learn_padding": inner.take("learn_padding", bool, True),
            "force_linear": inner.take("force_linear", bool, True),
        }
        inner.ignore("pad_empty", "init_scale", "device", "output_dim")
        if kind == "tensor":
            out[name] = TensorConditionerConfig(dim=inner.take("dim", int, low=1), **common)
        else:
            n_bins = inner.take("n_bins", int, low=1)
            values = inner.take("possible_values", (list, type(None)), None)
            if values is not None and (len(values) > n_bins or any(not isinstance(v, str) for v in values)):
                raise ConfigError(
                    f"{where}: 'possible_values' should be at most {n_bins} strings, found {quoted(values)}."
                )
            out[name] = LutConditionerConfig(
                n_bins=n_bins,
                dim=inner.take("dim", int, low=1),
                tokenizer=inner.take("tokenizer", str, "noop", one_of=("noop",)),
                possible_values=values,
                **common,
            )
        inner.finish()
    return out


def _fuser(data: dict) -> FuserConfig:
    reader = Reader(data, "config: 'fuser'")
    if reader.take("prepend", list, []):
        raise ConfigError(
            "config: 'fuser' lists conditioners under 'prepend', which no published model uses and is not supported."
        )
    reader.ignore("prepend_pos_emb")
    cfg = FuserConfig(
        sum=list(reader.take("sum", list, [])),
        cross=list(reader.take("cross", list, [])),
        cross_attention_pos_emb=reader.take("cross_attention_pos_emb", bool, False),
        cross_attention_pos_emb_scale=float(reader.take("cross_attention_pos_emb_scale", NUMBER, 1.0)),
    )
    reader.finish()
    return cfg


def _check_fused(conditioners: Iterable[str], fuser: FuserConfig | None) -> None:
    """Every condition reaches the model: what is said by one that does not, a voice or a guidance, nobody would hear."""
    fused = () if fuser is None else (*fuser.sum, *fuser.cross)
    for name in conditioners:
        if name not in fused:
            raise ConfigError(
                f"config: 'conditioners' defines {quoted(name)}, but 'fuser' gives it to nothing; list it there under 'sum' or 'cross'."
            )


def read_lm(reader: Reader, model_type: str) -> LmConfig:
    """Take the language-model keys out of `reader` (lm.md 1.2 to 1.4); the caller finishes it."""
    take = reader.take
    dim = take("dim", int, 128, low=1)
    hidden_scale = take("hidden_scale", NUMBER, 4, low=0)
    # Everything a depth key inherits when it is absent is taken first.
    shared = {
        "layer_scale": take("layer_scale", OPTIONAL_NUMBER, None),
        "gating": take("gating", str, "none", one_of=GATINGS),
        "max_period": take("max_period", NUMBER, 10000, low=1),
        "kv_repeat": take("kv_repeat", int, 1, low=1),
    }
    num_layers = take("num_layers", int, low=1, high=MOST)
    norm = take("norm", str, "layer_norm", one_of=NORMS)
    if not take("causal", bool, True):
        raise ConfigError("config: 'causal' is false, but a streaming model has to be causal.")
    transformer = TransformerConfig(
        d_model=dim,
        num_heads=take("num_heads", int, 8, low=1),
        num_layers=num_layers,
        dim_feedforward=int(hidden_scale * dim),
        context=take("context", (int, type(None)), None, low=1),
        positional_embedding=take("positional_embedding", str, "sin", one_of=POSITIONS),
        norm=norm,
        cross_attention=take("cross_attention", bool, False),
        **shared,
    )
    _check_hidden(reader, "hidden_scale", transformer)
    n_q = take("n_q", int, 8, low=0, high=MOST)
    dep_q = take("dep_q", int, 8, low=0, high=MOST)
    depformer = _read_depformer(reader, dep_q, norm, num_layers, hidden_scale, shared)
    demux = take("demux_second_stream", bool, False)
    demux = take("demux_second_text_stream", bool, demux) or demux
    conditioners = _conditioners(take("conditioners", (dict, type(None)), None) or {})
    described = take("fuser", (dict, type(None)), None)
    fuser = None if described is None else _fuser(described)
    _check_fused(conditioners, fuser)
    # Training-only options and keys without effect in the reference implementation.
    reader.ignore(
        "gradient_checkpointing", "checkpointing", "same_initial", "device", "dtype", "positional_scale", "betas"
    )
    return LmConfig(
        transformer=transformer,
        depformer=depformer,
        n_q=n_q,
        card=take("card", int, 1024, low=1),
        text_card=take("text_card", int, 32000, low=1),
        text_in_vocab_size=take("text_in_vocab_size", int, 0, low=0),
        text_card_out=take("text_card_out", (int, type(None)), None, low=1),
        delays=reader.take_ints("delays"),
        conditioners=conditioners,
        fuser=fuser,
        demux_second_stream=demux,
        norm_emb=take("norm_emb", bool, False),
        bias_proj=take("bias_proj", bool, False),
        extra_heads_num_heads=take("extra_heads_num_heads", int, 0, low=0, high=MOST),
        extra_heads_dim=take("extra_heads_dim", int, 6, low=1),
        padding_token=take("existing_text_padding_id", int, 3, low=0),
        end_padding_token=take("existing_text_end_padding_id", int, 0, low=0),
        model_type=model_type,
    )


def _read_depformer(
    reader: Reader, dep_q: int, norm: str, num_layers: int, hidden_scale: float, shared: dict
) -> DepFormerConfig:
    """Depth transformer keys; all may be absent when `dep_q` is 0."""
    take = reader.take
    heads_default = 1 if dep_q == 0 else REQUIRED
    dim = take("depformer_dim", int, 256, low=1)
    num_heads = take("depformer_num_heads", int, heads_default, low=1)
    reader.ignore("depformer_causal", "depformer_context", "depformer_cross_attention")
    per_step = take("depformer_weights_per_step", bool, False)
    schedule = take("depformer_weights_per_step_schedule", (list, type(None)), None)
    if schedule is not None:
        if not per_step:
            raise ConfigError(
                "config: 'depformer_weights_per_step_schedule' is set, but 'depformer_weights_per_step' is false."
            )
        bad = any(not isinstance(w, int) or isinstance(w, bool) or not 0 <= w < dep_q for w in schedule)
        if bad or len(schedule) != dep_q:
            raise ConfigError(
                f"config: 'depformer_weights_per_step_schedule' should list dep_q = {dep_q} weight sets, found {quoted(schedule)}."
            )
        if len(set(schedule)) != max(schedule, default=-1) + 1:
            raise ConfigError(
                f"config: 'depformer_weights_per_step_schedule' should use every weight set from 0 up, found {quoted(schedule)}."
            )
    identity = list(range(dep_q))
    weight_sets = (schedule or identity) if per_step else [0] * dep_q
    multi_linear = take("depformer_multi_linear", bool, False)
    input_sets = (schedule or identity) if multi_linear else [0] * dep_q
    num_sets = max(weight_sets, default=-1) + 1
    if isinstance(reader.data.get("depformer_dim_feedforward"), list):
        feedforwards = reader.take_ints("depformer_dim_feedforward", low=1)
    else:
        feedforward = take("depformer_dim_feedforward", (int, type(None)), None, low=1)
        feedforwards = [int(hidden_scale * dim) if feedforward is None else feedforward] * num_sets
    if len(feedforwards) != num_sets and dep_q:
        raise ConfigError(
            f"config: 'depformer_dim_feedforward' lists {len(feedforwards)} sizes for {num_sets} depth weight sets."
        )
    gating = take("depformer_gating", str, shared["gating"], one_of=GATINGS)
    if dep_q and gating == "none" and per_step:
        raise ConfigError(
            "config: 'depformer_weights_per_step' needs a gated depth MLP, but 'depformer_gating' is 'none'."
        )
    transformer = TransformerConfig(
        d_model=dim,
        num_heads=num_heads,
        num_layers=take("depformer_num_layers", int, num_layers, low=1, high=MOST),
        dim_feedforward=feedforwards[0] if feedforwards else 0,
        positional_embedding=take("depformer_pos_emb", str, "sin", one_of=POSITIONS),
        norm=norm,
        gating=gating,
        layer_scale=take("depformer_layer_scale", OPTIONAL_NUMBER, shared["layer_scale"]),
        max_period=take("depformer_max_period", NUMBER, shared["max_period"], low=1),
        kv_repeat=take("depformer_kv_repeat", int, shared["kv_repeat"], low=1),
    )
    depformer = DepFormerConfig(
        transformer=transformer,
        num_slices=dep_q,
        weight_sets=weight_sets,
        input_sets=input_sets,
        feedforwards=list(feedforwards),
        weights_per_step=per_step,
        low_rank_embeddings=take("depformer_low_rank_embeddings", (int, type(None)), None, low=1),
        norm=take("depformer_norm", (str, type(None)), None, one_of=(*NORMS, None)),
    )
    for k in range(dep_q):
        _check_hidden(reader, "depformer_dim_feedforward", depformer.slice_transformer(k))
    return depformer


def _check_hidden(reader: Reader, key: str, cfg: TransformerConfig) -> None:
    """`key` gives the feed-forward size, from which the gating rule makes another."""
    if not 1 <= cfg.hidden <= LARGEST:
        raise ConfigError(f"{reader.where}: {key!r} makes MLPs {cfg.hidden} wide; expected 1 to {LARGEST}.")


def read_mimi(data: dict, where: str = "mimi config") -> MimiConfig:
    """Configuration of a codec from its JSON object (mimi.md 1.2)."""
    reader = Reader(data, where)
    seanet = _read_seanet(Reader(reader.take("seanet", dict), f"{where}: 'seanet'"))
    transformer = _read_mimi_transformer(Reader(reader.take("transformer", dict), f"{where}: 'transformer'"), seanet)
    quantizer = Reader(reader.take("quantizer", dict), f"{where}: 'quantizer'")
    codebook_dim = quantizer.take("dimension", int, low=1)
    for key in ("input_dimension", "output_dimension"):
        size = quantizer.take(key, int, seanet.dimension)
        if size != seanet.dimension:
            raise ConfigError(
                f"{where}: quantizer {key!r} ({size}) should equal seanet 'dimension' ({seanet.dimension})."
            )
    cfg = MimiConfig(
        seanet=seanet,
        transformer=transformer,
        sample_rate=reader.take("sample_rate", int, low=1),
        frame_rate=float(reader.take("frame_rate", NUMBER, low=1)),
        num_codebooks=quantizer.take("n_q", int, low=1, high=MOST),
        n_semantic=quantizer.take("n_q_semantic", int, 1, low=1),
        bins=quantizer.take("bins", int, low=2),
        codebook_dim=codebook_dim,
    )
    channels = reader.take("channels", int, 1)
    if channels != 1 or seanet.channels != 1:
        raise ConfigError(f"{where}: only mono codecs exist, 'channels' should be 1, found {channels}.")
    quantizer.ignore("q_dropout", "no_quantization_rate", "generator_seed")
    quantizer.finish()
    reader.ignore("renormalize", "encoder_frame_rate", "causal", "freeze_encoder", "upsample_channel_wise_bug")
    reader.ignore("resample_method", "torch_compile_encoder_decoder", "freeze_quantizer", "freeze_quantizer_level")
    reader.finish()
    return cfg


def _read_seanet(reader: Reader) -> SeanetConfig:
    take = reader.take
    ratios = tuple(reader.take_ints("ratios", low=1, most=MOST_BLOCKS))
    if not take("causal", bool, True):
        raise ConfigError(f"{reader.where}: 'causal' is false, but a streaming codec has to be causal.")
    take("activation", str, "ELU", one_of=("ELU",))
    take("norm", str, "none", one_of=("none", "weight_norm"))
    reader.ignore(
        "disable_norm_outer_blocks", "activation_params", "norm_params", "final_activation", "final_activation_params"
    )
    reader.ignore("lstm", "trim_right_ratio", "mask_fn", "mask_position")
    cfg = SeanetConfig(
        dimension=take("dimension", int, low=1),
        channels=take("channels", int, 1, low=1),
        n_filters=take("n_filters", int, low=1),
        n_residual_layers=take("n_residual_layers", int, low=0, high=MOST_BLOCKS),
        ratios=ratios,
        kernel_size=take("kernel_size", int, low=1),
        residual_kernel_size=take("residual_kernel_size", int, low=1),
        last_kernel_size=take("last_kernel_size", int, low=1),
        dilation_base=take("dilation_base", int, low=1),
        compress=take("compress", int, low=1),
        true_skip=take("true_skip", bool, True),
        pad_mode=take("pad_mode", str, "constant", one_of=("constant", "replicate")),
    )
    reader.finish()
    # Both grow with every block.
    channels, dilation = cfg.n_filters << len(ratios), cfg.dilation_base ** max(0, cfg.n_residual_layers - 1)
    if max(channels, dilation) > LARGEST:
        raise ConfigError(
            f"{reader.where}: {len(ratios)} ratios make {channels} channels, {cfg.n_residual_layers} residual layers a dilation of "
            f"{dilation}; expected at most {LARGEST} of each."
        )
    return cfg


def _read_mimi_transformer(reader: Reader, seanet: SeanetConfig) -> TransformerConfig:
    take = reader.take
    cfg = TransformerConfig(
        d_model=take("d_model", int, low=1),
        num_heads=take("num_heads", int, low=1),
        num_layers=take("num_layers", int, low=0, high=MOST),
        dim_feedforward=take("dim_feedforward", int, low=1),
        context=take("context", (int, type(None)), low=1),
        max_period=take("max_period", NUMBER, 10000, low=1),
        positional_embedding=take("positional_embedding", str, "rope", one_of=POSITIONS),
        norm=take("norm", str, "layer_norm", one_of=NORMS),
        gating=take("gating", str, "none", one_of=GATINGS),
        layer_scale=take("layer_scale", OPTIONAL_NUMBER, None),
        kv_repeat=take("kv_repeat", int, 1, low=1),
    )
    _check_hidden(reader, "dim_feedforward", cfg)
    if not take("causal", bool, True):
        raise ConfigError(f"{reader.where}: 'causal' is false, but a streaming codec has to be causal.")
    if take("input_dimension", int, seanet.dimension) != seanet.dimension:
        raise ConfigError(f"{reader.where}: 'input_dimension' should equal seanet 'dimension' ({seanet.dimension}).")
    if take("output_dimensions", list, [seanet.dimension]) != [seanet.dimension]:
        raise ConfigError(f"{reader.where}: 'output_dimensions' should be [{seanet.dimension}].")
    if cfg.d_model % cfg.num_heads:
        raise ConfigError(
            f"{reader.where}: 'd_model' ({cfg.d_model}) should be a multiple of 'num_heads' ({cfg.num_heads})."
        )
    reader.ignore("conv_layout")
    reader.finish()
    return cfg
