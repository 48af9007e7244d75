"""Configurations: unknown, missing and contradictory keys are errors that name them; published ones load."""

from __future__ import annotations

import pytest
from toy import LM

from moshi_mlx.config import presets
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.config.json_text import read_json
from moshi_mlx.errors import ConfigError
from moshi_mlx.models import LmConfig, config1b_202412, config1b_202412_16rvq, config_helium_1_preview_2b, config_v0_1

LUT = {
    "description": {"type": "lut", "lut": {"n_bins": 31, "dim": 16, "tokenizer": "noop", "possible_values": ["good"]}}
}


def parse(**changes) -> CheckpointConfig:
    return CheckpointConfig.from_dict({k: v for k, v in {**LM, **changes}.items() if v != "absent"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dimm": 3}, "unknown key 'dimm'.*Did you mean 'dim'"),
        ({"something_new": 1}, "unknown key 'something_new'"),
        ({"num_layers": "absent"}, "lacks the required key 'num_layers'"),
        ({"delays": "absent"}, "lacks the required key 'delays'"),
        ({"depformer_num_heads": "absent"}, "'depformer_num_heads'"),
        ({"dim": "32"}, "'dim' should be int"),
        ({"dim": True}, "'dim' should be int"),
        ({"dim": 0}, "'dim' should be at least 1"),
        ({"dim": 10**9}, "'dim' should be at most 1048576"),
        ({"num_layers": 10**6}, "'num_layers' should be at most 1024"),
        ({"dim": "absent"}, "lacks the required key 'dim'"),
        ({"max_period": float("nan")}, "'max_period' should be a finite number"),
        ({"delays": [0, 1]}, "'delays' should have 1 \\+ n_q = 7 entries"),
        ({"delays": [0, 0, 1, 1, 0, 1, -1]}, "'delays' should be a list of integers"),
        ({"dep_q": 7, "n_q": 6}, "'dep_q' \\(7\\) cannot exceed"),
        ({"num_heads": 3}, "multiple of 'num_heads'"),
        ({"kv_repeat": 3, "depformer_kv_repeat": 1}, "multiple of 'kv_repeat'"),
        ({"norm": "batch_norm"}, "'norm' should be one of"),
        ({"positional_embedding": "alibi"}, "'positional_embedding' should be one of"),
        ({"causal": False}, "'causal' is false"),
        ({"depformer_weights_per_step_schedule": [0, 1]}, "should list dep_q = 3"),
        ({"depformer_weights_per_step_schedule": [0, 2, 2]}, "every weight set from 0 up"),
        ({"depformer_weights_per_step_schedule": [0, 1, 2**70]}, "should list dep_q = 3 weight sets"),
        ({"depformer_norm": "batch_norm"}, "'depformer_norm' should be one of .*, null"),
        ({"depformer_dim_feedforward": [66, 66]}, "2 sizes for 3"),
        ({"model_type": "llama"}, "'model_type' should be one of"),
        ({"fuser": {"sum": ["speed"]}}, "lists the conditioner 'speed'"),
        ({"fuser": {"sum": [["speed"]]}}, "lists the conditioner \\['speed'\\]"),
        ({"fuser": {"prepend": ["x"]}}, "'prepend'"),
        (
            {"conditioners": {"x": {"type": "lut", "lut": {"n_bins": 1, "dim": 4, "possible_values": ["a", "b"]}}}},
            "at most 1 strings",
        ),
        ({"conditioners": LUT, "fuser": {"cross": ["description"]}}, "'cross_attention' is false"),
        ({"conditioners": {"x": {"type": "image"}}}, "'type' should be one of"),
        ({"existing_text_padding_id": 30}, "padding ids"),
        ({"quantization": {"bits": 4}}, "'quantization' should say 'group_size'"),
        (
            {"hidden_size": 8, "dim": "absent", "model_type": "bert"},
            "transformers configuration of the model_type 'bert'",
        ),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


SPEAKING = {
    "dep_q": 3, "cross_attention": True, "model_type": "tts", "tts_config": {"audio_delay": 1.28},
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 16}},
        "cfg": {"type": "lut", "lut": {"n_bins": 7, "dim": 4, "possible_values": ["1.0", "2.0"]}},
    },
    "fuser": {"sum": ["cfg"], "cross": ["speaker_wavs"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("fuser", "name"),
    [
        ("absent", "speaker_wavs"),
        (None, "speaker_wavs"),
        ({}, "speaker_wavs"),
        ({"sum": ["cfg"], "cross": []}, "speaker_wavs"),
        ({"cross": ["speaker_wavs"]}, "cfg"),
    ],
)
def test_a_condition_that_nobody_hears_is_refused(fuser, name):
    """Two voices would speak with the same sound."""
    parse(**SPEAKING)
    with pytest.raises(ConfigError, match=f"'conditioners' defines '{name}', but 'fuser' gives it to nothing"):
        parse(**{**SPEAKING, "fuser": fuser})
    with pytest.raises(ConfigError, match="defines 'description', but 'fuser' gives it to nothing"):
        parse(conditioners=LUT, model_type="hibiki")


@pytest.mark.parametrize("values", [[], ["two"], ["1.0", "two"], ["nan"], ["inf"], ["2"], ["2.00"], ["-1.0"], ["1e0"]])
def test_guidance_that_is_no_number_is_refused(values):
    """What the commands give is a number with one decimal."""
    guidance = {"type": "lut", "lut": {"n_bins": 7, "dim": 4, "possible_values": values}}
    conditioners = {**SPEAKING["conditioners"], "cfg": guidance}
    with pytest.raises(ConfigError, match="'cfg': 'possible_values' should be guidance coefficients with one decimal"):
        parse(**{**SPEAKING, "conditioners": conditioners})
    # Only a text-to-speech model is told a guidance by that name.
    parse(**{**SPEAKING, "conditioners": conditioners, "tts_config": "absent", "model_type": "moshi"})


@pytest.mark.parametrize(("name", "kind"), [("speaker_wavs", "tensor"), ("cfg", "lut"), ("control", "lut")])
def test_conditions_of_another_kind_are_refused(name, kind):
    others = {
        "lut": {"type": "tensor", "tensor": {"dim": 4}},
        "tensor": {"type": "lut", "lut": {"n_bins": 1, "dim": 4}},
    }
    fuser = {"sum": [], "cross": ["speaker_wavs", "cfg", "control"]}
    conditioners = {**SPEAKING["conditioners"], "control": {"type": "lut", "lut": {"n_bins": 1, "dim": 4}}}
    parse(**{**SPEAKING, "conditioners": conditioners, "fuser": fuser})
    with pytest.raises(ConfigError, match=f"'{name}' of a text-to-speech model should be of the type '{kind}'"):
        parse(**{**SPEAKING, "conditioners": {**conditioners, name: others[kind]}, "fuser": fuser})


def test_defaults_are_those_of_the_specification():
    lm = CheckpointConfig.from_dict({"dim": 128, "num_layers": 1, "n_q": 0, "dep_q": 0, "delays": [0]}).lm
    t = lm.transformer
    assert (t.num_heads, t.norm, t.gating, t.positional_embedding, t.max_period, t.context) == (
        8,
        "layer_norm",
        "none",
        "sin",
        10000,
        None,
    )
    assert (t.hidden, lm.card, lm.text_card, lm.padding_token, lm.end_padding_token) == (512, 1024, 32000, 3, 0)


def test_depth_keys_inherit_from_the_trunk():
    cfg = parse(
        num_layers=5, depformer_num_layers="absent", kv_repeat=2, layer_scale=0.1, depformer_layer_scale="absent"
    ).lm
    depth = cfg.depformer.transformer
    assert (depth.num_layers, depth.kv_repeat, depth.layer_scale, depth.context) == (5, 2, 0.1, None)


@pytest.mark.parametrize(
    ("scale", "dim", "hidden"), [(4.125, 4096, 11264), (4.125, 1024, 2816), (4, 32, 84), (6, 2048, 8192)]
)
def test_hidden_size_rule(scale, dim, hidden):
    assert parse(hidden_scale=scale, dim=dim, num_heads=8).lm.transformer.hidden == hidden


def test_published_models():
    moshi = config_v0_1()
    assert (moshi.transformer.d_model, moshi.n_q, moshi.dep_q, moshi.max_delay) == (4096, 16, 8, 1)
    assert (moshi.text_in_vocab_size, moshi.text_out_vocab_size, moshi.audio_vocab_size, moshi.audio_padding_token) == (
        32001,
        32000,
        2049,
        2048,
    )
    assert (moshi.generated_codebooks, moshi.other_codebooks, moshi.audio_delays) == (8, 8, ([0] + [1] * 7) * 2)
    assert config1b_202412().text_card == 48000
    assert config1b_202412_16rvq().dep_q == 16
    helium = config_helium_1_preview_2b()
    assert (helium.n_q, helium.dep_q, helium.text_in_vocab_size, helium.transformer.hidden) == (0, 0, 48000, 7040)


def test_parameter_count_of_moshi_7b():
    """The structure has the published number of parameters; nothing of it is evaluated."""
    from mlx.utils import tree_flatten

    from moshi_mlx.models import Lm

    assert sum(p.size for _, p in tree_flatten(Lm(config_v0_1()).parameters())) == 7_687_729_152 + 7 * 6 * 2 * 1024


def test_scripts_may_set_max_seq_len():
    cfg = LmConfig.from_config_dict(LM)
    cfg.transformer.max_seq_len = cfg.transformer.context
    assert cfg.transformer.context == 12


def test_generation_defaults_accept_both_spellings():
    assert parse(lm_gen_config={"temp": 0.6, "text_temp": 0.6}).generation.temp_text == 0.6
    assert parse(lm_gen_config={"temp_text": 0.4, "unknown": 1}).generation.temp_text == 0.4
    assert parse().generation.top_k == 250


def test_a_config_without_a_model_is_moshi_7b():
    cfg = CheckpointConfig.from_dict({"moshi_name": "model.q4.safetensors"})
    assert cfg.lm.transformer.d_model == 4096
    assert cfg.moshi_name == "model.q4.safetensors"
    assert cfg.mimi_name == presets.MIMI_NAME


def test_unreadable_files(tmp_path):
    for content, message in ((b"{", "not valid JSON"), (b"[1]", "JSON object"), (b"\xff\xff", "it is not text")):
        path = tmp_path / "config.json"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_json(path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_json(tmp_path / "nothing.json")
    with pytest.raises(ConfigError, match="is a folder; a file is expected"):
        read_json(tmp_path)
