"""Samplers draw what they should, and only that."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.errors import InputError
from moshi_mlx.modules.sampling import Sampler, choose_by_row, gumbel, row_values


def draws(sampler: Sampler, logits: np.ndarray, count: int) -> np.ndarray:
    rows = mx.broadcast_to(mx.array(logits), (count, logits.size))
    noise = mx.random.gumbel((count, logits.size), key=mx.random.key(3))
    return np.array(sampler.choose(rows, noise))


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(temp=0.7, top_p=0, top_k=5),
        Sampler(temp=1.3, top_p=0.8),
        Sampler(temp=1, top_p=0, min_p=0.1),
        Sampler(temp=1, top_p=0),
    ],
)
def test_frequencies_follow_the_distribution(sampler):
    logits = np.random.default_rng(0).standard_normal(20).astype(np.float32) * 2
    expected = np.array(mx.softmax(sampler.kept(mx.array(logits)[None]), axis=-1))[0]
    got = np.bincount(draws(sampler, logits, 40000), minlength=20) / 40000
    assert np.abs(got - expected).max() < 0.012
    assert (got[expected == 0] == 0).all()


def test_which_entries_are_kept():
    p = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    logits = mx.log(mx.array(p, mx.float32))[None]

    def kept(**options):
        return np.isfinite(np.array(Sampler(temp=1, **{"top_p": 0, **options}).kept(logits)))[0].sum()

    assert kept(top_k=2) == 2
    assert kept(top_k=99) == 5
    assert kept(top_k=0) == 5
    # An entry stays while what lies before it is at most top_p.
    assert kept(top_p=0.51) == 2
    assert kept(top_p=0.74) == 2
    assert kept(top_p=0.76) == 3
    assert kept(min_p=0.2) == 3
    assert kept(min_p=0.9, min_tokens_to_keep=4) == 4
    # top_k wins over top_p.
    assert kept(top_k=4, top_p=0.5) == 4


def test_greedy_takes_the_first_of_equals():
    assert Sampler(temp=0).choose(mx.array([[1.0, 3.0, 3.0]]), None).item() == 1


@pytest.mark.parametrize("temp", [0, 1e-45, 1e-40, 1e-38, 1e-37, 1e-31, 1e-20])
def test_hardly_any_temperature_is_none(temp):
    """Logits divided by it would be infinite, and those the same."""
    sampler, logits = Sampler(temp=temp, top_p=0), mx.array([[1.0, 29.0, 30.0, -4.0, 5.0]])
    noise = mx.array([[3.0, 2.0, -1.0, 0.5, 0.0]])
    assert sampler.choose(logits, noise).item() == 2
    assert choose_by_row(logits, row_values([sampler]), noise).item() == 2


def test_logit_bias():
    assert Sampler(temp=0, logit_bias={2: 5.0}).choose(mx.array([[1.0, 3.0, 0.0]]), None).item() == 2


def test_call_returns_log_probabilities_of_each_row():
    token, logprobs = Sampler(temp=0)(mx.array([[0.0, 1.0], [5.0, 5.0]]))
    assert token.tolist() == [1, 0]
    np.testing.assert_allclose(np.exp(np.array(logprobs)).sum(axis=-1), 1, atol=1e-6)


def test_noise_of_a_row_does_not_depend_on_the_batch():
    seeds = mx.array(np.array([4, 9, 4], np.uint32))
    step = mx.array(17, mx.int32)
    together = np.array(gumbel(seeds, step, 50))
    for row in range(3):
        assert (np.array(gumbel(seeds[row : row + 1], step, 50))[0] == together[row]).all()
    assert (together[0] == together[2]).all()
    assert (together[0] != together[1]).any()
    own_clocks = np.array(gumbel(seeds, mx.array([17, 17, 18]), 50))
    assert (own_clocks[0] == together[0]).all()
    assert (own_clocks[2] != together[2]).any()


@pytest.mark.parametrize(
    "options",
    [{"temp": -1}, {"temp": float("nan")}, {"top_k": -3}, {"top_p": 1.5}, {"min_p": -0.1}, {"min_tokens_to_keep": 0}],
)
def test_refusals(options):
    with pytest.raises(InputError):
        Sampler(**options)
