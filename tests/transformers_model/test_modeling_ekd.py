"""Models of transformers whose layers differ in size: the function of the dense model they were cut from, and who opens
them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers_models import ROOT, speech_like
from helpers_pruned import HEADS, INNER, KINDS, cut_model, dense_model, silence
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.transformers_model import modeling_ekd


@pytest.fixture
def batch():
    """Three utterances of different lengths, and their mask."""
    waveforms = [speech_like(samples, seed) for seed, samples in enumerate((9000, 5000, 2400))]
    mask = pad_sequence([torch.ones(len(one), dtype=torch.long) for one in waveforms], batch_first=True)
    return pad_sequence(waveforms, batch_first=True), mask


def states(model, waveforms, mask=None):
    with torch.no_grad():
        return model(waveforms, attention_mask=mask, output_hidden_states=True).hidden_states


@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_it_is_the_dense_model_with_what_was_cut_silenced(kind, large, batch):
    """One layer has no head and one no inner unit; what they leave is the bias."""
    dense = dense_model(kind, large=large)
    reference, small = silence(dense), cut_model(dense)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in dense.parameters())
    expected = states(reference, *batch)
    assert (expected[-1] - states(dense, *batch)[-1]).abs().max() > 0.01
    for implementation in ("eager", "sdpa"):
        small.set_attn_implementation(implementation)
        for ours, theirs in zip(states(small, *batch), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for ours, theirs in zip(states(small, batch[0]), states(reference, batch[0]), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_attention_weights(kind, batch):
    small = cut_model(dense_model(kind))
    small.set_attn_implementation("eager")
    weights = small(batch[0], output_attentions=True).attentions
    assert [one.shape[1] for one in weights] == [len(heads) for heads in HEADS]
    torch.testing.assert_close(weights[0].sum(-1), torch.ones_like(weights[0][..., 0]))


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_attention_weights_by_default_are_of_as_many_layers_as_a_stock_models(kind, batch):
    """By SDPA: a stock HuBERT gives none, and a stock WavLM, which has no SDPA, those of all layers."""
    dense = dense_model(kind)
    small = cut_model(dense)
    assert small.config._attn_implementation == "sdpa"
    with torch.no_grad():
        weights, stock = (model(batch[0], output_attentions=True).attentions for model in (small, dense))
        assert len(weights) == len(stock) == {"hubert": 0, "wavlm": 3}[kind]
        assert [one.shape[1] for one in weights] == [len(heads) for heads in HEADS][: len(stock)]
        small.config._attn_implementation = "eager"
        for ours, eager in zip(weights, small(batch[0], output_attentions=True).attentions, strict=False):
            assert torch.equal(ours, eager)


@pytest.mark.parametrize(("kind", "large"), KINDS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_parameter_has_a_gradient_in_training(kind, large, implementation, batch):
    """Also where there are no heads: DistributedDataParallel waits for all of them."""
    small = cut_model(dense_model(kind, large=large)).train()
    small.set_attn_implementation(implementation)
    small(batch[0], attention_mask=batch[1]).last_hidden_state.sin().sum().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert small.encoder.layers[0].attention.q_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_fine_tuning_with_ctc(kind, tmp_path, batch):
    from transformers import AutoModel, AutoModelForCTC

    small = cut_model(dense_model(kind))
    small.save_pretrained(tmp_path / "small")
    model = AutoModelForCTC.from_pretrained(tmp_path / "small", vocab_size=6, ctc_loss_reduction="mean").eval()
    assert type(model).__name__.endswith("ForCTC")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    labels = torch.tensor([[1, 2, 3], [4, 5, 1], [2, 4, -100]])
    losses = []
    for _ in range(6):
        loss = model(batch[0], attention_mask=batch[1], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    model.save_pretrained(tmp_path / "tuned")
    tuned = AutoModelForCTC.from_pretrained(tmp_path / "tuned").eval()
    with torch.no_grad():
        torch.testing.assert_close(tuned(batch[0]).logits, model(batch[0]).logits)
    encoder = AutoModel.from_pretrained(tmp_path / "tuned").eval()  # and what is below the head
    assert torch.equal(states(encoder, batch[0])[-1], states(getattr(model, kind), batch[0])[-1])


def test_classification_of_utterances(tmp_path, batch):
    from transformers import AutoModelForAudioClassification

    for kind in ("hubert", "wavlm"):
        cut_model(dense_model(kind)).save_pretrained(tmp_path / kind)
        model = AutoModelForAudioClassification.from_pretrained(
            tmp_path / kind, num_labels=3, use_weighted_layer_sum=True
        )
        loss = model(batch[0], attention_mask=batch[1], labels=torch.tensor([0, 1, 2])).loss
        loss.backward()
        assert torch.isfinite(loss)


@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_round_trip_with_the_code(kind, large, tmp_path, batch):
    small = cut_model(dense_model(kind, large=large))
    small.save_pretrained(tmp_path / "once")
    again = type(small).from_pretrained(tmp_path / "once").eval()
    again.save_pretrained(tmp_path / "twice")
    for folder in (tmp_path / "once", tmp_path / "twice"):
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "modeling_ekd.py"]
        stored, expected = load_file(folder / "model.safetensors"), small.state_dict()
        for name in [name for name in expected if "pos_conv" in name]:  # transformers 5.0 gives these other names
            expected.pop(name)
        assert {name for name in stored if "pos_conv" not in name} == expected.keys()  # those without elements, too
        assert all(torch.equal(stored[name], tensor) for name, tensor in expected.items())
    config = json.loads((tmp_path / "twice/config.json").read_text())
    assert config["layer_heads"] == [len(heads) for heads in HEADS]
    assert config["layer_intermediate_sizes"] == [len(units) for units in INNER]
    assert config["auto_map"]["AutoModelForCTC"].startswith("modeling_ekd.Ekd")
    assert torch.equal(states(again, batch[0])[-1], states(small, batch[0])[-1])


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_factors_of_channels(kind, tmp_path):
    """They come before the LayerNorm of the feature projection, where no other weight could have them."""
    dense = dense_model(kind)
    small = cut_model(dense, feature_scale=True)
    scale = torch.linspace(0.1, 2.0, small.config.conv_dim[-1])
    small.feature_projection.scale.copy_(scale)
    small.save_pretrained(tmp_path)
    small = type(small).from_pretrained(tmp_path).eval()
    reference = silence(dense)
    waveform = speech_like(4000)[None]
    with torch.no_grad():
        channels = reference.feature_extractor(waveform).transpose(1, 2) * scale
        projected = reference.feature_projection(channels)
        expected = reference.encoder(projected if kind == "hubert" else projected[0]).last_hidden_state
    torch.testing.assert_close(states(small, waveform)[-1], expected, atol=1e-5, rtol=0)


def test_sizes_that_do_not_fit_are_refused():
    for keys, words in (
        ({"layer_heads": [1]}, "layer_heads .* each of 12 layers"),
        ({"layer_intermediate_sizes": [1]}, "layer_intermediate_sizes .* each of 12 layers"),
        ({"remaining_heads": [[0]]}, "do not fit layer_heads"),
    ):
        with pytest.raises(ValueError, match=words):
            modeling_ekd.EkdWavLMConfig(**keys)


# Opens a folder where this package cannot be imported, by the folder's code, and then where it has been.
OPEN = """
import sys
sys.modules["s3prl_ekd"] = None
import torch
from transformers import AutoModel, AutoModelForCTC
folder, waveform = sys.argv[1], torch.load(sys.argv[2], weights_only=True)
for trusted in ({"trust_remote_code": True}, {}):
    model = AutoModel.from_pretrained(folder, **trusted).eval()
    ctc = AutoModelForCTC.from_pretrained(folder, vocab_size=5, **trusted)
    ctc.save_pretrained(folder + "-ctc")
    AutoModelForCTC.from_pretrained(folder + "-ctc", **trusted)
    with torch.no_grad():
        print(type(model).__module__.partition(".")[0], float(model(waveform).last_hidden_state.sum()))
    sys.modules.pop("s3prl_ekd")
    import s3prl_ekd
"""


def test_it_opens_by_the_folders_code_or_with_the_package(tmp_path):
    """Here transformers is there first; in all other tests of this file the package is."""
    small = cut_model(dense_model("wavlm"))
    small.save_pretrained(tmp_path / "small")
    waveform = speech_like(4000)[None]
    torch.save(waveform, tmp_path / "waveform.pt")
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(tmp_path / "small"), str(tmp_path / "waveform.pt")],
        capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines()]
    assert [module for module, _ in found] == ["transformers_modules", "s3prl_ekd"]
    assert [float(total) for _, total in found] == pytest.approx(
        [float(states(small, waveform)[-1].sum())] * 2, rel=1e-4
    )
    assert (tmp_path / "small-ctc/modeling_ekd.py").is_file()


def test_the_file_needs_torch_and_transformers_alone():
    code = (ROOT / "s3prl_ekd/transformers_model/modeling_ekd.py").read_text()
    lines = [line.split()[1].partition(".")[0] for line in code.splitlines() if line.startswith(("import ", "from "))]
    assert set(lines) - sys.stdlib_module_names == {"torch", "transformers"}
