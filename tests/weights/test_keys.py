"""The key tables: strict, invertible, and true to the models they name."""

from __future__ import annotations

import pytest
import torch
from helpers_teachers import KERNELS, STRIDES, TABLES, tiny_model
from helpers_weights import distiller_weights, under_names_of

from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student
from s3prl_ekd.weights import names

TINY = StudentConfig(
    conv_dim=(16,) * 7,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
)


def assert_equal(left, right):
    assert set(left) == set(right)
    for key in left:
        assert torch.equal(left[key], right[key]), key


def student_state(heads: int, size: int = 12) -> tuple[dict[str, torch.Tensor], Student, PredictionHeads]:
    torch.manual_seed(heads)
    student, predictions = Student(TINY).eval(), PredictionHeads(TINY.hidden_size, [size] * heads)
    state = student.state_dict() | {f"heads.{key}": value for key, value in predictions.state_dict().items()}
    return state, student, predictions


@pytest.mark.parametrize(("kind", "large"), TABLES)
def test_conversion_is_invertible_and_recognized(kind, large):
    state, table = tiny_model(kind, large=large).state_dict(), TABLES[kind, large]
    theirs = under_names_of(table, state)
    assert len(theirs) == len(state)
    assert names.recognize(theirs) is table
    assert_equal(names.to_transformers_keys(theirs, table), state)
    assert names.recognize(state) is names.TRANSFORMERS
    assert_equal(names.to_transformers_keys(state, names.TRANSFORMERS), state)


def test_old_weight_norm_names_are_read():
    state = tiny_model("hubert").state_dict()
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in state.items()
    }
    assert set(old) != set(state)
    assert names.recognize(old) is names.TRANSFORMERS_OLD
    assert_equal(names.to_transformers_keys(old, names.TRANSFORMERS_OLD), state)


def test_unknown_names_are_refused():
    state = tiny_model("hubert").state_dict()
    theirs = under_names_of(names.HUBERT, state)
    with pytest.raises(UserError, match=r"fairseq HuBERT.*unknown encoder\.surprise"):
        names.to_transformers_keys(theirs | {"encoder.surprise": torch.zeros(1)}, names.HUBERT)
    with pytest.raises(UserError, match=r"nearest is fairseq HuBERT, but for encoder\.surprise"):
        names.recognize(theirs | {"encoder.surprise": torch.zeros(1)})
    pretraining = {"final_proj.weight": torch.zeros(1), "label_embs_concat": torch.zeros(1)}
    assert_equal(names.to_transformers_keys(theirs | pretraining, names.HUBERT), state)


def test_a_projection_that_fairseq_does_without_is_the_identity():
    state = tiny_model("hubert", conv_dim=(24,) * 7).state_dict()
    theirs = {
        name: tensor
        for name, tensor in under_names_of(names.HUBERT, state).items()
        if not name.startswith("post_extract_proj")
    }
    state["feature_projection.projection.weight"] = torch.eye(24)
    state["feature_projection.projection.bias"] = torch.zeros(24)
    assert_equal(names.to_transformers_keys(theirs, names.HUBERT), state)


@pytest.mark.parametrize("heads", [0, 1, 3])
def test_distiller_conversion_equals_s3prls_model(heads):
    from s3prl_ekd.s3prl_compat import patches

    patches.apply()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    state, student, predictions = student_state(heads)
    theirs = distiller_weights(state)
    assert_equal(names.from_distiller(theirs), state)

    config = DistillerConfig(
        {
            "extractor_conv_feature_layers": str(list(zip(TINY.conv_dim, KERNELS, STRIDES, strict=True))),
            "conv_pos": 8,
            "conv_pos_groups": 4,
            "encoder_layers": 2,
            "encoder_embed_dim": 24,
            "encoder_ffn_embed_dim": 32,
            "encoder_attention_heads": 2,
            "final_dim": 12,
            "n_tasks": max(1, heads),
            "pred_layer_id": list(range(max(1, heads))),
            "out_layer_type": "expand-last" if heads else "none",
            "task_emb_type": "expand-last" if heads else "none",
        }
    )
    distiller = DistillerModel(config).eval()
    distiller.load_state_dict(theirs)
    waveform = 0.1 * torch.randn(1, 9000)
    with torch.no_grad():
        _, projected, predicted, _, hidden = distiller(
            waveform, torch.ones_like(waveform), get_hidden=True, no_pred=not heads
        )
        output = student(waveform)
    for expected, state in zip([projected, *hidden], output.hidden_states, strict=True):
        torch.testing.assert_close(state, expected, atol=1e-5, rtol=0)
    for head, prediction in enumerate(predictions(output.hidden_states)):
        torch.testing.assert_close(prediction, predicted[:, head], atol=1e-5, rtol=0)


def test_damaged_weights_of_a_distiller_are_refused():
    theirs = distiller_weights(student_state(2)[0])
    del theirs["output_layer.0.bias"]
    with pytest.raises(UserError, match=r"missing output_layer\.0\.bias"):
        names.from_distiller(theirs)
    with pytest.raises(UserError, match="unknown task_embedding"):
        names.from_distiller({"task_embedding.weight": torch.zeros(1)})
