"""Properties: whatever stands in a configuration, an index, a header or a tokenizer is a sentence or a model, in bounded time and memory."""

from __future__ import annotations

import json
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
import random_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_checkpoint import write_tokenizer
from sentencepiece import sentencepiece_model_pb2

from moshi_mlx.checkpoint import Loader
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.checkpoint.tokenizer_json import processor_of, read_tokenizer
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.config import CheckpointConfig, MimiConfig
from moshi_mlx.config.json_text import read_json
from moshi_mlx.config.transformers_config import mimi_config
from moshi_mlx.errors import CheckpointError, ConfigError, MoshiError, clean
from moshi_mlx.models.lm_model import LmModel
from moshi_mlx.models.mimi_model import MimiModel
from moshi_mlx.text import Detokenizer

ESCAPES = "\x1b[31m\x1b]0;owned\x07\u202e\u2028\ud800\x9b2J"
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    st.sampled_from([0, 1, -1, 2, 1024, 1 << 20, 1 << 40, 10**30, 0.5, 1e300, -1e300, "rope", "sin", "none", "silu", "lut", ESCAPES]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def mutated(base: dict, draw) -> dict:
    """`base` with some values, also deep ones, replaced, removed or added."""
    data = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(1, 4))):
        at, key = data, draw(st.sampled_from(sorted(data)))
        while isinstance(at[key], dict) and at[key] and draw(st.booleans()):
            at = at[key]
            key = draw(st.sampled_from(sorted(at)))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add", "scale"]))
        if kind == "remove":
            del at[key]
        elif kind == "add":
            at[draw(st.text(max_size=8))] = draw(VALUES)
        elif kind == "scale" and isinstance(at[key], int):
            at[key] = at[key] * draw(st.sampled_from([0, -1, 2, 1000, 10**6, 10**12]))
        else:
            at[key] = draw(VALUES)
        if not data:
            break
    return data


class Bounded:
    """A block that may raise `MoshiError` and nothing else, with a short message, within 5 seconds."""

    def __enter__(self):
        self.start = time.process_time()

    def __exit__(self, kind, error, _):
        assert time.process_time() - self.start < 5
        if error is None:
            return False
        if not isinstance(error, MoshiError):
            return False
        assert len(str(error).encode("utf-8", "surrogatepass")) <= 2048
        assert clean(str(error)) == str(error)
        return True


SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def base(tiny_checkpoint):
    return tiny_checkpoint


def any_config(data, tiny):
    from random_checkpoint import TINY_HIBIKI_ZERO, TINY_LM, TINY_STT, TINY_TTS

    whole = {
        **data.draw(st.sampled_from([TINY_LM, TINY_STT, TINY_TTS, TINY_HIBIKI_ZERO])),
        "moshi_name": "model.safetensors",
        "lora": False,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in tiny.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "config.json").unlink()
        text = json.dumps(mutated(whole, data.draw), ensure_ascii=True)
        (folder / "config.json").write_bytes(damaged(text.encode(), data.draw))
        with Bounded():
            Loader(locate(folder)).estimate()


def damaged(content: bytes, draw) -> bytes:
    """`content`, sometimes cut or with bytes changed."""
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "byte", "bom", "tail"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    return {
        "whole": content, "cut": content[:at], "byte": content[:at] + draw(st.binary(max_size=3)) + content[at + 1 :], "bom": b"\xef\xbb\xbf" + content,
        "tail": content + draw(st.binary(max_size=3)),
    }[kind]  # fmt: skip


def any_codec(data, tiny):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "mimi.json"
        path.write_bytes(damaged(json.dumps(mutated(random_checkpoint.TINY_MIMI, data.draw)).encode(), data.draw))
        with Bounded():
            codec_of(read_json(path))


