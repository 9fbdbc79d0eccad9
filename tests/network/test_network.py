"""The fast encoder against its plain twin and against transformers, with the same weights."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from helpers_models import TINY, speech_like
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.network import fast_conv, overlap_save, row_conv
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.network.encoder import hubert_encoder

SIZES = {key: tuple(value) if isinstance(value, list) else value for key, value in TINY.items()}
BASE = EncoderConfig(**SIZES)
STUDENT = dataclasses.replace(BASE, feat_proj_layer_norm=False)
LARGE = dataclasses.replace(BASE, conv_layer_norm=True, conv_bias=True, do_stable_layer_norm=True)
WAVLM = dataclasses.replace(BASE, num_buckets=32, max_bucket_distance=40)
WAVLM_LARGE = dataclasses.replace(WAVLM, conv_layer_norm=True, do_stable_layer_norm=True)
KINDS = {"student": STUDENT, "base": BASE, "large": LARGE, "wavlm": WAVLM, "wavlm-large": WAVLM_LARGE}


def batch(*utterances):
    return pad_sequence(list(utterances), batch_first=True), torch.tensor([len(u) for u in utterances])


def make(config):
    encoder = hubert_encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # LayerNorm and bias at 1 and 0 would hide a mix-up
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder


def plain_twin(encoder):
    """The same by torch's convolutions over the padded batch: a module with a hook has to be called."""
    twin = copy.deepcopy(encoder)
    for module in twin.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.register_forward_hook(lambda module, inputs, output: None)
    return twin


@pytest.fixture(params=["in chunks", "packed"])
def way(request, monkeypatch):
    """How the conv stack is computed: some frames at a time, as on a CPU, or all utterances in one go, as on a GPU."""
    monkeypatch.setattr(fast_conv, "_prefers_chunks", lambda device: request.param == "in chunks")
    monkeypatch.setattr(fast_conv, "_CHUNK_BYTES", 7 * 64 * 16 * 4)
    monkeypatch.setattr(fast_conv, "_CHUNK_BYTES_WITH_GRADIENT", 20 * 64 * 16 * 4)
    monkeypatch.setattr(row_conv, "_PAIRED_CHANNELS", 1)
    # The tiny models' kernels are too narrow for it to pay.
    monkeypatch.setattr(overlap_save, "applicable", lambda x, kernel: request.param == "in chunks")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("grad", [True, False], ids=["with gradient", "without"])
def test_fast_equals_plain(config, grad, utterances):
    """Forward within 1e-5."""
    encoder = make(config)
    with torch.set_grad_enabled(grad):
        fast, plain = (e.encode(*batch(*utterances)) for e in (encoder, plain_twin(encoder)))
    for ours, reference in zip([fast.projected, *fast.states], [plain.projected, *plain.states], strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("config", [STUDENT, LARGE], ids=["group norm", "layer norm"])
def test_fast_gradients_equal_plain(config, utterances):
    """Relative difference of all gradients together below 1e-5."""

    def gradients(encoder):
        output = encoder.encode(*batch(*utterances))
        loss = output.states[-1].sin().sum() + output.projected.cos().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(encoder.parameters()))])

    encoder = make(config)
    fast, plain = gradients(encoder), gradients(plain_twin(encoder))
    assert plain.abs().max() > 1
    assert (fast - plain).norm() < 1e-5 * plain.norm()


def silence(samples):
    return torch.zeros(samples)


def offset(samples):
    """A direct-current offset of 0.3 under a signal of 1e-4."""
    return 0.3 + 1e-4 * speech_like(samples) / 0.1


def hum(samples):
    """50 Hz hum at full scale over faint speech."""
    return 0.9 * torch.sin(2 * torch.pi * 50 * torch.arange(samples) / 16000) + 0.01 * speech_like(samples)


