"""docs/checkpoints.md: every row of its tables is tried, by every door that it names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from helpers_files import (
    IMPOSTORS,
    as_pickle,
    save_again,
    save_classification,
    save_ctc,
    save_in_parts,
)
from helpers_foreign import as_fairseq_writes_it, masked_hubert, of_torchaudio, pruned_hubert, pruned_wavlm
from helpers_models import ROOT, TINY, speech_like
from helpers_teachers import KERNELS, STRIDES, padded_states, s3prl_checkpoint, tiny_model
from helpers_weights import distiller_weights

from s3prl_ekd import load_student
from s3prl_ekd.cli import main
from s3prl_ekd.config.recipe import DistillConfig, TeacherConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.s3prl_plugin import hub as plugin
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student
from s3prl_ekd.teachers import load_teacher
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

DOC = (ROOT / "docs/checkpoints.md").read_text(encoding="utf-8")
RECIPE = DistillConfig.from_mapping(
    {"student": TINY, "teachers": [{"name": "hubert", "mini": "hubert", "layers": [1, 2]}]}
)


def table(heading: str) -> list[list[str]]:
    """The cells of the rows of the table whose first column is called ``heading``."""
    lines = DOC.split(f"| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


LOADS = table("what it is")


def a_student() -> tuple[Student, PredictionHeads]:
    torch.manual_seed(0)
    return Student(RECIPE.student).eval(), PredictionHeads(24, [24, 24])


def student_folder(place: Path, **options) -> Path:
    return save_student(place / "student", *a_student(), RECIPE, **options)


def saved_by(write: Callable[[Path, Path], None]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        write(student_folder(place), place / "saved")
        return place / "saved"

    return make


def run_checkpoint(place: Path, **more) -> Path:
    student, heads = a_student()
    state = {f"student.{name}": tensor for name, tensor in student.state_dict().items()}
    state |= {f"heads.{name}": tensor for name, tensor in heads.state_dict().items()}
    torch.save({CHECKPOINT_KEY: state, RECIPE_KEY: RECIPE.to_mapping(), "Step": 1, **more}, place / "states-1.ckpt")
    return place / "states-1.ckpt"


def distiller_checkpoint(place: Path) -> Path:
    student, heads = a_student()
    state = student.state_dict() | {f"heads.{name}": tensor for name, tensor in heads.state_dict().items()}
    settings = {
        "extractor_conv_feature_layers": str(list(zip(TINY["conv_dim"], KERNELS, STRIDES, strict=True))),
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "encoder_layers": 2,
        "encoder_embed_dim": 24,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 4,
        "feature_grad_mult": 0.1,
        "final_dim": 24,
        "n_tasks": 2,
        "pred_layer_id": [1, 2],
    }
    torch.save({"Distiller": distiller_weights(state), "Config": {"distiller": settings}}, place / "distiller.ckpt")
    return place / "distiller.ckpt"


def of_transformers(kind: str) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        from transformers import Wav2Vec2FeatureExtractor

        tiny_model(kind).save_pretrained(place / kind)
        Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(place / kind)
        return place / kind

    return make


def of_s3prl(kind: str) -> Callable[[Path], Path]:
    return lambda place: s3prl_checkpoint(tiny_model(kind), kind, place / "model.pt")


def fairseq_checkpoint(place: Path) -> Path:
    return as_fairseq_writes_it(of_s3prl("hubert")(place), place / "fairseq.pt")


def torchaudio_checkpoint(place: Path) -> Path:
    torch.save(of_torchaudio().state_dict(), place / "model.pt")
    (place / "model.json").write_text('{"encoder_num_heads": 4}')  # published sizes tell it
    return place / "model.pt"


def dphubert_checkpoint(place: Path) -> Path:
    torch.save(pruned_hubert()[1], place / "dphubert.pth")
    return place / "dphubert.pth"


def diarizen_folder(place: Path) -> Path:
    _, states = pruned_wavlm()
    weights = {f"wavlm_model.{name}": tensor for name, tensor in states["state_dict"].items()}
    torch.save(weights | {"classifier.bias": torch.zeros(2)}, place / "pytorch_model.bin")
    (place / "pytorch_model.json").write_text(json.dumps(states["config"]))
    return place / "pytorch_model.bin"


def downstream_checkpoint(place: Path) -> Path:
    torch.save({"Downstream": {}, "Featurizer": {}, "Step": 1}, place / "dev-best.ckpt")
    return place / "dev-best.ckpt"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "a student's folder": student_folder,
    "a student's folder in half precision (`--half`)": lambda place: student_folder(place, dtype=torch.float16),
    "a student that `AutoModel` has saved again": saved_by(save_again),
    "a student fine-tuned as `HubertForCTC`": saved_by(save_ctc),
    "a student fine-tuned as `HubertForSequenceClassification`": saved_by(save_classification),
    "a student's folder with `pytorch_model.bin` only": lambda place: as_pickle(student_folder(place)),
    "a student's folder with weights in several files": saved_by(save_in_parts),
    "`states-*.ckpt` of `run_pretrain -u ekd_student`": run_checkpoint,
    "`step-*.ckpt` of `s3prl-ekd distill`": lambda place: run_checkpoint(
        place, EKD_Run={}, **{"pytorch-lightning_version": "2.5", "state_dict": {}}
    ),
    "a checkpoint of s3prl's distiller (DistilHuBERT)": distiller_checkpoint,
    "a HuBERT of transformers": of_transformers("hubert"),
    "a wav2vec 2.0 of transformers": of_transformers("wav2vec2"),
    "a WavLM of transformers": of_transformers("wavlm"),
    "a HuBERT as s3prl converts it (`.pt`)": of_s3prl("hubert"),
    "a wav2vec 2.0 as s3prl converts it (`.pt`)": of_s3prl("wav2vec2"),
    "a WavLM as released (`.pt`)": of_s3prl("wavlm"),
    "a HuBERT as fairseq writes it, with its `Dictionary`": fairseq_checkpoint,
    "a HuBERT or WavLM of torchaudio, saved by `torch.save(model.state_dict(), WHERE)`": torchaudio_checkpoint,
    "a DPHuBERT or DPWavLM (`.pth`)": dphubert_checkpoint,
    "a pruned WavLM of DiariZen (`pytorch_model.bin`), its settings as `pytorch_model.json` beside it": diarizen_folder,
    "a MaskHuBERT (Lightning's `.ckpt`), its `.yaml` beside it": lambda place: masked_hubert(place)[1],
    "a downstream checkpoint of s3prl (`dev-best.ckpt`)": downstream_checkpoint,
}


def test_every_row_has_its_case():
    assert [row[0] for row in LOADS] == list(MAKERS)


@pytest.mark.parametrize("row", LOADS, ids=lambda row: row[0])
def test_what_loads(tmp_path, row, caplog):
    what, as_student, as_teacher, auto = row
    where = MAKERS[what](tmp_path)
    caplog.clear()
    check_student(where, as_student, a_student()[0] if "student" in what or "DistilHuBERT" in what else None)
    for module in re.findall(r"without `(\w+)`", as_student):
        assert f"{where}: " in caplog.text
        assert module in caplog.text
    check_teacher(where, as_teacher)
    check_auto_model(where, auto)


def check_student(where: Path, answer: str, reference: Student | None) -> None:
    """``reference``: None for another project's model, whose numbers tests/student/test_other_projects.py compares."""
    patches.apply()
    import s3prl.hub

    plugin.register()
    if answer == "no":
        with pytest.raises(UserError):
            load_student(where)
        return
    assert answer.split(",")[0] == "yes"
    wave = speech_like(8000)
    with torch.no_grad():
        student = load_student(where)
        expected = (reference or student)(wave[None]).hidden_states
        hub = torch.hub.load(str(ROOT), "ekd_student", ckpt=str(where), source="local", verbose=False)
        runner = s3prl.hub.ekd_student(ckpt=str(where), model_config=None, refresh=False)  # as -u calls it
        found = [student(wave[None]).hidden_states, hub([wave])["hidden_states"], runner([wave])["hidden_states"]]
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}
    for states in found:
        for state, reference in zip(states, expected, strict=True):
            torch.testing.assert_close(state[:, :24], reference, atol=2e-2, rtol=0)  # half precision loses some


