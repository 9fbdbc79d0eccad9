"""``loss_on_padding: true`` is s3prl's distiller on a padded batch: teacher, student, loss and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers_models import speech_like
from helpers_teachers import KERNELS, STRIDES, s3prl_checkpoint, tiny_model
from helpers_weights import distiller_weights
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.audio.batch import Batch
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.teachers import load_teachers
from s3prl_ekd.teachers.own_encoder import FastTeacher

LAYERS = (1, 3)
SIZES = {
    "conv_dim": [16] * 7,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}


def s3prls_distiller(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """s3prl's own network with the weights of our student and heads."""
    patches.apply()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    config = {
        "extractor_conv_feature_layers": str(list(zip(SIZES["conv_dim"], KERNELS, STRIDES, strict=True))),
        "feature_grad_mult": 0.1,
        "conv_pos": 8,
        "conv_pos_groups": 4,
        "encoder_layers": 2,
        "encoder_embed_dim": 24,
        "encoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "final_dim": 24,
        "n_tasks": len(LAYERS),
        "pred_layer_id": list(LAYERS),
        "task_emb_type": "expand-last",
    }
    model = DistillerModel(DistillerConfig(config))
    ours = {name.removeprefix("student."): tensor for name, tensor in state.items()}
    model.load_state_dict(distiller_weights(ours))
    return model


@pytest.mark.parametrize("lengths", [[16321, 9001, 401], [36721, 15778, 30000]])
@pytest.mark.parametrize(("kind", "upstream"), [("hubert", "hubert_local"), ("wavlm", "wavlm_local")])
def test_same_student_same_loss_same_gradient(tmp_path, kind, upstream, lengths):
    checkpoint = s3prl_checkpoint(tiny_model(kind), kind, tmp_path / "teacher.pt")
    config = DistillConfig.from_mapping(
        {
            "student": SIZES,
            "teachers": [{"name": "t", "s3prl": upstream, "ckpt": str(checkpoint), "layers": list(LAYERS)}],
            "objective": {"loss_on_padding": True},
        }
    )
    teachers = load_teachers(config)
    assert isinstance(teachers[0], FastTeacher)
    ours = Distiller(config, teachers)
    theirs = s3prls_distiller(ours.state_dict())
    waves = [speech_like(count, seed) for seed, count in enumerate(lengths)]
    batch = pad_sequence(waves, batch_first=True)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)).float()

    import s3prl.hub as hub

    with torch.no_grad():
        hidden = getattr(hub, upstream)(ckpt=str(checkpoint)).eval()([wave.clone() for wave in waves])["hidden_states"]
    targets = torch.stack([hidden[layer] for layer in LAYERS], 1)  # (B, H, F, D)
    _, projected, predictions, _, states = theirs(batch, mask, get_hidden=True)
    expected = F.l1_loss(predictions, targets) - F.logsigmoid(F.cosine_similarity(predictions, targets, dim=-1)).mean()

    output = ours.student(batch, torch.tensor(lengths), padded=True).hidden_states
    for state, reference in zip(output, [projected, *states], strict=True):
        torch.testing.assert_close(state, reference, atol=2e-5, rtol=0)
    result = ours(Batch(batch, batch, torch.tensor(lengths), tuple(map(str, lengths))))
    torch.testing.assert_close(result.loss, expected, atol=2e-6, rtol=0)
    assert result.frames == predictions.shape[0] * predictions.shape[2]
    result.loss.backward()
    expected.backward()
    gradient = ours.student.feature_extractor.conv_layers[0].conv.weight.grad
    torch.testing.assert_close(gradient, theirs.feature_extractor.conv_layers[0][0].weight.grad, atol=1e-6, rtol=1e-3)
