"""``s3prl-ekd export``: a student's folder from whatever holds one, also for stock models of transformers."""

from __future__ import annotations

import pytest
import torch
from helpers_models import speech_like
from helpers_pruned import pruned_student

from s3prl_ekd import cli
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.student.folder import load_student_and_heads, save_student
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

RECIPE = DistillConfig.from_mapping({"teachers": [{"name": "hubert", "mini": "hubert", "layers": [1, 2]}]})


@pytest.fixture
def folder(tmp_path, tiny_student):
    return save_student(tmp_path / "student", tiny_student, PredictionHeads(24, [24, 7]), RECIPE)


def checkpoint(student, path):
    """As run_pretrain writes it."""
    state = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    recipe = RECIPE.to_mapping() | {"student": student.config.to_mapping()}
    torch.save({CHECKPOINT_KEY: state, RECIPE_KEY: recipe, "Step": 10}, path)
    return path


@pytest.mark.parametrize("options", [[], ["--flat"]])
def test_a_student_with_layers_of_equal_size_is_copied(folder, tmp_path, options):
    assert cli.main(["export", str(folder), str(tmp_path / "copy"), *options]) == 0
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in folder.iterdir()}
    for name in ("config.json", "recipe.yaml", "model.safetensors", "README.md"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    heads, copied = (load_student_and_heads(one)[1] for one in (folder, tmp_path / "copy"))
    assert copied.taps == heads.taps
    assert all(torch.equal(copied.state_dict()[name], tensor) for name, tensor in heads.state_dict().items())


def test_half_precision(folder, tmp_path):
    assert cli.main(["export", "--half", str(folder), str(tmp_path / "half")]) == 0
    sizes = [(one / "model.safetensors").stat().st_size for one in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize("command", ["export", "export-checkpoint"])
def test_a_checkpoint_of_layers_of_different_size_becomes_a_stock_folder(command, tmp_path, capsys):
    """AutoModel opens it as a HubertModel, and its layers' outputs are the student's."""
    from transformers import AutoModel, HubertModel

    student = pruned_student("hubert")
    path = checkpoint(student, tmp_path / "states-10.ckpt")
    assert cli.main([command, str(path), str(tmp_path / "flat"), "--flat"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'flat'}: the student of {path}\n"
    model = AutoModel.from_pretrained(tmp_path / "flat").eval()
    assert type(model) is HubertModel
    with torch.no_grad():
        theirs = model(speech_like(6000)[None], output_hidden_states=True).hidden_states
        ours = student(speech_like(6000)[None]).hidden_states
    for layer in (1, 2, 3):
        torch.testing.assert_close(theirs[layer], ours[layer], atol=1e-5, rtol=0)
    assert DistillConfig.from_yaml(tmp_path / "flat/recipe.yaml").teachers == RECIPE.teachers
    assert load_student_and_heads(tmp_path / "flat")[1] is None


def test_nothing_is_written_where_it_cannot_be_flat(tmp_path, capsys):
    student = pruned_student("hubert", num_attention_heads=[5, 0, 0])
    path = checkpoint(student, tmp_path / "states-10.ckpt")
    assert cli.main(["export", str(path), str(tmp_path / "flat"), "--flat"]) == 2
    assert "cannot be made flat" in capsys.readouterr().err
    assert not (tmp_path / "flat").exists()