def check_teacher(where: Path, answer: str) -> None:
    entries = [yaml.safe_load(f"{{{words}}}") for words in re.findall(r"`([^`]*WHERE)`", answer)]
    assert bool(entries) is not answer.startswith("no")
    for entry in entries or [{"transformers": "WHERE"}, {"s3prl": "hubert_local", "ckpt": "WHERE"}]:
        given = {key: str(where) if value == "WHERE" else value for key, value in entry.items()}
        config = TeacherConfig(name="t", layers=(1, 2), **given)
        if answer.startswith("no"):
            with pytest.raises(UserError):
                load_teacher(config)
            continue
        states, frames = padded_states(load_teacher(config), speech_like(8000)[None], torch.tensor([8000]))
        assert [tuple(state.shape) for state in states] == [(1, int(frames), 24)] * 2


def check_auto_model(where: Path, answer: str) -> None:
    from transformers import AutoModel

    if answer == "no":
        with pytest.raises((OSError, ValueError)):
            AutoModel.from_pretrained(where)
    else:
        assert answer.split(",")[0] == "yes"
        assert AutoModel.from_pretrained(where).dtype is torch.float32


def test_a_distiller_that_s3prl_has_resumed(tmp_path):
    """s3prl then writes the runner's configuration over the distiller's, unless that is kept under another name."""
    path = distiller_checkpoint(tmp_path)
    states = torch.load(path, weights_only=True)
    torch.save(states | {"Config": {"runner": {}}, RECIPE_KEY: states["Config"]}, path)
    check_student(path, "yes", a_student()[0])
    torch.save(states | {"Config": {"runner": {}}}, path)
    with pytest.raises(UserError, match=f"{path}: .*its configuration is not there"):
        load_student(path)