@pytest.mark.parametrize("signal", [silence, offset, hum])
def test_hard_inputs_match_group_norm_in_double_precision(signal):
    """Where variance is a small difference of large terms, ours is as near to exact arithmetic as torch's GroupNorm."""
    encoder = make(STUDENT)
    waveforms, lengths = batch(signal(16000), speech_like(9000))
    with torch.no_grad():
        ours = encoder.encode(waveforms, lengths).states[-1]
        exact = plain_twin(encoder).double()
        conv = exact.feature_extractor.conv_layers[0]
        conv.forward = lambda x, n: torch.nn.functional.gelu(group_norm_double(conv, x, n))
        reference = exact.encode(waveforms.double(), lengths).states[-1]
    assert ours.isfinite().all()
    torch.testing.assert_close(ours.double(), reference, atol=2e-5, rtol=0)


def group_norm_double(layer, x, lengths):
    """The first layer in double precision, utterance by utterance, by torch's own GroupNorm."""
    y = layer.conv(x)
    out = torch.zeros_like(y)
    for b, steps in enumerate(lengths.tolist()):
        out[b, :, :steps] = layer.layer_norm(y[b : b + 1, :, :steps])[0]
    return out


@pytest.mark.parametrize("surplus", [0, 1], ids=["all rows used", "one row left over"])
@pytest.mark.parametrize("steps", [2, 10, 11])
def test_paired_row_convolution_equals_conv1d(steps, surplus, monkeypatch):
    """Outputs and gradients; an odd number of outputs takes the other way."""
    paired = []
    original = row_conv._PairedRowConv.apply
    monkeypatch.setattr(row_conv._PairedRowConv, "apply", lambda *args: paired.append(1) or original(*args))
    channels = row_conv._PAIRED_CHANNELS
    x = torch.randn(2 * steps + 1 + surplus, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, channels, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.conv1d(x.T[None], weight, stride=2)[0].T
    found = row_conv.row_conv(x, weight.permute(2, 1, 0).flatten(0, 1), 3, 2)
    assert len(paired) == (steps % 2 == 0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    direction = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, (x, weight), direction) for y in (found, expected))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-12, rtol=1e-12)


def test_base_sized_layers_are_computed_in_pairs_throughout(monkeypatch):
    """Every kernel-3 layer of every stretch, whatever the lengths: none falls back for an odd number of outputs.

    So many channels' sums differ by more than 1e-5 between two orders of adding; the error is that of conv1d.
    """
    encoder = make(dataclasses.replace(STUDENT, conv_dim=(row_conv._PAIRED_CHANNELS,) * 7))
    unpaired = []
    original = row_conv._RowConv.apply
    monkeypatch.setattr(row_conv._RowConv, "apply", lambda *args: unpaired.append(args[2]) or original(*args))
    waveforms = batch(speech_like(16000), speech_like(23456, 1), speech_like(400, 2))
    plain = plain_twin(encoder).encode(*waveforms).states[0]
    exact = plain_twin(encoder).double().encode(*waveforms).states[0]
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            fast = encoder.encode(*waveforms).states[0]
        assert (fast - exact).abs().max() < 2 * (plain - exact).abs().max()
    assert set(unpaired) == {2}


