"""Recipes as data: which layers of a model are packed, and how, by name; the kinds of packing that MLX has."""

from __future__ import annotations

from typing import Any

BITS = (2, 3, 4, 5, 6, 8)
BITS_IN_WORDS = "2, 3, 4, 5, 6 or 8 (published: 4 and 8)"
GROUP_SIZES = (32, 64, 128)
# As published: 4 bits in groups of 32, 8 bits in groups of 64.
PUBLISHED = {4: 32, 8: 64}
DEFAULT_GROUP_SIZES = {2: 32, 3: 32, 4: 32, 5: 64, 6: 64, 8: 64}
# Float kinds have one form each: group and bits.
FLOAT_FORMS = {"mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
UNIFORM, MIXED = "uniform", "mixed"

_DEPTH = r"depformer\."
_TABLES = r"text_emb|audio_embs\.\d+|depformer\.slices\.\d+\.emb"
_HEADS = r"text_linear|depformer\.slices\.\d+\.linear_out|extra_heads\.\d+"
_CONDITIONS = r"condition_provider\.|.*\.cross_attention\."
# The first rule that matches a layer's path decides; a layer that none matches has the packing asked for. `mixed` is measured.
RECIPES: dict[str, list[dict[str, Any]]] = {
    UNIFORM: [],
    "heads-bf16": [{"layers": rf"({_TABLES}|{_HEADS})(\.|$)", "dense": True}],
    "depth-8bit": [{"layers": rf"({_DEPTH}|({_TABLES}|{_HEADS})(\.|$))", "bits": 8}],
    "depth-dense": [
        {"layers": rf"({_DEPTH}|{_CONDITIONS})", "dense": True},
        {"layers": rf"({_TABLES}|{_HEADS})(\.|$)", "bits": 8},
    ],
    MIXED: [],
}
# What a recipe keeps, and why: for the notes of commands and the cards of folders.
WORDS = {
    UNIFORM: "every layer alike, as the published package reads it",
    "heads-bf16": "tables and heads as they are",
    "depth-8bit": "the depth transformer, tables and heads at 8 bits: speech falls apart at fewer",
    "depth-dense": "the depth transformer and what hears the voice as they are, tables and heads at 8 bits: "
    "packed, speech gets thinner, then voices mix",
    MIXED: "bits where they were measured to count most",
}
# Kinds of models whose speech does not stand what that of the others does, as their users found out.
BY_KIND = {"personaplex": "depth-8bit", "tts": "depth-dense"}
