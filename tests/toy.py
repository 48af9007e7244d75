"""Small models with random weights, built without files."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from moshi_mlx.config import MimiConfig, presets
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.models.lm import Lm
from moshi_mlx.models.mimi_model import MimiModel

LM = {
    **presets.MOSHI_7B,
    "dim": 32, "num_heads": 2, "num_layers": 2, "context": 12, "card": 24, "text_card": 30, "n_q": 6, "dep_q": 3,
    "delays": [0, 0, 1, 1, 0, 1, 1],
    "depformer_dim": 16, "depformer_num_heads": 2, "depformer_num_layers": 1, "depformer_dim_feedforward": 66,
}  # fmt: skip
MIMI = {
    **presets.MIMI_V0_1,
    "seanet": {**presets.MIMI_V0_1["seanet"], "dimension": 16, "n_filters": 2},
    "transformer": {
        **presets.MIMI_V0_1["transformer"], "d_model": 16, "num_heads": 2, "num_layers": 2, "dim_feedforward": 32, "context": 10,
    },
    "quantizer": {"dimension": 8, "n_q": 4, "bins": 24},
}  # fmt: skip


def randomise(module, seed: int):
    """Fill a module with values that keep activations at order one."""
    rng = np.random.default_rng(seed)
    values = []
    for name, p in tree_flatten(module.parameters()):
        x = rng.standard_normal(p.shape).astype(np.float32)
        if "norm" in name or name.endswith(".scale"):
            x = 1 + 0.1 * x
        elif p.ndim > 1 and "emb" not in name and "codebooks" not in name:
            # Kernels of the codec have their outputs last, matrices have them first.
            fan_in = np.prod(p.shape[:-1]) if p.ndim == 3 else p.shape[-1]
            x = 1.5 * x / np.sqrt(fan_in)
        values.append((name, mx.array(x)))
    module.update(tree_unflatten(values))
    mx.eval(module.parameters())
    return module


def make_lm(seed: int = 0, **changes) -> Lm:
    return randomise(Lm(CheckpointConfig.from_dict({**LM, **changes}).lm), seed)


def make_mimi(seed: int = 0, **changes) -> MimiModel:
    return randomise(MimiModel(MimiConfig.from_dict({**MIMI, **changes})), seed)
