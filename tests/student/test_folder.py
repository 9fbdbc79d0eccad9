"""The student's folder: what is in it, who can open it, and what is refused."""

from __future__ import annotations

import argparse
import json
import pickle

import pytest
import torch
from helpers_models import TINY, speech_like
from safetensors.torch import save_file

from s3prl_ekd import load_student
from s3prl_ekd.config.recipe import DistillConfig, StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.student.folder import load_student_and_heads, save_student
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

RECIPE = DistillConfig.from_mapping({"teachers": [{"name": "hubert", "mini": "hubert", "layers": [1, 2]}]})


@pytest.fixture
def folder(tmp_path, tiny_student):
    return save_student(tmp_path / "student", tiny_student, PredictionHeads(24, [24, 7]), RECIPE)


def test_others_may_read_it(tmp_path, tiny_student):
    folder = save_student(tmp_path / "student", tiny_student, PredictionHeads(24, [24]))
    (tmp_path / "file").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "file").stat().st_mode}


@pytest.mark.parametrize(("epsilon", "said"), [(1e-7, False), (1e-5, True)])
def test_the_card_says_where_transformers_normalises_otherwise(tmp_path, epsilon, said):
    wanted = {"normalize_waveform": True, "normalization_eps": epsilon}
    student = Student(StudentConfig.from_mapping({**TINY, **wanted})).eval()
    folder = save_student(tmp_path / "student", student)
    assert ("normalised with 1e-05 added to their variance" in (folder / "README.md").read_text()) is said
    assert load_student(folder).config == student.config


def test_round_trip(folder, tiny_student):
    student, heads = load_student_and_heads(folder)
    assert student.config == tiny_student.config
    assert not student.training
    for name, tensor in tiny_student.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor)
    assert [head[2].out_features for head in heads] == [24, 7]
    assert DistillConfig.from_yaml(folder / "recipe.yaml") == RECIPE
    assert "hubert (layers 1, 2)" in (folder / "README.md").read_text()
    assert {p.name for p in folder.parent.iterdir()} == {"student"}  # no temporary folder stays


def test_transformers_opens_it_and_neither_masks_nor_drops(folder, tiny_student):
    """AutoModel gives layers 1 and 2 exactly; in train mode it does not mask, and has no parameter more."""
    from transformers import AutoFeatureExtractor, AutoModel

    model = AutoModel.from_pretrained(folder).eval()
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in tiny_student.named_parameters()}
    waveform = speech_like(16000)[None]
    with torch.no_grad():
        ours = tiny_student(waveform).hidden_states
        theirs = model(waveform, output_hidden_states=True).hidden_states
        for layer in (1, 2):
            torch.testing.assert_close(theirs[layer], ours[layer], atol=1e-5, rtol=0)
    config = model.config
    assert (config.mask_time_prob, config.mask_feature_prob, config.layerdrop, config.feat_proj_dropout) == (0, 0, 0, 0)
    assert not AutoFeatureExtractor.from_pretrained(folder).do_normalize


def test_half_precision_storage_loads_as_fp32(tmp_path, tiny_student):
    folder = save_student(tmp_path / "half", tiny_student, dtype=torch.float16)
    student = load_student(folder)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    torch.testing.assert_close(
        student.feature_projection.projection.weight,
        tiny_student.feature_projection.projection.weight,
        atol=1e-3,
        rtol=0,
    )


def test_older_names_of_the_position_convolution(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = load_file(path)
    old = {k.replace("parametrizations.weight.original0", "weight_g"): v for k, v in state.items()}
    old = {k.replace("parametrizations.weight.original1", "weight_v"): v for k, v in old.items()}
    assert old.keys() != state.keys()
    save_file(old, path)
    prefix = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
    direction = state[prefix + "1"]
    expected = direction / direction.norm(dim=(0, 1), keepdim=True) * state[prefix + "0"]
    torch.testing.assert_close(load_student(folder).encoder.pos_conv_embed.conv.weight.detach(), expected)


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "but not names and values"),
        (lambda f: save_file({"0.2.weight": torch.zeros(1)}, f / "heads.safetensors"), "no prediction heads"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]), "damaged"),
        (lambda f: edit_json(f / "config.json", model_type="wav2vec2"), "model_type: 'wav2vec2'"),
        (lambda f: edit_json(f / "config.json", hidden_act="relu"), "hidden_act: 'relu'"),
        (lambda f: edit_json(f / "config.json", model_type="wavlm"), "feat_proj_layer_norm: kind wavlm has"),
        (lambda f: edit_json(f / "config.json", conv_bias=True), "conv_layers.0.conv.bias is missing"),
        (lambda f: edit_json(f / "config.json", model_type="ekd_hubert", layer_heads=[4, 4, 4]), "3 numbers for 2"),
        (lambda f: edit_json(f / "config.json", hidden_size=48), "do not fit"),
        (lambda f: edit_json(f / "config.json", num_hidden_layers="two"), "student.num_hidden_layers"),
    ],
)
def test_damaged_or_foreign_folders(folder, damage, words):
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_student(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_the_folder_is_not_the_folder(folder):
    with pytest.raises(UserError, match=f"name the folder, {folder}"):
        load_student(folder / "model.safetensors")
    with pytest.raises(UserError, match="no student folder"):
        load_student(folder.parent)


def test_folder_with_other_files_is_not_overwritten(tmp_path, tiny_student):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        save_student(tmp_path, tiny_student)
    assert (tmp_path / "thesis.tex").read_text() == "x"


def test_pretrain_checkpoint(tmp_path, tiny_student):
    heads = PredictionHeads(24, [24, 24])
    state = {f"student.{k}": v for k, v in tiny_student.state_dict().items()}
    state |= {f"heads.{k}": v for k, v in heads.state_dict().items()}
    recipe = RECIPE.to_mapping() | {"student": tiny_student.config.to_mapping()}
    path = tmp_path / "states-10.ckpt"
    torch.save({CHECKPOINT_KEY: state, RECIPE_KEY: recipe, "Args": argparse.Namespace(x=1), "Step": 10}, path)
    student, loaded_heads = load_student_and_heads(path)
    assert torch.equal(
        student.encoder.layers[1].attention.k_proj.weight, tiny_student.encoder.layers[1].attention.k_proj.weight
    )
    assert len(loaded_heads) == 2


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_checkpoints_of_other_kinds_are_named_and_never_run(tmp_path, capsys):
    path = tmp_path / "x.ckpt"
    for states, words in (
        ({"Downstream": {}, "Featurizer": {}}, "downstream checkpoint of s3prl"),
        ({"cfg": {}, "model": {}}, "a fairseq checkpoint"),
        ({"something": 1}, "entries something"),
        ({"EKD_Student": {}}, "damaged checkpoint"),
        ({"Distiller": {}, "Config": {}}, "damaged checkpoint"),
        ({"EKD_Student": {"student.x": 1}, "Upstream_Config": RECIPE.to_mapping()}, "damaged checkpoint"),
        (torch.zeros(1), "pickled Tensor"),
    ):
        torch.save(states, path)
        with pytest.raises(UserError, match=words):
            load_student(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError):
        load_student(path)
    torch.save({"EKD_Student": Payload()}, path)
    with pytest.raises(UserError, match="could run code"):
        load_student(path)
    path.write_bytes(b"RIFF not a checkpoint")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_student(path)
    assert "code ran" not in capsys.readouterr().out


def test_nowhere(tmp_path):
    for where in (tmp_path / "absent", "nobody/no-such-student"):
        with pytest.raises(UserError, match="no such file or folder"):
            load_student(where)
