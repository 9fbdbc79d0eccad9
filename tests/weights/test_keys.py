"""The key tables: strict, invertible, and true to the models they name."""

from __future__ import annotations

import pytest
import torch
from helpers_teachers import KERNELS, STRIDES, TABLES, tiny_model

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
    theirs = names.from_transformers_keys(state, table)
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


def test_unknown_names_are_refused_in_both_directions():
    state = tiny_model("hubert").state_dict()
    theirs = names.from_transformers_keys(state, names.HUBERT)
    with pytest.raises(UserError, match=r"fairseq HuBERT.*unknown encoder\.surprise"):
        names.to_transformers_keys(theirs | {"encoder.surprise": torch.zeros(1)}, names.HUBERT)
    with pytest.raises(UserError, match=r"unknown encoder\.surprise"):
        names.from_transformers_keys(state | {"encoder.surprise": torch.zeros(1)}, names.HUBERT)
    with pytest.raises(UserError, match=r"unknown .*(rel_attn_embed|gru_rel_pos)"):
        names.from_transformers_keys(tiny_model("wavlm").state_dict(), names.HUBERT)
    with pytest.raises(UserError, match=r"nearest is fairseq HuBERT, but for encoder\.surprise"):
        names.recognize(theirs | {"encoder.surprise": torch.zeros(1)})
    pretraining = {"final_proj.weight": torch.zeros(1), "label_embs_concat": torch.zeros(1)}
    assert_equal(names.to_transformers_keys(theirs | pretraining, names.HUBERT), state)


def test_a_projection_that_fairseq_does_without_is_the_identity():
    state = tiny_model("hubert", conv_dim=(24,) * 7).state_dict()
    with pytest.raises(UserError, match="no feature projection"):
        names.from_transformers_keys(state, names.HUBERT)
    state["feature_projection.projection.weight"] = torch.eye(24)
    state["feature_projection.projection.bias"] = torch.zeros(24)
    theirs = names.from_transformers_keys(state, names.HUBERT)
    assert not any(key.startswith("post_extract_proj") for key in theirs)
    assert_equal(names.to_transformers_keys(theirs, names.HUBERT), state)


@pytest.mark.parametrize("heads", [0, 1, 3])
def test_distiller_conversion_equals_s3prls_model(heads):
    from s3prl_ekd.s3prl_compat import patches

    patches.apply()
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    state, student, predictions = student_state(heads)
    theirs = names.to_distiller(state)
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
    for head, prediction in enumerate(predictions(output.hidden_states[-1])):
        torch.testing.assert_close(prediction, predicted[:, head], atol=1e-5, rtol=0)


def test_what_a_distiller_cannot_hold_is_refused():
    state, _, _ = student_state(2)
    state["heads.1.2.weight"], state["heads.1.2.bias"] = torch.zeros(9, 24), torch.zeros(9)
    with pytest.raises(UserError, match="heads of one size"):
        names.to_distiller(state)
    del state["heads.1.2.weight"]
    with pytest.raises(UserError, match=r"missing heads\.1\.2\.weight"):
        names.to_distiller(state)
    theirs = names.to_distiller(student_state(2)[0])
    del theirs["output_layer.0.bias"]
    with pytest.raises(UserError, match=r"missing output_layer\.0\.bias"):
        names.from_distiller(theirs)
    with pytest.raises(UserError, match="unknown task_embedding"):
        names.from_distiller({"task_embedding.weight": torch.zeros(1)})