@pytest.mark.parametrize(
    ("frames", "kernel", "groups"),
    [(1, 16, 2), (33, 16, 4), (34, 17, 1), (200, 64, 3), (129, 128, 16), (300, 128, 4)],
)
def test_overlap_save_equals_conv1d(frames, kernel, groups):
    """Outputs and gradients: blocks that end with, before and after the utterance, odd and even kernels."""
    conv = torch.nn.Conv1d(groups * 6, groups * 8, kernel, padding=kernel // 2, groups=groups).double()
    x = torch.randn(3, frames, groups * 6, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(kernel, dtype=torch.float64)
    expected = conv(x.transpose(1, 2))[:, :, :frames].transpose(1, 2)
    found = overlap_save.grouped_conv(x, conv.weight / scale, scale, conv.bias, groups)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    direction, wanted = torch.randn_like(expected), (x, conv.weight, conv.bias)
    gradients = (torch.autograd.grad(y, wanted, direction) for y in (found, expected))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-11, rtol=0)


def test_overlap_save_is_what_a_base_sized_position_convolution_takes_on_a_cpu(monkeypatch):
    """And its single-precision error is that of conv1d."""
    config = dataclasses.replace(BASE, hidden_size=96, num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16)
    encoder, taken = make(config), []
    original = overlap_save.grouped_conv
    monkeypatch.setattr(overlap_save, "grouped_conv", lambda *args: taken.append(1) or original(*args))
    utterances = batch(speech_like(40000), speech_like(33000, 1))
    with torch.no_grad():
        fast, plain, exact = (e.encode(utterances[0].to(e.encoder.layer_norm.weight.dtype), utterances[1]).states[0]
                              for e in (encoder, plain_twin(encoder), plain_twin(encoder).double()))  # fmt: skip
    assert len(taken) == 1
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    assert (fast - exact).abs().max() < 3 * (plain - exact).abs().max() + 1e-6


def test_gradient_on_the_waveform_takes_the_plain_path():
    encoder = make(STUDENT)
    waveform = speech_like(4000)[None].requires_grad_()
    encoder.encode(waveform, torch.tensor([4000])).states[-1].sin().sum().backward()
    assert waveform.grad.abs().max() > 0


def test_depth_stops_early(utterances):
    encoder = make(BASE)
    with torch.no_grad():
        full, short = (encoder.encode(*batch(*utterances), depth=depth).states for depth in (None, 1))
    assert [len(full), len(short)] == [3, 2]
    assert torch.equal(full[1], short[1])


@pytest.mark.parametrize("kind", ["base", "large", "wavlm", "wavlm-large"])
def test_equals_transformers(kind, utterances):
    """Each utterance of a padded batch within 1e-5 of transformers' HubertModel / WavLMModel for it alone."""
    from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel

    config = KINDS[kind]
    names = {f.name for f in dataclasses.fields(config)} & set(HubertConfig().to_dict())
    theirs = {name: getattr(config, name) for name in names}
    theirs["feat_extract_norm"] = "layer" if config.conv_layer_norm else "group"
    if config.num_buckets:
        theirs |= {"num_buckets": config.num_buckets, "max_bucket_distance": config.max_bucket_distance}
        reference = WavLMModel(WavLMConfig(**theirs, mask_time_prob=0.0))
    else:
        reference = HubertModel(HubertConfig(**theirs, mask_time_prob=0.0))
    encoder = make(config)
    reference.load_state_dict(encoder.state_dict())
    reference.eval()
    with torch.no_grad():
        output = encoder.encode(*batch(*utterances))
        for b, utterance in enumerate(utterances):
            expected = reference(utterance[None], output_hidden_states=True)
            for i, ours in enumerate(output.states[:-1]):
                mine = output.packing.unpack(ours)[b, : output.packing.frames[b]]
                torch.testing.assert_close(mine, expected.hidden_states[i][0], atol=1e-5, rtol=0)
            mine = output.packing.unpack(output.states[-1])[b, : output.packing.frames[b]]
            torch.testing.assert_close(mine, expected.last_hidden_state[0], atol=1e-5, rtol=0)


def test_padded_mode_equals_transformers_on_a_padded_batch(utterances):
    """``padded=True`` is what the usual implementations do: padding in the GroupNorm, masked in the attention."""
    from transformers import HubertConfig, HubertModel

    reference = HubertModel(HubertConfig(**SIZES, mask_time_prob=0.0)).eval()
    encoder = hubert_encoder(BASE).eval()
    encoder.load_state_dict(reference.state_dict())
    waveforms, lengths = batch(*utterances)
    mask = (torch.arange(waveforms.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        output = encoder.encode(waveforms, lengths, padded=True)
        expected = reference(waveforms, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(output.packing.unpack(output.states[-1]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_close(utterances, dtype):
    encoder = make(STUDENT)
    with torch.no_grad():
        exact = encoder.encode(*batch(*utterances)).states[-1]
    with torch.autocast("cpu", dtype):
        low = encoder.encode(*batch(*utterances)).states[-1].float()
    assert (low - exact).norm() < 0.02 * exact.norm()
    assert torch.nn.functional.cosine_similarity(low, exact, dim=-1).mean() > 0.999