def any_index(data, tiny):
    names = list(WeightsFile(tiny / "model.safetensors"))[:6]
    whole = {"metadata": {"total_size": 5}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.safetensors").symlink_to(tiny / "model.safetensors")
        (folder / "m.index.json").write_bytes(damaged(json.dumps(mutated(whole, data.draw)).encode(), data.draw))
        with Bounded():
            WeightsFile(folder / "m.index.json")


def any_header(data, tiny):
    whole = {
        "__metadata__": {"format": "mlx"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "text_emb.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "w.safetensors"
        text = damaged(json.dumps(mutated(whole, data.draw)).encode(), data.draw)
        length = data.draw(st.sampled_from([len(text)] * 8 + [0, 7, 1 << 40, 2**64 - 1, len(text) + 1]))
        path.write_bytes(struct.pack("<Q", length) + text + bytes(32))
        with Bounded():
            file = WeightsFile(path)
            for tensor in file:
                mx.eval(file.array(tensor))


def any_tokenizer(data, tiny):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "tokenizer.json"
        path.write_bytes(damaged(json.dumps(mutated(FAST, data.draw)).encode(), data.draw))
        with Bounded():
            read_tokenizer(path)


FAST = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 1, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {
        "type": "Unigram", "unk_id": 0, "byte_fallback": False,
        "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["\u2581", -2.0], *([c, -3.0 - i / 10] for i, c in enumerate("abcdefghijklmnopqrstuvwxyz"))],
    },
}  # fmt: skip
KINDS = {f.__name__: f for f in (any_config, any_codec, any_index, any_header, any_tokenizer)}


@pytest.mark.parametrize("kind", KINDS)
def test_any_json_is_a_sentence_or_a_model(kind, base):
    @SETTINGS
    @given(st.data())
    def check(data):
        KINDS[kind](data, base)

    check()


WORST = [0, -1, 0.0, 5e-324, 1e-9, 0.3, 1e9, 1e308, 2**20, 2**63, 10**400, -(2**20), True, None, "", [], [0], {}]


def places_in(value: object, *way: str | int) -> Iterator[tuple[str | int, ...]]:
    """The ways to all numbers of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, found in inner:
        yield from places_in(found, *way, key)
    if isinstance(value, (int, float)):
        yield way


def worsened(whole: dict) -> Iterator[dict]:
    """Copies of `whole`, in each of which one number is one of the worst values."""
    for *way, last in places_in(whole):
        for worst in WORST:
            data = json.loads(json.dumps(whole))
            at = data
            for key in way:
                at = at[key]
            at[last] = worst
            yield data


def codec_of(data: dict) -> None:
    MimiModel(MimiConfig.from_dict(data))


CODEC_OF_TRANSFORMERS = {
    "model_type": "mimi", "sampling_rate": 24000, "frame_rate": 12.5, "audio_channels": 1, "hidden_size": 32, "num_filters": 8,
    "num_residual_layers": 1, "upsampling_ratios": [8, 6, 5, 4], "kernel_size": 7, "last_kernel_size": 3, "residual_kernel_size": 3,
    "dilation_growth_rate": 2, "compress": 2, "codebook_size": 64, "codebook_dim": 16, "num_quantizers": 8, "num_semantic_quantizers": 1,
    "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
    "sliding_window": 10, "rope_theta": 10000.0, "layer_scale_initial_scale": 0.01, "vector_quantization_hidden_dimension": 16,
    "upsample_groups": 32,
}  # fmt: skip
NUMBERS_OF = {
    "codec": (random_checkpoint.TINY_MIMI, codec_of),
    "codec of transformers": (CODEC_OF_TRANSFORMERS, lambda data: codec_of(mimi_config(data))),
    **{
        kind: (getattr(random_checkpoint, f"TINY_{kind}"), lambda data: LmModel(CheckpointConfig.from_dict(data).lm))
        for kind in ("LM", "STT", "TTS", "HIBIKI", "HIBIKI_ZERO", "PERSONAPLEX")
    },
}


@pytest.mark.parametrize("kind", NUMBERS_OF)
def test_any_number_at_its_worst(kind):
    """Each number of a configuration, also inside of lists, is refused in a sentence or gives a model."""
    whole, build = NUMBERS_OF[kind]
    build(json.loads(json.dumps(whole)))
    for data in worsened(whole):
        with Bounded():
            build(data)


@pytest.mark.parametrize(
    "changes",
    [{"n_filters": 2**20, "ratios": [1] * 12 + [8, 6, 5, 4]}, {"dilation_base": 2**20, "n_residual_layers": 3}],
)
def test_sizes_that_grow_with_every_block(changes):
    codec = {**random_checkpoint.TINY_MIMI, "seanet": {**random_checkpoint.TINY_MIMI["seanet"], **changes}}
    with pytest.raises(ConfigError, match="expected at most 1048576 of each"):
        codec_of(codec)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_json_for_long(kind, base):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @LONG
    @given(st.data())
    def check(data):
        KINDS[kind](data, base)

    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000


def test_a_tokenizer_that_its_own_package_gives_up_on(tmp_path):
    """A panic of Rust is no `Exception`."""
    pieces = ["<unk>", "<s>", "\u2581", "a", "b", "ab"]
    bpe = {"type": "BPE", "unk_token": "<unk>", "continuing_subword_prefix": "######", "merges": ["a b"]}
    model = {**bpe, "vocab": {piece: i for i, piece in enumerate(pieces)}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**FAST, "model": model}))
    with pytest.raises(CheckpointError, match="tokenizer.json is not a tokenizer"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_a_sentencepiece_model_whose_fault_is_no_text(tmp_path):
    whole = (Path(__file__).parent / "goldens" / "system" / "question_a" / "tokenizer.model").read_bytes()
    (tmp_path / "t.model").write_bytes(whole.replace(b"<0x41>", b"<0x\xd21>"))
    with pytest.raises(CheckpointError, match="t.model is not a sentencepiece model"):
        read_tokenizer(tmp_path / "t.model")


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [("▁deep", b"\xe2\x96\x81de\xffp", r"de\\xffp"), ("▁", b"\xe2\x96\xc1", r"\\x96\\xc1"), (" ⁇ ", b" \xe2\x81\xc7 ", r"\\xe2\\x81\\xc7")],
    ids=["a piece", "the mark of a word", "what stands for an unknown piece"],
)  # fmt: skip
def test_a_sentencepiece_model_with_a_piece_that_is_no_text(tmp_path, old, new, shown):
    """Sentencepiece takes it, and would give it up amid a transcript."""
    model = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    model.trainer_spec.byte_fallback, model.trainer_spec.unk_surface = True, " ⁇ "
    for piece, kind in [
        ("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL), ("<pad>", kinds.CONTROL),
        *((f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)), ("▁", kinds.NORMAL), ("▁deep", kinds.NORMAL),
    ]:  # fmt: skip
        model.pieces.add(piece=piece, type=kind)
    whole = model.SerializeToString()
    (tmp_path / "t.model").write_bytes(whole)
    assert read_tokenizer(tmp_path / "t.model") == whole
    at = whole.rindex(old.encode()) if old != "▁" else whole.index(old.encode())
    (tmp_path / "t.model").write_bytes(whole[:at] + new + whole[at + len(new) :])
    with pytest.raises(CheckpointError, match=f"t.model is damaged: its piece b.*{shown}.* is not UTF-8"):
        read_tokenizer(tmp_path / "t.model")


def test_any_bytes_as_a_sentencepiece_model(tmp_path):
    write_tokenizer(tmp_path / "t.model", 60)
    whole = (tmp_path / "t.model").read_bytes()

    @SETTINGS
    @given(st.data())
    def check(data):
        path = tmp_path / "d.model"
        path.write_bytes(damaged(whole, data.draw))
        with Bounded():
            processor = processor_of(read_tokenizer(path))
            text = Detokenizer(processor)
            assert all(isinstance(text.feed(token), str) for token in range(processor.vocab_size()))

    check()
