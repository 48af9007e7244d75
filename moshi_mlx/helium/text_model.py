"""Helium, the text models (family.md section 4): loading them, and text that goes on from a prompt.

Files of `transformers` (helium-1-2b, which is a Llama, and helium-1-preview-2b) are mlx-lm's to load; files in Kyutai's own layout
hold the trunk of Moshi and are ours. Either way mlx-lm generates: it reads the prompt in one causal pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..checkpoint import loader
from ..checkpoint.files import Files
from ..checkpoint.loader import Loader
from ..checkpoint.places import Folder, Place, open_place
from ..checkpoint.weights_file import WeightsFile
from ..checkpoint.weights_writer import save_weights
from ..config.description import CheckpointConfig, is_foreign
from ..config.json_text import LARGEST_TOKENIZER, read_json
from ..config.presets import HELIUM_1_PREVIEW_2B
from ..config.reader import Reader
from ..engine.step import Step
from ..errors import CheckpointError, ConfigError, InputError, first_line, quoted
from ..machine import memory
from ..text import Detokenizer

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

    from ..models.lm_model import LmModel

ARCHITECTURES = ("helium", "llama")
# The one published repository in Kyutai's layout has no config.json.
PREVIEW_WEIGHTS, PREVIEW_TOKENIZER = "helium-1-preview-2b-bf16.safetensors", "tokenizer_spm_48k_multi6_2.model"
DEFAULT_NAME = "helium-1-preview"
BOS, EOS = 1, 2

Progress = Callable[[int, int], None]


class _Detokenizer(Protocol):
    """Text of tokens as they come."""

    def add(self, token: int) -> str: ...

    def finish(self) -> str: ...


@dataclass
class TextModel:
    """A loaded text model, ready on the thread that loaded it.

    `model(tokens [1, T], cache=...)` gives logits, as mlx-lm's models do; `window` is the number of positions it was trained on.
    """

    model: nn.Module
    source: str
    window: int
    bos: int
    eos: frozenset[int]
    encode: Callable[[str], list[int]]
    detokenizer: Callable[[], _Detokenizer]
    cache: Callable[[], list[Any]]

    def tokens(self, prompt: str) -> list[int]:
        """The prompt behind the beginning-of-text token. Raises `InputError` for one that does not fit the window."""
        ids = [self.bos, *self.encode(prompt)]
        if len(ids) >= self.window:
            raise InputError(
                f"the prompt has {len(ids)} tokens, the window of {self.source} {self.window}; shorten it to leave room for an answer."
            )
        return ids


# Generation -----------------------------------------------------------------------------------------------------


def generate_tokens(
    text: TextModel,
    prompt: list[int],
    max_tokens: int,
    sampler: Callable[[mx.array], mx.array] | None = None,
    progress: Progress | None = None,
) -> Iterator[int]:
    """Tokens that follow `prompt`, up to the end of the text, the window or `max_tokens`. Greedy without a sampler."""
    from mlx_lm.generate import generate_step

    room = min(max_tokens, text.window - len(prompt))
    steps = generate_step(
        mx.array(prompt),
        text.model,
        max_tokens=room,
        sampler=sampler,
        prompt_cache=text.cache(),
        prompt_progress_callback=progress,
    )
    for token, _ in steps:
        if token in text.eos:
            return
        yield int(token)


def generate(
    text: TextModel, prompt: str, max_tokens: int, sampler=None, progress: Progress | None = None
) -> Iterator[str]:
    """As `generate_tokens`, in whole characters."""
    out = text.detokenizer()
    for token in generate_tokens(text, text.tokens(prompt), max_tokens, sampler, progress):
        piece = out.add(token)
        if piece:
            yield piece
    rest = out.finish()
    if rest:
        yield rest


def quantize(text: TextModel, bits: int, group_size: int) -> None:
    """Pack the weights of a loaded dense model in place. Raises `InputError` if they are packed already."""
    if _is_packed(text.model):
        raise InputError(f"{text.source} is quantised already; leave out --quantize-bits.")

    def fits(_: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and module.weight.shape[-1] % group_size == 0

    nn.quantize(text.model, group_size, bits, class_predicate=fits)
    mx.eval(text.model.parameters())


def save(text: TextModel, path: Path) -> None:
    """The weights of a model in Kyutai's layout as one safetensors file. Raises `InputError` for those mlx-lm loaded."""
    if not isinstance(text.model, _Trunk):
        raise InputError(
            f"{text.source} is a checkpoint of transformers, whose weights alone say too little; "
            "python -m moshi_mlx.quantize makes a folder of it."
        )
    save_weights(path, dict(tree_flatten(text.model.lm.parameters())))


