"""Other projects' checkpoints: their sizes in our words, and the same features from their weights."""

from __future__ import annotations

import json
import re

import pytest
import torch
from helpers_foreign import (
    INNER,
    LARGE,
    PRUNED_CONV,
    REMAINING,
    as_fairseq_writes_it,
    masked_hubert,
    of_torchaudio,
    pruned_hubert,
    pruned_wavlm,
    states_of_torchaudio,
)
from helpers_models import speech_like
from helpers_teachers import s3prl_checkpoint, tiny_model

from s3prl_ekd.errors import UserError
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import hubert_encoder
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.weights.encoders import read_encoder
from s3prl_ekd.weights.pickles import load_pickle_safely

patches.apply()
WAVE = speech_like(8000)[None]


@pytest.fixture
def saved(tmp_path):
    def save(states):
        torch.save(states, tmp_path / "model.pt")
        return tmp_path / "model.pt"

    return save


def stored_in(path):
    stored = read_encoder(load_pickle_safely(path), path)
    assert stored is not None
    return stored


def states_by_our_encoder(stored):
    """The projected features, then each layer's output."""
    fields = EncoderConfig.__dataclass_fields__
    config = EncoderConfig.from_mapping({name: value for name, value in stored.sizes.items() if name in fields})
    encoder = hubert_encoder(config).eval()
    encoder.load_state_dict(stored.weights)
    output = encoder.encode(WAVE, None)
    return [output.projected, *output.states[1:]]


