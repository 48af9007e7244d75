"""The functions of Mimi alone: sound to codes, codes to sound."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from ..models.mimi_model import MimiModel
from .function import STATE, Arrays, Function, named, tree_of
from .plan import Plan, Start
from .weights import FileWeights


def codec_plan(mimi: MimiModel) -> Plan:
    """`encode`: pcm `[1, 1920]` -> codes `[1, K]`; `decode`: the other way. Both keep what they remember in one state."""
    weights = FileWeights({"mimi": mimi.step_weights()})
    like = {"encoder": mimi.init_encoder(), "decoder": mimi.init_decoder()}

    def encode(arrays: Arrays) -> tuple[Arrays, Any]:
        state = tree_of(STATE, arrays, like)
        with weights.replaced(arrays):
            codes, encoder = mimi.encode_chunk(arrays["pcm"][:, None], state["encoder"])
        return {"codes": codes[:, :, 0]}, {**state, "encoder": encoder}

    def decode(arrays: Arrays) -> tuple[Arrays, Any]:
        state = tree_of(STATE, arrays, like)
        with weights.replaced(arrays):
            pcm, decoder = mimi.decode_chunk(arrays["codes"][:, :, None], state["decoder"])
        return {"pcm": pcm[:, 0]}, {**state, "decoder": decoder}

    state = named(STATE, like)
    pcm, codes = mx.zeros((1, mimi.frame_size)), mx.zeros((1, mimi.num_codebooks), mx.int32)
    return Plan(
        functions=[
            Function("encode", encode, ["codes"], [{"pcm": pcm}]),
            Function("decode", decode, ["pcm"], [{"codes": codes}]),
        ],
        fixed=weights.arrays(),
        states=[state],
        starts=[Start("", state, 0)],
        facts={
            "audio": audio_facts(mimi),
            "tokens": {"codebooks": mimi.num_codebooks, "card": mimi.cfg.bins, "text_card": 0, "delays": []},
            "text": None,
        },
    )


def audio_facts(mimi: MimiModel) -> dict[str, Any]:
    """What a program has to know of the sound; `stride`: positions of the codec's transformers in a frame."""
    return {
        "sample_rate": mimi.sample_rate,
        "frame_size": mimi.frame_size,
        "frame_rate": mimi.frame_rate,
        "stride": mimi.cfg.stride,
    }