def _is_packed(model: nn.Module) -> bool:
    return any("scales" in module for _, module in model.named_modules())


# Loading --------------------------------------------------------------------------------------------------------


def load(
    model: str | Path | None = None,
    hf_repo: str | None = None,
    *,
    weights: str | None = None,
    tokenizer: str | None = None,
    progress: Progress | None = None,
) -> TextModel:
    """A text model from a folder or short name `model`, or a repository `hf_repo`; `weights` and `tokenizer` replace its files."""
    place: Place
    if model is None and hf_repo is None and weights is not None:
        place = Folder(Path(weights).parent)
    else:
        place = open_place(DEFAULT_NAME if model is None and hf_repo is None else model, hf_repo)
    config_path = place.find("config.json", optional=True)
    config = {} if config_path is None else read_json(config_path)
    if is_foreign(config):
        if weights is not None or tokenizer is not None:
            raise InputError(
                "--weights and --tokenizer replace files in Kyutai's layout; this checkpoint is one of transformers."
            )
        assert config_path is not None
        return _load_transformers(place, config_path.parent, config)
    return _load_kyutai(place, config, weights, tokenizer, progress)


def _load_kyutai(
    place: Place, config: dict, weights: str | None, tokenizer: str | None, progress: Progress | None
) -> TextModel:
    described = CheckpointConfig.from_dict(config or HELIUM_1_PREVIEW_2B)
    if described.lm.n_q or described.lm.dep_q:
        raise ConfigError(
            f"{place} is a speech model ({described.model_type}), not a text model. Use run_inference, stt or run_tts."
        )
    names = (described.moshi_name, described.tokenizer_name) if config else (PREVIEW_WEIGHTS, PREVIEW_TOKENIZER)
    found = Path(weights) if weights else place.named(names[0])
    pieces = Path(tokenizer) if tokenizer else place.named(names[1])
    assert found is not None
    loader = Loader(Files(str(place), described, found, None, None, pieces, place=place), with_codec=False)
    loaded = loader.load(progress)
    assert loaded.tokenizer is not None
    return from_lm(loaded.lm, str(place), loaded.tokenizer)


def from_lm(lm: LmModel, source: str, processor: SentencePieceProcessor) -> TextModel:
    """A text-only `LmModel` with its tokenizer."""
    lm.prepare()
    window = lm.cfg.transformer.context or 1 << 30
    return TextModel(
        _Trunk(lm), source, window, BOS, frozenset({EOS}), lambda text: list(processor.encode(text)),
        lambda: _Pieces(processor), lambda: [_State(lm)],
    )  # fmt: skip


class _Pieces:
    def __init__(self, processor: SentencePieceProcessor):
        self._text = Detokenizer(processor)

    def add(self, token: int) -> str:
        return self._text.feed(token)

    def finish(self) -> str:
        return self._text.flush()


class _State:
    """The trunk's state where mlx-lm keeps its caches."""

    def __init__(self, lm: LmModel):
        self._step = Step(lm, compile=False)
        self.value = self._step.init_state([0], self._step.capacities(1)[0])["trunk"]
        self.offset = 0

    @property
    def state(self) -> list[mx.array]:
        return list(dict(tree_flatten(self.value)).values())

    def with_room(self, length: int) -> dict:
        """The state, able to hold `length` more positions of the window."""
        value, self.value = self.value, {}
        return self._step.with_room(value, self.offset + length - 1)


