"""A file that is not the model it should be is named as what it is, by whatever door it comes in."""

from __future__ import annotations

import json
import random
import re
import shutil

import pytest
import torch
import yaml
from helpers_files import IMPOSTORS, PAGE, POINTER, as_pickle
from helpers_models import TINY
from helpers_teachers import s3prl_checkpoint, tiny_model
from safetensors.torch import load_file, save_file

from s3prl_ekd import load_student
from s3prl_ekd.cli import main
from s3prl_ekd.config.recipe import TeacherConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.teachers import load_teacher


@pytest.fixture
def folder(tmp_path, tiny_student):
    return save_student(tmp_path / "student", tiny_student)


def refusal(work, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        work(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def teacher(**entry):
    return load_teacher(TeacherConfig(name="t", layers=(1,), **entry))


@pytest.mark.parametrize("kind", IMPOSTORS)
def test_a_file_that_is_no_checkpoint(tmp_path, kind, capfd):
    make, words = IMPOSTORS[kind]
    path = tmp_path / "hubert.pt"
    make(path)
    recipe = {
        "student": TINY | {"initialize_from": "t"},
        "teachers": [{"name": "t", "s3prl": "hubert_local", "ckpt": str(path), "layers": [1]}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = [refusal(load_student, path), refusal(teacher, s3prl="hubert_local", ckpt=str(path))]
    capfd.readouterr()
    for command in (["export-checkpoint", str(path)], ["init-student", str(tmp_path / "recipe.yaml")]):
        assert main([*command, str(tmp_path / "out")]) == 2
        said.append(capfd.readouterr().err.strip().splitlines()[-1])
    for line in said:
        assert str(path) in line
        assert re.search(words, line), line
    assert sorted(item.name for item in tmp_path.iterdir()) == ["hubert.pt", "recipe.yaml"]
    assert "code ran" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("contents", "kind", "words"),
    [
        ({"cfg": {"relative_position_embedding": True}, "model": {}}, "hubert_local", "a WavLM .*wavlm_local"),
        ({"cfg": {"encoder_layers": 12}, "model": {}}, "hubert_local", "a UniSpeech-SAT .*unispeech_sat_local"),
        ({"model_cfg": {"label_rate": 50}, "model_weight": {}}, "wavlm_local", "s3prl-converted HuBERT .*hubert_local"),
        ({"model_cfg": {"_name": "wav2vec2"}, "model_weight": {}}, "hubert_local", "wav2vec 2.0 .*wav2vec2_local"),
        ({"model_cfg": {"_name": "data2vec_audio"}, "model_weight": {}}, "wavlm_local", "data2vec .*data2vec_local"),
        (
            {"cfg": {"model": {"_name": "student_hubert"}}, "model": {}},
            "hubert_local",
            "LightHuBERT .*lighthubert_local",
        ),
        ({"cfg": None, "args": None, "model": {}}, "hubert_local", "a fairseq checkpoint of another model"),
        ({"EKD_Student": {}, "Upstream_Config": {}}, "distiller_local", "ekd_student .*export-checkpoint"),
        ({"Distiller": {}, "Config": {}}, "hubert_local", "s3prl's distiller .*distiller_local"),
        ({"Downstream": {}, "Featurizer": {}}, "hubert_local", "a downstream checkpoint"),
        ({"encoder.layer_norm.weight": torch.zeros(3)}, "hubert_local", "weights alone, .*name the folder"),
    ],
)
def test_one_teacher_given_as_another(tmp_path, contents, kind, words):
    path = tmp_path / "model.pt"
    torch.save(contents, path)
    assert re.search(f"{path}: {'.*' + words}", refusal(teacher, s3prl=kind, ckpt=str(path)))
    if not {"EKD_Student", "Distiller"} & contents.keys():
        assert re.search(f"{path}: holds no student, it is .*{words}", refusal(load_student, path))


@pytest.mark.parametrize(("kind", "upstream"), [("wavlm", "hubert_local"), ("hubert", "wav2vec2_local")])
def test_a_whole_model_given_as_another(tmp_path, kind, upstream):
    path = s3prl_checkpoint(tiny_model(kind), kind, tmp_path / "model.pt")
    assert f"as a teacher: s3prl: {kind}_local, ckpt: FILE" in refusal(teacher, s3prl=upstream, ckpt=str(path))


# What may be wrong with a file of a transformers folder -> how it becomes so, and words that name it.
SPOILT = {
    "empty": (lambda path: path.write_bytes(b""), "an empty file; download or copy it again"),
    "git-lfs pointer": (lambda path: path.write_text(POINTER), "a git-lfs pointer.*git lfs pull"),
    "web page": (lambda path: path.write_text(PAGE), r"a web page \(HTML\)"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "incomplete|not valid"),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin", "heads.safetensors"]
)
def test_a_spoilt_file_of_a_folder(folder, name, kind):
    spoil, words = SPOILT[kind]
    if name == "pytorch_model.bin":
        as_pickle(folder)
    if name == "heads.safetensors":
        save_file({"0.0.bias": torch.zeros(24)}, folder / name)
    spoil(folder / name)
    said = [refusal(load_student, folder)]
    if name != "heads.safetensors":
        said.append(refusal(teacher, transformers=str(folder)))
        said.append(refusal(teacher, s3prl="hf_hubert_custom", ckpt=str(folder)))
    for line in said:
        assert re.search(f"{folder / name}: .*({words})", line), line


def test_a_folder_whose_weights_could_run_code(folder):
    as_pickle(folder)
    make, words = IMPOSTORS["code"]
    make(folder / "pytorch_model.bin")
    for door, where in ((load_student, folder), (lambda path: teacher(transformers=str(path)), folder)):
        assert re.search(f"pytorch_model.bin: .*{words}", refusal(door, where))


def test_parts_that_are_missing_or_elsewhere(folder):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"
    for name in ("other.safetensors", "../student/part.safetensors", 3):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        assert str(index) in refusal(load_student, folder)
    index.write_text("{")
    assert f"{index}: not valid JSON" in refusal(load_student, folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_damage_anywhere_is_one_line(folder, name):
    """Bytes changed, inserted and missing: what is not noticed loads, and nothing else is raised."""
    if name == "pytorch_model.bin":
        as_pickle(folder)
    whole = (folder / name).read_bytes()
    generator = random.Random(0)
    lines = []
    for _ in range(60):
        bytes_ = bytearray(whole)
        place = generator.randrange(min(len(whole), 3000))
        match generator.randrange(4):
            case 0:
                bytes_[place] ^= 1 << generator.randrange(8)
            case 1:
                bytes_[place:place] = generator.randbytes(generator.choice((1, 300)))
            case 2:
                bytes_ = bytes_[:place]
            case 3:
                bytes_ = bytes_[: generator.randrange(len(whole))]
        (folder / name).write_bytes(bytes_)
        try:
            load_student(folder)
        except UserError as error:
            lines.append(str(error))
    assert len(lines) > 30
    assert all("\n" not in line and str(folder) in line for line in lines)


# --- in a cache, the file to delete -----------------------------------------------------------------------------------


def test_a_broken_download_of_s3prl_names_the_file_to_delete(tmp_path, monkeypatch):
    import hashlib

    from s3prl_ekd.s3prl_compat import patches

    patches.apply()
    import s3prl.util.download as download

    monkeypatch.setattr(download, "_download_dir", tmp_path)
    url = "https://huggingface.co/s3prl/converted_ckpts/resolve/main/hubert_base_ls960.pt"
    path = tmp_path / f"{hashlib.sha256(url.encode()).hexdigest()}.hubert_base_ls960.pt"
    for kind, words in (
        ("truncated", "incomplete: its end is missing"),
        ("web page", "a web page"),
        ("empty", "empty"),
    ):
        path.unlink(missing_ok=True)
        IMPOSTORS[kind][0](path)
        line = refusal(teacher, s3prl="hubert_base")
        assert re.search(f"{path}: .*{words}.*; delete {path} and start again", line), line


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_file_in_the_hubs_cache_names_the_file_to_delete(folder, tmp_path, monkeypatch, name):
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = cache / "models--some--student" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    blob = snapshot.parents[1] / "blobs" / "123"
    blob.parent.mkdir()
    (snapshot / name).rename(blob)
    (snapshot / name).symlink_to(blob)
    assert load_student("some/student").config.hidden_size == 24
    blob.write_text(PAGE)
    for line in (refusal(load_student, "some/student"), refusal(teacher, transformers="some/student")):
        assert re.search(f"{name}: .*a web page .*; delete {blob} and start again", line), line


# --- sizes and values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", 24_000_000),
        ("intermediate_size", 10**12),
        ("num_hidden_layers", 10**9),
        ("num_conv_pos_embeddings", 10**12),
        ("conv_dim", [10**9] * 7),
    ],
)
def test_absurd_sizes_take_no_memory(folder, name, value, monkeypatch):
    """They are refused before a network is made: a student's by their bounds, a teacher's by what is in the folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    def network(*args, **options):
        raise AssertionError("a network is made")

    for target in ("s3prl_ekd.student.folder.Student", "transformers.AutoModel.from_pretrained"):
        monkeypatch.setattr(target, network)
    size = max(value) if isinstance(value, list) else value
    for _ in range(2):
        assert f"{path}: student.{name}" in refusal(load_student, folder)
        assert f"{path}: {name} is {size}, but none of the weights" in refusal(teacher, transformers=str(folder))
        if (folder / "model.safetensors").exists():
            as_pickle(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, tmp_path, tiny_student, value):
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layers.1.attention.k_proj.weight"
    weights[name][2, 3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for line in (refusal(load_student, folder), refusal(teacher, transformers=str(folder))):
        assert f"{folder}: {name} holds NaN or infinity" in line
    torch.nn.init.constant_(tiny_student.encoder.layer_norm.weight, value)
    assert "encoder.layer_norm.weight holds NaN" in refusal(save_student, tmp_path / "new", tiny_student)
    assert not (tmp_path / "new").exists()


def test_weights_too_large_for_half_precision_are_not_written(tmp_path, tiny_student):
    torch.nn.init.constant_(tiny_student.encoder.layer_norm.bias, 70000.0)
    assert "encoder.layer_norm.bias holds NaN or infinity" in refusal(
        save_student, tmp_path / "half", tiny_student, dtype=torch.float16
    )
    assert not list(tmp_path.iterdir())
    save_student(tmp_path / "whole", tiny_student)
