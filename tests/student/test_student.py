"""The student network: independence of batch mates, parity with transformers and s3prl, gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers_models import TINY, speech_like
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.network.conv import masked_group_norm
from s3prl_ekd.network.encoder import normalize_waveforms
from s3prl_ekd.network.frames import conv_frames, receptive_field
from s3prl_ekd.student.folder import load_student_and_heads
from s3prl_ekd.student.model import Student


def pad(utterances):
    return pad_sequence(utterances, batch_first=True), torch.tensor([len(u) for u in utterances])


def test_frames_and_receptive_field():
    config = StudentConfig()
    assert receptive_field(config.conv_kernel, config.conv_stride) == 400
    samples = torch.tensor([399, 400, 719, 720, 16000])
    assert conv_frames(samples, config.conv_kernel, config.conv_stride).tolist() == [0, 1, 1, 2, 49]


@pytest.mark.parametrize("normalize", [False, True])
def test_features_do_not_depend_on_batch_mates(utterances, normalize):
    student = Student(StudentConfig.from_mapping({**TINY, "normalize_waveform": normalize})).eval()
    with torch.no_grad():
        together = student(*pad(utterances))
        for i, utterance in enumerate(utterances):
            alone = student(utterance[None])
            frames = int(together.frame_lengths[i])
            assert frames == alone.hidden_states[0].shape[1]
            for ours, reference in zip(together.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(ours[i, :frames], reference[0], atol=1e-5, rtol=0)


def test_gradients_do_not_depend_on_padding(tiny_student, utterances):
    def gradients(batches):
        tiny_student.zero_grad()
        for waveforms, lengths in batches:
            output = tiny_student(waveforms, lengths)
            for state, frames in zip(output.hidden_states[-1], output.frame_lengths, strict=True):
                state[:frames].sin().sum().backward(retain_graph=True)
        return torch.cat([p.grad.flatten() for p in tiny_student.parameters()])

    padded, alone = gradients([pad(utterances)]), gradients([pad([u]) for u in utterances])
    assert alone.abs().max() > 1
    assert (padded - alone).norm() < 1e-5 * alone.norm()


def test_padded_statistics_are_what_a_plain_group_norm_does(utterances):
    norm = torch.nn.GroupNorm(3, 3)
    x = torch.randn(2, 3, 50)
    torch.testing.assert_close(masked_group_norm(x, norm, None), F.group_norm(x, 3))
    masked = masked_group_norm(x, norm, torch.tensor([50, 20]))
    torch.testing.assert_close(masked[1:, :, :20], F.group_norm(x[1:, :, :20], 3))


def test_normalize_waveforms_matches_transformers(utterances):
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    expected = extractor([u.numpy() for u in utterances], sampling_rate=16000, padding=True, return_tensors="pt")
    waveforms, lengths = pad(utterances)
    torch.testing.assert_close(normalize_waveforms(waveforms, lengths), expected.input_values, atol=1e-5, rtol=1e-5)


def test_feature_grad_scale():
    def conv_gradient(scale):
        torch.manual_seed(0)
        student = Student(StudentConfig.from_mapping({**TINY, "feature_grad_scale": scale})).eval()
        student(speech_like(4000)[None]).hidden_states[-1].sum().backward()
        return student.feature_extractor.conv_layers[2].conv.weight.grad

    torch.testing.assert_close(conv_gradient(0.1), 0.1 * conv_gradient(1.0))


def test_too_short_input_is_an_error(tiny_student):
    with pytest.raises(ValueError, match="399 samples; 400 are needed"):
        tiny_student(torch.zeros(1, 399))


def test_initialization_copies_and_reports(tiny_config, caplog):
    teacher = Student(StudentConfig.from_mapping({**TINY, "num_hidden_layers": 4})).state_dict()
    teacher["encoder.layers.0.attention.gru_rel_pos_const"] = torch.ones(1)
    teacher["feature_projection.layer_norm.weight"] = torch.ones(1)
    student = Student(tiny_config)
    layer_norm = student.encoder.layer_norm.weight.clone()
    with caplog.at_level("INFO"):
        student.initialize_from(teacher, "big")
    left_over = set(caplog.messages[0].split("left over: ")[1].split(", "))
    assert {"encoder.layers.*.attention.gru_rel_pos_const", "feature_projection.layer_norm"} < left_over
    assert "encoder.layers.*.feed_forward.output_dense" in left_over
    for name, tensor in student.state_dict().items():
        if name.startswith("encoder.layer_norm"):
            continue
        assert torch.equal(tensor, teacher[name]), name
    assert torch.equal(student.encoder.layer_norm.weight, layer_norm)

    with pytest.raises(UserError, match=r"has no encoder\.layers\.0"):
        student.initialize_from({k: v for k, v in teacher.items() if ".layers." not in k}, "big")
    with pytest.raises(UserError, match=r"\(16, 16, 3\) in the student"):
        student.initialize_from({k: torch.zeros(1) if "conv_layers.1" in k else v for k, v in teacher.items()}, "big")


def test_single_utterance_equals_s3prls_distiller(tmp_path):
    """Same weights, one utterance: hidden states and predictions within 1e-5 of s3prl's DistillerModel."""
    from s3prl_ekd.s3prl_compat import patches

    patches.apply()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    mapping = {
        "extractor_conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2",
        "encoder_layers": 2,
        "encoder_embed_dim": 24,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 4,
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "final_dim": 24,
        "n_tasks": 3,
        "pred_layer_id": [4, 8, 12],
        "task_emb_type": "expand-last",
        "out_layer_type": "expand-last",
    }
    reference = DistillerModel(DistillerConfig(mapping)).eval()
    for parameter in reference.parameters():  # LayerNorm and bias at 1 and 0 would hide a mix-up
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path / "states-200000.ckpt"
    torch.save({"Distiller": reference.state_dict(), "Config": {"distiller": mapping}, "Step": 200000}, path)
    student, head_modules = load_student_and_heads(path)
    waveform = speech_like(16000)[None]
    assert_equals_distiller(reference, student, head_modules, waveform, torch.ones_like(waveform))
    # Padding computed as s3prl does it: equal in the padding too.
    waveforms, lengths = pad([speech_like(16000), speech_like(9000, 1)])
    mask = (torch.arange(16000) < lengths[:, None]).float()
    assert_equals_distiller(reference, student, head_modules, waveforms, mask, lengths=lengths, padded=True)


def assert_equals_distiller(reference, student, heads, waveforms, mask, **options):
    with torch.no_grad():
        _, projected, predictions, _, layers = reference(waveforms, mask, get_hidden=True)
        output = student(waveforms, **options)
        for ours, theirs in zip(output.hidden_states[1:], layers, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        if not options:  # in padding s3prl's encoder overwrites the projected features with zeros, in place
            torch.testing.assert_close(output.hidden_states[0], projected, atol=1e-5, rtol=0)
        for i, ours in enumerate(heads(output.hidden_states)):
            torch.testing.assert_close(ours, predictions[:, i], atol=1e-5, rtol=0)


def test_conv_layers_of_s3prl_are_read_not_run():
    from s3prl_ekd.weights.sizes import conv_layers

    assert conv_layers("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2")[4:6] == [(512, 3, 2), (512, 2, 2)]
    for bad in ("__import__('os').getcwd()", "[(1, 2)]", "(", "None"):
        with pytest.raises(UserError, match="cannot read"):
            conv_layers(bad)