class _Trunk(nn.Module):
    """A text-only `LmModel` with the call of mlx-lm's models."""

    def __init__(self, lm: LmModel):
        super().__init__()
        self.lm = lm

    def __call__(self, tokens: mx.array, cache: list[_State]) -> mx.array:
        [state] = cache
        before = state.with_room(tokens.shape[1])
        hidden, state.value = self.lm.trunk(self.lm.embed(tokens[:, None]), before)
        state.offset += tokens.shape[1]
        return self.lm.text_linear(hidden)


def _load_transformers(place: Place, folder: Path, config: dict) -> TextModel:
    import mlx_lm
    from mlx_lm.models.cache import make_prompt_cache

    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"{place} holds a {quoted(kind)} model; run_helium runs {' and '.join(ARCHITECTURES)} (Helium-1 2B is a llama)."
        )
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        path = place.find(name, optional=name != "tokenizer.json")
        if path is not None:
            # Whoever reads it again knows no bounds.
            read_json(path, LARGEST_TOKENIZER, CheckpointError)
    window = Reader(config, "config").take("max_position_embeddings", int, 4096, low=1)
    size = sum(_fetch_weights(place))
    memory.refuse_if_too_large(size + memory.OVERHEAD_BYTES, str(place), "Name a checkpoint of fewer bits")
    try:
        model, tokenizer = mlx_lm.load(str(folder), lazy=True, model_config=positions(config))[:2]
        mx.eval(_precision(model).parameters())
    except Exception as e:
        # Two packages read what the files say, each with exceptions of its own, down to bare ones.
        raise CheckpointError(f"{place} cannot be loaded: {first_line(e)}") from None
    _check_numbers(model, place)
    bos = tokenizer.bos_token_id
    return TextModel(
        model, str(place), window, config.get("bos_token_id", BOS) if bos is None else bos, frozenset(tokenizer.eos_token_ids),
        lambda text: list(tokenizer.encode(text, add_special_tokens=False)), lambda: _Segments(tokenizer.detokenizer),
        lambda: make_prompt_cache(model),
    )  # fmt: skip


def positions(config: dict) -> dict:
    """Rotary settings of a configuration under the names mlx-lm reads: transformers 5 writes `rope_parameters` instead.

    Without them a Llama would silently turn with another base.
    """
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return {}
    names = {"rope_theta": parameters.get("rope_theta", config.get("rope_theta"))}
    if parameters.get("rope_type", "default") != "default":
        names["rope_scaling"] = parameters
    return {name: value for name, value in names.items() if value is not None}


def _fetch_weights(place: Place) -> Iterator[int]:
    """Bytes of each weights file, which are on disk and whole after this."""
    index = place.find("model.safetensors.index.json", optional=True)
    names = ["model.safetensors"]
    if index is not None:
        names = sorted({str(v) for v in (read_json(index).get("weight_map") or {}).values()})
    for name in names:
        found = place.named(name)
        assert found is not None
        yield WeightsFile(found).nbytes


def _precision(model: nn.Module) -> nn.Module:
    """Dense weights in the type the device computes with; packed ones as they are."""
    if not _is_packed(model):
        model.set_dtype(loader.default_dtype())
    return model


def _check_numbers(model: nn.Module, place: Place) -> None:
    """What mlx-lm does not look at: one NaN, and nothing that is said means anything."""
    packed = _is_packed(model)
    for name, x in dict(tree_flatten(model.parameters())).items():
        usable = mx.all(mx.isfinite(x)).item() if mx.issubdtype(x.dtype, mx.floating) else packed
        if not usable:
            raise CheckpointError(
                f"{place} holds what are no weights in {name} (NaN, infinity or integers). The file is damaged; download it again."
            )


class _Segments:
    """mlx-lm's detokenizer."""

    def __init__(self, detokenizer: Any):
        self._out = detokenizer
        self._out.reset()

    def add(self, token: int) -> str:
        self._out.add_token(token)
        return self._out.last_segment

    def finish(self) -> str:
        self._out.finalize()
        return self._out.last_segment