def assert_close(states, expected):
    assert len(states) == len(expected)
    for ours, theirs in zip(states, expected, strict=True):
        torch.testing.assert_close(ours, theirs.flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
@pytest.mark.parametrize("large", [False, True])
def test_torchaudio(saved, kind, large):
    """Weights alone, so the number of heads stands beside them (a WavLM's can be seen)."""
    model = of_torchaudio(kind, **(LARGE if large else {}))
    path = saved(model.state_dict() | {"aux.weight": torch.zeros(2, 24)})
    arguments = {"encoder_max_distance": 40} if kind == "wavlm" else {"encoder_num_heads": 4}
    path.with_suffix(".json").write_text(json.dumps(arguments))
    stored = stored_in(path)
    assert stored.left_over == ("aux",)
    assert stored.sizes["num_attention_heads"] == 4
    assert_close(states_by_our_encoder(stored), states_of_torchaudio(model, WAVE))


def test_published_sizes_of_torchaudio_need_no_file_beside_them(saved):
    with torch.device("meta"):
        from torchaudio.models import hubert_large, wavlm_base

        large, wavlm = hubert_large().state_dict(), wavlm_base().state_dict()
    sizes = read_encoder(large, saved({})).sizes
    assert (sizes["num_attention_heads"], sizes["num_hidden_layers"], sizes["conv_layer_norm"]) == (16, 24, True)
    assert sizes["do_stable_layer_norm"]
    assert sizes["normalize_waveform"]
    sizes = read_encoder(wavlm, saved({})).sizes
    assert "remaining_heads" not in sizes
    assert (sizes["num_attention_heads"], sizes["num_buckets"], sizes["conv_stride"]) == (12, 320, (5, *[2] * 6))


def test_dphubert(saved):
    _, states = pruned_hubert()
    stored = stored_in(saved(states))
    assert stored.left_over == ("distill_linear_projs",)
    assert stored.sizes == {
        "conv_dim": [channels for channels, _, _ in PRUNED_CONV],
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
        "conv_bias": False,
        "conv_layer_norm": False,
        "feat_proj_layer_norm": True,
        "feature_scale": True,
        "do_stable_layer_norm": False,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": [len(heads) for heads in REMAINING],
        "head_dim": 6,
        "intermediate_size": INNER,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "attention_dropout": 0.1,
        "activation_dropout": 0.0,
        "hidden_dropout": 0.2,
    }
    assert torch.equal(
        stored.weights["feature_projection.scale"], states["state_dict"]["feature_extractor.dummy_weight"]
    )


def test_blocks_that_dphubert_has_dropped(saved):
    _, states = pruned_hubert(remaining=[[0, 1], [], [3]], inner=[0, 32, 5])
    stored = stored_in(saved(states))
    assert stored.sizes["num_attention_heads"] == [2, 0, 1]
    assert stored.sizes["intermediate_size"] == [0, 32, 5]
    assert stored.weights["encoder.layers.1.attention.out_proj.weight"].shape == (24, 0)
    assert not stored.weights["encoder.layers.1.attention.out_proj.bias"].any()


def test_dpwavlm_and_diarizen(saved):
    """DiariZen's file has the same encoder inside a larger model, and its settings beside it."""
    _, states = pruned_wavlm()
    stored = stored_in(saved(states))
    assert stored.sizes["remaining_heads"] == REMAINING
    assert (stored.sizes["num_buckets"], stored.sizes["max_bucket_distance"], stored.sizes["head_dim"]) == (32, 40, 6)
    path = saved({f"wavlm_model.{name}": tensor for name, tensor in states["state_dict"].items()}
                 | {"conformer.weight": torch.zeros(1), "classifier.bias": torch.zeros(2)})  # fmt: skip
    with pytest.raises(
        UserError, match=r"which attention heads .*remaining_heads.*; write it as JSON to .*model\.json"
    ):
        stored_in(path)
    path.with_suffix(".json").write_text(json.dumps(states["config"]))
    inside = stored_in(path)
    assert inside.left_over == ("classifier", "conformer")
    assert inside.sizes == stored.sizes
    assert inside.weights.keys() == stored.weights.keys()


@pytest.mark.parametrize(("kind", "large"), [("hubert", False), ("hubert", True), ("wav2vec2", False), ("wavlm", True)])
def test_fairseq(tmp_path, kind, large):
    model = tiny_model(kind, large=large)
    path = s3prl_checkpoint(model, kind, tmp_path / "converted.pt", large=large)
    found = [stored_in(path)]
    if kind != "wavlm":
        found.append(stored_in(as_fairseq_writes_it(path, tmp_path / "fairseq.pt")))
    for stored in found:
        assert stored.sizes.get("normalize_waveform", False) is large
        output = model(WAVE, output_hidden_states=True)
        assert_close(states_by_our_encoder(stored)[1:-1], output.hidden_states[1:-1])
        assert_close(states_by_our_encoder(stored)[-1:], [output.last_hidden_state])


def test_maskhubert(tmp_path):
    model, path = masked_hubert(tmp_path)
    stored = stored_in(path)
    assert stored.left_over == ("proj_head",)
    assert len(stored.sizes["conv_dim"]) == 9
    assert torch.equal(stored.weights["feature_projection.projection.weight"], torch.eye(24))  # as wide as the layers
    _, projected, _, _, hidden = model(WAVE, torch.ones_like(WAVE), get_hidden=True, no_pred=True)
    assert_close(states_by_our_encoder(stored), [projected, *hidden])


# --- what cannot be held, and what is damaged: one line each --------------------------------------------------------


def refusal(path):
    with pytest.raises(UserError) as caught:
        stored_in(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(states, change):
    states["state_dict"] = dict(states["state_dict"])
    change(states)
    return states


LAYER = "encoder.transformer.layers.1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["state_dict"].update({"encoder.surprise": torch.zeros(1)}), r"unknown encoder\.surprise"),
        (lambda s: s["state_dict"].pop("feature_extractor.conv_layers.0.conv.weight"), "no convolutions"),
        (lambda s: s["state_dict"].pop("encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"),
         "pos_conv_embed.* is missing"),
        (lambda s: s["state_dict"].update({f"{LAYER}.attention.q_proj.weight": torch.zeros(7, 24)}), "no whole heads"),
        (lambda s: s["state_dict"].update({f"{LAYER}.hard_concrete_for_layer.log_alpha": torch.zeros(1)}),
         "gates have not been applied"),
        (lambda s: s["config"].update(encoder_head_dim=0), "no whole heads of width 0"),
        (lambda s: s["config"].update(extractor_conv_layer_config=[[1, 2]]), "damaged checkpoint"),
        (lambda s: s.update(config=None), "damaged checkpoint"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_dphubert(saved, change, words):
    assert re.search(words, refusal(saved(changed(pruned_hubert()[1], change))))


def test_a_wavlm_whose_first_layer_attends_no_more(saved):
    _, states = pruned_wavlm()
    states["state_dict"] = {n: t for n, t in states["state_dict"].items() if ".layers.0.attention" not in n}
    assert "all layers' position bias" in refusal(saved(states))


def test_heads_that_a_wavlm_never_had(saved):
    _, states = pruned_wavlm()
    states["config"]["encoder_remaining_heads"] = [[0, 2, 4], [1], [0, 1, 2, 3]]
    assert "the heads of a layer are 0 to 3" in refusal(saved(states))


def test_weights_alone_that_do_not_tell_the_heads(saved):
    path = saved(of_torchaudio().state_dict())
    assert f'such as {{"encoder_head_dim": 64}}; write it as JSON to {path.with_suffix(".json")}' in refusal(path)
    path.with_suffix(".json").write_text("{")
    assert "not valid JSON" in refusal(path)


def test_what_students_of_armhubert_need(tmp_path):
    _, path = masked_hubert(tmp_path)
    (tmp_path / "other.yaml").write_text("data: 1")
    (tmp_path / "student.yaml").rename(tmp_path / "named_otherwise.yml")
    assert stored_in(path)
    (tmp_path / "named_otherwise.yml").unlink()
    assert f"beside it, as {tmp_path / 'student.yaml'}" in refusal(path)
    _, path = masked_hubert(tmp_path, enable_tr_layer=True)
    assert "halve the frame rate" in refusal(path)
    states = torch.load(path, weights_only=True)
    for part in ("weight", "bias"):
        for letter in "qk":
            del states["state_dict"][f"student_model.encoder.layers.1.self_attn.{letter}_proj.{part}"]
    torch.save(states, path)
    assert "its layers 1 attend by the map of the layer before" in refusal(path)


@pytest.mark.parametrize(("option", "value"), [("activation_fn", "relu"), ("layer_type", "conformer")])
def test_options_of_fairseq_that_a_student_cannot_have(tmp_path, option, value):
    path = s3prl_checkpoint(tiny_model("hubert"), "hubert", tmp_path / "model.pt")
    states = torch.load(path, weights_only=True)
    torch.save({**states, "model_cfg": {**states["model_cfg"], option: value}}, path)
    assert f"{option}: '{value}'" in refusal(path)


def test_models_that_are_none_of_these(saved):
    for states in (
        {"cfg": {}, "model": {}},
        {"cfg": 3, "model": {}},
        {"config": {}},
        {},
        [1],
        {"config": {}, "state_dict": 3},
    ):
        assert read_encoder(states, saved(states)) is None
