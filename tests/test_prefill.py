"""A prompt read in large passes leaves what the same tokens imposed step by step leave."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from toy import make_lm

from moshi_mlx.engine import prefill
from moshi_mlx.engine.prefill import Forced
from moshi_mlx.engine.step import Guidance, Hooks, Step
from moshi_mlx.engine.token_clock import UNGENERATED
from moshi_mlx.errors import InputError
from moshi_mlx.modules.sampling import Sampler

GREEDY, SAMPLED = Sampler(temp=0), Sampler(temp=0.9, top_k=10)


def random_frames(lm, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    text = rng.integers(0, lm.cfg.text_card, (n, 1))
    return np.concatenate([text, rng.integers(0, lm.cfg.card, (n, lm.n_q))], axis=1)


def stepped(step: Step, forced: Forced, seeds: list[int]) -> dict:
    """The same prompt, one ordinary step per frame, imposed through hooks."""
    delays, batch = step.lm.cfg.delays, len(seeds)
    own = slice(1, 1 + step.generated)
    state = step.init_state(seeds, step.lm.transformer.capacity() or 256)
    for position in range(forced.length):
        wanted = forced.tokens[:, position + 1]

        def impose(values):
            known, values = mx.array(values != UNGENERATED), mx.array(values)
            return lambda sampled: mx.where(known, values, sampled)

        given = [[int(forced.tokens[c, position + delays[c]]) for c in range(own.stop, len(delays))]] * batch
        state, _ = step.run(state, mx.array(given), hooks=Hooks(text=impose(wanted[:1]), audio=impose(wanted[own])))
        mx.eval(state)
    return state


def continuation(step: Step, state: dict, n: int = 6) -> np.ndarray:
    rng = np.random.default_rng(9)
    batch, frames = state["tokens"].shape[0], []
    for _ in range(n):
        given = mx.array(rng.integers(0, step.lm.cfg.card, (batch, step.clock.given)).astype(np.int32))
        state, out = step.run(state, given)
        frames.append(np.array(out.frame))
    return np.array(frames)


def same(step: Step, a: dict, b: dict) -> None:
    """Equal in everything a later step can see."""
    m = step.clock.max_delay
    np.testing.assert_array_equal(np.array(a["offset"]), np.array(b["offset"]))
    np.testing.assert_array_equal(np.array(a["tokens"])[:, :, m:], np.array(b["tokens"])[:, :, m:])
    np.testing.assert_array_equal(np.array(a["seed"]), np.array(b["seed"]))
    for (name, x), (_, y) in zip(tree_flatten(a["trunk"]), tree_flatten(b["trunk"]), strict=True):
        np.testing.assert_allclose(np.array(x), np.array(y), atol=2e-5, err_msg=name)


@pytest.mark.parametrize("chunk", [1, 2, 7, 512])
@pytest.mark.parametrize("length", [2, 5, 11, 40], ids="{} frames".format)
def test_equals_stepping(length, chunk, monkeypatch):
    """Shorter and longer than the window of 12, in passes of any length."""
    monkeypatch.setattr(prefill, "CHUNK", chunk)
    lm = make_lm()
    step = Step(lm, GREEDY, GREEDY, compile=False)
    forced = Forced(prefill.delayed(lm.cfg, random_frames(lm, length)))
    assert forced.length == length
    at_once, by_steps = prefill.run(step, forced, [0]), stepped(step, forced, [0])
    same(step, at_once, by_steps)
    np.testing.assert_array_equal(continuation(step, at_once), continuation(step, by_steps))


def test_batch_seeds_and_compilation():
    """Rows share the prompt and draw by their own seeds; the compiled step goes on from it."""
    lm = make_lm()
    step = Step(lm, SAMPLED, SAMPLED, compile=False)
    forced = Forced(prefill.delayed(lm.cfg, random_frames(lm, 9)))
    both = continuation(step, prefill.run(step, forced, [3, 4]))
    np.testing.assert_array_equal(both, continuation(step, stepped(step, forced, [3, 4])))
    assert (both[:, 0] != both[:, 1]).any()
    fast = Step(make_lm(), SAMPLED, SAMPLED, compile=True)
    np.testing.assert_array_equal(both, continuation(fast, prefill.run(fast, forced, [3, 4])))


def test_embeddings_stand_for_tokens():
    lm = make_lm()
    step = Step(lm, GREEDY, GREEDY, compile=False)
    tokens = prefill.delayed(lm.cfg, random_frames(lm, 9))
    whole = prefill.run(step, Forced(tokens), [0])
    embeddings = lm.embed(mx.array(tokens[None, :, :5]))[0]
    hidden = tokens.copy()
    hidden[:, :4] = UNGENERATED
    forced = Forced(hidden, embeddings)
    assert (forced.length, forced.embedded) == (9, 5)
    same(step, prefill.run(step, forced, [0]), whole)


def test_packed_rings():
    """Keys and values of 8 bits are packed before they are attended to, in a pass as in a step."""
    lm = make_lm(dim=64, num_heads=1, hidden_scale=4)
    step = Step(lm, GREEDY, GREEDY, compile=False, kv_bits=8)
    forced = Forced(prefill.delayed(lm.cfg, random_frames(lm, 9)))
    at_once, by_steps = prefill.run(step, forced, [0]), stepped(step, forced, [0])
    np.testing.assert_array_equal(continuation(step, at_once), continuation(step, by_steps))


def test_rings_grow_with_the_prompt():
    lm = make_lm(context=None)
    step = Step(lm, GREEDY, GREEDY, compile=False)
    forced = Forced(prefill.delayed(lm.cfg, random_frames(lm, 300)))
    state = prefill.run(step, forced, [0])
    assert int(state["trunk"]["position"].item()) == 300
    assert len(continuation(step, state)) == 6


def test_refusals():
    lm = make_lm()
    forced = Forced(prefill.delayed(lm.cfg, random_frames(lm, 9)))
    with pytest.raises(InputError, match="without guidance"):
        prefill.run(Step(lm, GREEDY, GREEDY, Guidance(3.0), compile=False), forced, [0])
    slow = make_lm(delays=[0, 0, 2, 2, 0, 2, 2])
    with pytest.raises(InputError, match="delays of at most one frame"):
        prefill.run(
            Step(slow, GREEDY, GREEDY, compile=False), Forced(prefill.delayed(slow.cfg, random_frames(slow, 9))), [0]
        )
    mixed = make_lm(delays=[0, 1, 0, 1, 0, 1, 1])
    with pytest.raises(InputError, match="free codebooks come before"):
        prefill.run(
            Step(mixed, GREEDY, GREEDY, compile=False), Forced(prefill.delayed(mixed.cfg, random_frames(mixed, 9))), [0]
        )
    with pytest.raises(InputError, match="at least one frame of tokens"):
        prefill.run(Step(lm, GREEDY, GREEDY, compile=False), Forced(forced.tokens[:, :5], mx.zeros((5, 32))), [0])
