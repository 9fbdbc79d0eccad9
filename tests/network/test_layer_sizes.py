"""Layers of different size: against the dense encoder with zeroed weights, and against transformers' models."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers_models import TINY, speech_like
from helpers_pruned import HEADS, INNER, cut, silence
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import hubert_encoder

SIZES = {key: tuple(value) if isinstance(value, list) else value for key, value in TINY.items()}
BASE = EncoderConfig(**SIZES | {"num_hidden_layers": 3})
LARGE = dataclasses.replace(BASE, conv_layer_norm=True, conv_bias=True, do_stable_layer_norm=True)
WAVLM = dataclasses.replace(BASE, num_buckets=32, max_bucket_distance=40)
WAVLM_LARGE = dataclasses.replace(WAVLM, conv_layer_norm=True, do_stable_layer_norm=True)
KINDS = {"base": BASE, "large": LARGE, "wavlm": WAVLM, "wavlm-large": WAVLM_LARGE}
UTTERANCES = [speech_like(9000), speech_like(6000, 1)]
BATCH = pad_sequence(UTTERANCES, batch_first=True), torch.tensor([len(wave) for wave in UTTERANCES])


def make(config):
    torch.manual_seed(0)
    encoder = hubert_encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_encoder_equals_the_dense_one_with_silenced_units(kind):
    """With heads here and there, and layers without any head or any inner unit."""
    dense = make(KINDS[kind])
    with torch.no_grad():
        small, silenced, whole = (e.encode(*BATCH).states for e in (cut(dense, KINDS[kind]), silence(dense), dense))
    for ours, wanted in zip(small, silenced, strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-6, rtol=0)
    assert (small[-1] - whole[-1]).abs().max() > 1e-2


@pytest.mark.parametrize("gradient", ["by one product", "by the modules"])
def test_gradients_of_a_cut_encoder_are_those_of_the_dense_one(gradient):
    dense = make(WAVLM)
    small, silenced = cut(dense, WAVLM), silence(dense)
    if gradient == "by the modules":
        for module in small.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: None)
    for encoder in (small, silenced):
        encoder.encode(*BATCH).states[-1].sin().sum().backward()
    trained = {name for name, parameter in small.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in small.named_parameters() if parameter.grad is not None} == trained
    empty = {name for name, parameter in small.named_parameters() if parameter.numel() == 0}
    gates_without_heads = {f"encoder.layers.1.attention.gru_rel_pos_linear.{p}" for p in ("weight", "bias")}
    assert {name for name, _ in small.named_parameters()} - trained == empty | gates_without_heads
    for name in ("attention.gru_rel_pos_linear.weight", "attention.rel_attn_embed.weight", "layer_norm.weight"):
        ours, wanted = (e.get_parameter(f"encoder.layers.0.{name}").grad for e in (small, silenced))
        torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-4)
        assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_equals_transformers_hubert_with_smaller_linears(large):
    """Its attention takes the number of heads from the projections' width."""
    from transformers import HubertConfig, HubertModel

    config = LARGE if large else BASE
    config = dataclasses.replace(
        config, num_hidden_layers=2, num_attention_heads=(2, 1), intermediate_size=(5, 9), head_dim=6
    )
    encoder = make(config)
    sizes = {**SIZES, "num_hidden_layers": 2, "mask_time_prob": 0.0}
    variant = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True} if large else {}
    reference = HubertModel(HubertConfig(**sizes, **variant)).eval()
    for theirs, ours in zip(reference.encoder.layers, encoder.encoder.layers, strict=True):
        for name in ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj",
                     "feed_forward.intermediate_dense", "feed_forward.output_dense"):  # fmt: skip
            old = ours.get_submodule(name)
            theirs.set_submodule(name, nn.Linear(old.in_features, old.out_features))
    reference.load_state_dict(encoder.state_dict())
    compare(encoder, reference)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_equals_transformers_wavlm_with_silenced_heads(large):
    from transformers import WavLMConfig, WavLMModel

    config = WAVLM_LARGE if large else WAVLM
    sizes = {**SIZES, "num_hidden_layers": 3, "num_buckets": 32, "max_bucket_distance": 40, "mask_time_prob": 0.0}
    variant = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if large else {}
    dense = make(config)
    reference = WavLMModel(WavLMConfig(**sizes, **variant)).eval()
    reference.load_state_dict(dense.state_dict())
    compare(cut(dense, config), silence(reference))


@torch.no_grad()
def compare(encoder, reference):
    for wave in UTTERANCES:
        wanted = reference(wave[None], output_hidden_states=True)
        ours = encoder.encode(wave[None], None).states
        theirs = [*wanted.hidden_states[:-1], wanted.last_hidden_state]
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_sizes_in_a_list_are_one_number_bit_for_bit(kind):
    config = KINDS[kind]
    listed = dataclasses.replace(config, num_attention_heads=(4,) * 3, intermediate_size=(48,) * 3, head_dim=6)
    whole = dataclasses.replace(listed, remaining_heads=((0, 1, 2, 3),) * 3) if config.num_buckets else listed
    one, *others = (make(sizes) for sizes in (config, listed, whole))
    for other in others:
        for (name, ours), (same, wanted) in zip(other.state_dict().items(), one.state_dict().items(), strict=True):
            assert name == same
            assert torch.equal(ours, wanted)
        assert torch.equal(other.encode(*BATCH).states[-1], one.encode(*BATCH).states[-1])


def test_a_narrow_and_a_wide_attention():
    """Heads need not make up the layer's width in a HuBERT."""
    for heads, width in ((3, 2), (5, 16)):
        config = dataclasses.replace(BASE, num_attention_heads=heads, head_dim=width)
        encoder = make(config)
        assert encoder.encoder.layers[0].attention.q_proj.weight.shape == (heads * width, 24)
        assert encoder.encode(*BATCH).states[-1].isfinite().all()


def test_no_warning_of_empty_layers(recwarn):
    cut(make(WAVLM), WAVLM)
    assert not recwarn.list
    assert (HEADS[1], INNER[2]) == ((), ())
