"""The table of formulas against what real models have and do."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel

from s3prl_ekd import cost
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import hubert_encoder
from s3prl_ekd.student.model import Student
from s3prl_ekd.teachers.layouts import layout

SIZES = {
    "conv_dim": (8, 12, 16, 8, 12, 8, 20),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "num_conv_pos_embeddings": 15,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"conv_layer_norm": True, "conv_bias": True, "do_stable_layer_norm": True}
VARIANTS = [
    {},
    LARGE,
    {"feat_proj_layer_norm": False, "num_conv_pos_embeddings": 16},
    {"conv_bias": True, "num_attention_heads": 1, "num_hidden_layers": 5},
    {"num_buckets": 20, "hidden_size": 32, "intermediate_size": 7},
    {"num_buckets": 32, **LARGE},
    {"num_attention_heads": (3, 0), "head_dim": 6, "intermediate_size": (0, 40)},
    {"num_buckets": 20, "num_attention_heads": (1, 3), "head_dim": 6, "remaining_heads": ((2,), (0, 1, 3))},
]


def costs_of(config):
    return cost.FixedSizes.of(config), cost.UnitCounts.of(config)


def parameters_of(model):
    """Without the vector that masks frames in pretraining, which no encoder here has."""
    return sum(tensor.numel() for name, tensor in model.named_parameters() if name != "masked_spec_embed")


def counted_multiply_adds(work):
    """By torch, which counts a multiply-add as two operations and knows attention as matrix products alone."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_formulas_give_what_our_encoder_has_and_does(variant):
    config = EncoderConfig(**SIZES | variant)
    encoder = hubert_encoder(config).eval().requires_grad_(False)
    assert cost.parameters(*costs_of(config)) == parameters_of(encoder)
    waveform = torch.randn(1, 32000).double()
    with torch.no_grad():  # in double precision the front end takes the plain form, whose products are the counted ones
        counted = counted_multiply_adds(lambda: encoder.double().encode(waveform, None))
    surplus = 24 * 24 // 4 * 16 if config.num_conv_pos_embeddings == 16 else 0  # the frame that an even kernel adds
    assert 2 * cost.multiply_adds(*costs_of(config), seconds=2) == counted - surplus


@pytest.mark.parametrize(
    ("model", "settings", "variant"),
    [
        (HubertModel, HubertConfig, {}),
        (HubertModel, HubertConfig, {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}),
        (HubertModel, HubertConfig, {"feat_proj_layer_norm": False}),
        (WavLMModel, WavLMConfig, {}),
    ],
)
def test_formulas_give_what_models_of_transformers_have_and_do(model, settings, variant):
    with torch.device("meta"):
        large = model(settings(**variant))
    assert cost.parameters(*costs_of(layout(large, 12))) == parameters_of(large)
    small = model(settings(**SIZES | {"conv_dim": list(SIZES["conv_dim"])} | variant)).eval()
    config = layout(small, 2)
    assert cost.parameters(*costs_of(config)) == parameters_of(small)
    counted = counted_multiply_adds(lambda: small(torch.randn(1, 16000)))
    assert cost.multiply_adds(*costs_of(config), seconds=1) == counted


def test_hubert_base_is_what_dphubert_counts():
    """Theirs has 512 weights more, a factor for each channel of the last convolution."""
    sizes, counts = costs_of(EncoderConfig())
    assert cost.parameters(sizes, counts) + 512 == 94_371_456
    # By hand, of 10 s: 499 frames; the conv stack's lengths are 31999, 15999, 7999, 3999, 1999, 999, 499.
    conv = 31999 * 10 * 512 + (15999 + 7999 + 3999 + 1999) * 3 * 512**2 + (999 + 499) * 2 * 512**2
    layer = 499 * (4 * 768**2 + 2 * 768 * 3072) + 2 * 499**2 * 768
    rest = 499 * (512 * 768 + 768 * 48 * 128)
    assert cost.multiply_adds(sizes, counts) == (conv + rest + 12 * layer) / 10


def test_a_recipes_student_has_as_many_parameters_as_it_says():
    for config in (StudentConfig(), StudentConfig(**SIZES)):
        with torch.device("meta"):
            assert config.parameters == parameters_of(Student(config))


@pytest.mark.parametrize("kind", cost.COSTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_formulas_hold_for_expected_counts(kind, variant):
    """Independent gates: the mean of the costs is the cost of the mean, and it carries a gradient."""
    sizes, counts = costs_of(EncoderConfig(**SIZES | variant))
    few = dataclasses.replace(counts, conv=[6] * 7, heads=[1] * len(counts.heads), positions=[5])
    mean = dataclasses.replace(
        counts,
        conv=[torch.tensor((a + b) / 2, requires_grad=True) for a, b in zip(counts.conv, few.conv, strict=True)],
        heads=[torch.tensor((a + b) / 2, requires_grad=True) for a, b in zip(counts.heads, few.heads, strict=True)],
        positions=[torch.tensor((counts.positions[0] + few.positions[0]) / 2)],
    )
    corners = 0
    for pattern in range(2**7):  # every layer's channels drawn on their own
        conv = [(counts.conv, few.conv)[pattern >> layer & 1][layer] for layer in range(7)]
        half = [dataclasses.replace(one, conv=conv) for one in (counts, few)]
        corners += sum(cost.COSTS[kind](sizes, one) for one in half) / 2 / 2**7
    expected = cost.COSTS[kind](sizes, mean)
    assert expected.item() == pytest.approx(corners, rel=1e-6)
    expected.backward()
    assert all(count.grad > 0 for count in (*mean.conv, *mean.heads))


def test_least_counts_of_some_units():
    counts = cost.UnitCounts.of(EncoderConfig(**SIZES))
    assert counts.least([]) == counts
    least = counts.least(cost.UNITS)
    assert (list(least.conv), list(least.heads), list(least.intermediate)) == ([1] * 7, [0] * 2, [0] * 2)
    assert list(least.positions) == [1]
    assert dataclasses.replace(counts, positions=[16]).least(["positions"]).positions == [2]


def test_an_utterance_without_a_frame_has_no_cost():
    with pytest.raises(ValueError, match="yields no frame"):
        cost.multiply_adds(*costs_of(EncoderConfig()), seconds=0.01)
