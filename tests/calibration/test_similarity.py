"""Similarities of hidden states, against formulas on all frames at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s3prl_ekd.calibration.similarity import LinearCKA, MeanCosine


def utterances(layers=4, width=6):
    """Three of different lengths, (F, D) for each layer, far from zero mean."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(layers, width, width, generator=generator)
    common = [torch.randn(frames, width, generator=generator) for frames in (7, 30, 3)]
    return [[one @ mix + 5 * number for number, mix in enumerate(mixing)] for one in common]


def summed(kind, spoken):
    similarity = kind()
    for states in spoken:
        similarity.add(states)
    assert similarity.frames == 40
    return similarity.matrix()


def test_cka_is_that_of_centred_gram_matrices_of_all_frames():
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = XX', L = YY' (arXiv 1905.00414, equations 3 and 4)."""
    spoken = utterances()
    layers = [torch.cat(rows).double() for rows in zip(*spoken, strict=True)]
    centring = torch.eye(40, dtype=torch.float64) - 1 / 40
    grams = [centring @ rows @ rows.T @ centring for rows in layers]
    hsic = torch.tensor([[(one * other).sum() for other in grams] for one in grams], dtype=torch.float64)
    expected = hsic / torch.outer(hsic.diagonal(), hsic.diagonal()).sqrt()
    found = summed(LinearCKA, spoken)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert found.triu(1).max() < 0.9  # they do differ


def test_cka_of_a_turned_shifted_and_scaled_layer_is_one():
    turn = torch.linalg.qr(torch.randn(6, 6)).Q
    spoken = [[states[0], 3 * states[0] @ turn - 7] for states in utterances()]
    torch.testing.assert_close(summed(LinearCKA, spoken), torch.ones(2, 2).double(), rtol=1e-6, atol=0)


def test_the_cosine_is_the_mean_over_frames():
    spoken = utterances()
    layers = [torch.cat(rows) for rows in zip(*spoken, strict=True)]
    expected = [[F.cosine_similarity(one, other, dim=-1).mean() for other in layers] for one in layers]
    torch.testing.assert_close(summed(MeanCosine, spoken), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [1.0, float("nan"), float("inf")])
def test_a_layer_without_variance_or_not_finite_has_no_cka(value):
    spoken = [[states[0], torch.full_like(states[1], value)] for states in utterances()]
    found = summed(LinearCKA, spoken)
    assert found.diagonal().isfinite().tolist() == [True, False]