REFUSED = {
    "empty": "empty",
    "a git-lfs pointer": "git-lfs pointer",
    "a web page": "web page",
    "cut off": "truncated",
    "packed": "gzip",
    "a zip of something else": "zip",
    "fairseq's, with objects of others": "fairseq with objects of others",
    "a pickle of objects": "code",
}


def test_what_is_refused(tmp_path):
    rows = table("the file is")
    assert [row[0] for row in rows] == list(REFUSED)
    for what, message, _ in rows:
        path = tmp_path / "model.pt"
        path.unlink(missing_ok=True)
        IMPOSTORS[REFUSED[what]][0](path)
        teacher = TeacherConfig(name="t", s3prl="wavlm_local", ckpt=str(path), layers=(1,))
        for door, argument in ((load_student, path), (load_teacher, teacher)):
            with pytest.raises(UserError, match=f"{path}: .*{re.escape(message)}"):
                door(argument)


def test_what_leaves(tmp_path, capsys):
    from safetensors import safe_open

    checkpoint = run_checkpoint(tmp_path)
    assert main(["export-checkpoint", str(checkpoint), str(tmp_path / "whole")]) == 0
    assert main(["export-checkpoint", str(checkpoint), str(tmp_path / "half"), "--half"]) == 0
    files = {row[0].strip("`") for row in table("file")}
    sizes = []
    for folder in (tmp_path / "whole", tmp_path / "half"):
        assert {path.name for path in folder.iterdir()} == files
        with safe_open(folder / "heads.safetensors", "pt") as heads:
            assert heads.metadata()["targets"] == '["hubert/1", "hubert/2"]'
        sizes.append((folder / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_stock_s3prl_opens_the_folder(tmp_path):
    """By its own upstream for transformers' folders; for one utterance alone the layers are ours."""
    patches.apply()
    import s3prl.hub as hub

    folder = student_folder(tmp_path)
    wave = speech_like(8000)
    with torch.no_grad():
        theirs = hub.hf_hubert_custom(ckpt=str(folder)).eval()([wave])["hidden_states"]
        ours = load_student(folder)(wave[None]).hidden_states
    for layer in (1, 2):
        torch.testing.assert_close(theirs[layer], ours[layer], atol=1e-5, rtol=0)
    assert not torch.allclose(theirs[0], ours[0], atol=1e-2)  # after the position convolution, and before it


def test_padding_changes_what_transformers_gives_and_not_what_we_give(tmp_path):
    from transformers import AutoFeatureExtractor, AutoModel

    folder = student_folder(tmp_path)
    short, long = speech_like(20000, 1), speech_like(30000, 2)
    batch = AutoFeatureExtractor.from_pretrained(folder)(
        [short.numpy(), long.numpy()], sampling_rate=16000, return_tensors="pt", padding=True
    )
    model, student = AutoModel.from_pretrained(folder).eval(), load_student(folder)
    with torch.no_grad():
        alone = model(short[None]).last_hidden_state[0]
        theirs = model(**batch).last_hidden_state[0, : len(alone)]
        ours = student(batch["input_values"], torch.tensor([20000, 30000])).hidden_states[-1][0, : len(alone)]
    assert (theirs - alone).norm() / alone.norm() > 0.02
    torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)
