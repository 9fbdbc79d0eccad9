"""``run_downstream``: s3prl's runner trains, goes on and evaluates, minus its tracebacks."""

from __future__ import annotations

import builtins
import logging
import os
import shutil
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from helpers_foreign import pruned_hubert
from helpers_models import TINY
from helpers_pruned import pruned_student

from s3prl_ekd import s3prl_hub
from s3prl_ekd.audio import read as audio
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.runners import downstream as downstream_runner
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.model import Student
from s3prl_ekd.weights.pickles import load_pickle_safely


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_train_resume_and_evaluate_in_one_process(place, here, caplog, capfd):
    isinstance_before, save_before, argv_before = builtins.isinstance, torch.save, list(sys.argv)
    shutil.copytree(place / "student", here / "student")
    common = ["-u", "ekd_student", "-k", "student", "-d", "ctc", "-c", str(place / "pr.yaml"), "-n", "x"]
    downstream_runner.run(["-m", "train", *common])
    folder = here / "result/downstream/x"
    first = load_pickle_safely(folder / "states-2.ckpt")
    assert first["Step"] == 2
    assert first["Args"].device == "cpu"
    with pytest.raises(UserError, match=r"result/downstream/x: holds a run already; add -a"):
        downstream_runner.run(["-m", "train", *common])
    with pytest.raises(UserError, match=r"-o: unknown key 'runner.total_step'; did you mean 'total_steps'"):
        downstream_runner.run(["-m", "train", *common, "-a", "-o", "config.runner.total_step=3"])
    with pytest.raises(UserError, match=r"-o: runner.gradient_clipping: expected a positive number, found 0"):
        downstream_runner.run(["-m", "train", *common, "-a", "-o", "config.runner.gradient_clipping=0"])

    cut(folder / "states-2.ckpt")  # as if it had been killed while it wrote
    with caplog.at_level(logging.WARNING):
        downstream_runner.run(["-m", "train", *common, "-a", "-o", "config.runner.total_steps=3"])
    assert "states-2.ckpt: not a checkpoint, or a damaged one: incomplete: its end is missing" in caplog.text
    assert "; going on from states-1.ckpt (step 1)" in caplog.text
    assert "the run goes on as it was" not in caplog.text  # -c says the same as the checkpoint
    assert load_pickle_safely(folder / "states-3.ckpt")["Step"] == 3

    capfd.readouterr()
    best = ["-m", "evaluate", "-e", str(folder / "dev-best.ckpt")]
    downstream_runner.run([*best, "-t", "dev"])
    unmoved = capfd.readouterr().out
    assert "dev per: " in unmoved
    with pytest.raises(UserError, match=r"-t is missing: .* valid: dev, train"):
        downstream_runner.run(best)
    with_test = ["-o", "config.downstream_expert.corpus.test=['dev']"]
    downstream_runner.run([*best, *with_test])
    assert "test per: " in capfd.readouterr().out

    (here / "student").rename(here / "moved")
    with pytest.raises(UserError, match=r"^student: .*; if the upstream has been moved, say by -k where it is now"):
        downstream_runner.run([*best, "-t", "dev"])
    edited = yaml.safe_load((place / "pr.yaml").read_text())
    edited["optimizer"]["lr"] = 0.5
    (here / "edited.yaml").write_text(yaml.safe_dump(edited))
    os.rename(folder, here / "run")
    best = ["-m", "evaluate", "-e", "run/dev-best.ckpt", "-t", "dev"]
    downstream_runner.run([*best, "-k", "moved", "-c", "edited.yaml"])
    moved = capfd.readouterr().out
    assert [line for line in moved.splitlines() if "per: " in line] == [
        line for line in unmoved.splitlines() if "per: " in line
    ]
    assert "edited.yaml: optimizer.lr is 0.5, the run's is 0.01" in caplog.text
    assert not folder.exists()  # what it writes is beside the checkpoint
    other = {"num_hidden_layers": 1} | {key: value for key, value in TINY.items() if key != "num_hidden_layers"}
    save_student(here / "other", Student(StudentConfig.from_mapping(other)))
    with pytest.raises(UserError, match=r"s3prl stopped with RuntimeError: .* size mismatch .*load_state_dict"):
        downstream_runner.run([*best, "-k", "other"])

    assert builtins.isinstance is isinstance_before  # s3prl replaces it
    assert torch.save is save_before
    assert sys.argv == argv_before


def write_as(path: Path, samples: np.ndarray, rate: int = 16000) -> None:
    """A WAV file of floats, whatever its name says."""
    soundfile.write(path, samples, rate, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize(
    ("damage", "workers", "message"),
    [
        (cut, 1, "truncated"),
        (lambda path: path.write_bytes(b""), 0, "empty file"),
        (lambda path: write_as(path, np.full(8000, np.nan)), 0, "holds NaN or infinite samples"),
    ],
)
def test_bad_audio_is_one_line(place, here, damage, workers, message):
    corpus = shutil.copytree(place / "corpus", here / "corpus")
    damage(corpus / "train/1/2/1-2-0002.flac")
    with pytest.raises(UserError) as caught:
        train_on(corpus, place, here, workers)
    line = str(caught.value)
    assert line.startswith(f"{corpus}/train/1/2/1-2-0002.flac: ")
    assert message in line


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_a_student_whose_layers_differ_in_size_is_fine_tuned_and_evaluated(place, here, capfd, kind):
    """One layer has no attention heads, one no inner units; ``-f`` trains the upstream, too."""
    student = pruned_student(kind)
    save_student(here / "student", student)
    common = ["-u", "ekd_student", "-k", "student", "-d", "ctc", "-c", str(place / "pr.yaml"), "-n", "x", "-f"]
    downstream_runner.run(["-m", "train", *common])
    trained = load_pickle_safely(here / "result/downstream/x/states-2.ckpt")["Upstream"]
    names = {name for name in student.state_dict() if name.startswith("encoder.layers.1.attention")}
    moved = {name for name, before in student.state_dict().items() if (trained[f"student.{name}"] != before).any()}
    assert names - moved >= {f"encoder.layers.1.attention.{p}_proj.weight" for p in "qkv"}  # nothing there to move
    assert {"encoder.layers.1.attention.out_proj.bias", "encoder.layers.0.attention.q_proj.weight"} <= moved
    capfd.readouterr()
    downstream_runner.run(["-m", "evaluate", "-e", "result/downstream/x/dev-best.ckpt", "-t", "dev"])
    assert "dev per: " in capfd.readouterr().out


def test_a_damaged_file_of_another_project_is_named(place, here):
    torch.save(pruned_hubert()[1], here / "pruned.pth")
    cut(here / "pruned.pth")
    options = ["-u", "ekd_student", "-k", "pruned.pth", "-d", "ctc", "-c", str(place / "pr.yaml"), "-p", "out"]
    with pytest.raises(UserError, match=r"^pruned\.pth: not a checkpoint, or a damaged one: incomplete"):
        downstream_runner.run(["-m", "train", *options])
    assert not (here / "out").exists()


def test_other_rates_and_channels_are_heard_as_speech(place, here, caplog):
    corpus = shutil.copytree(place / "corpus", here / "corpus")
    write_as(corpus / "train/1/2/1-2-0002.flac", 0.1 * np.random.default_rng(0).normal(size=(8000, 2)), 8000)
    train_on(corpus, place, here, workers=0)
    assert caplog.text.count("resampled to 16000 Hz") == 1
    assert caplog.text.count("are averaged") == 1


def train_on(corpus: Path, place: Path, here: Path, workers: int) -> None:
    configuration = yaml.safe_load((place / "pr.yaml").read_text())
    configuration["downstream_expert"]["corpus"] |= {"path": str(corpus), "num_workers": workers}
    (here / "pr.yaml").write_text(yaml.safe_dump(configuration))
    audio._said.clear()
    downstream_runner.run(["-m", "train", "-u", "fbank", "-d", "ctc", "-c", "pr.yaml", "-p", "out"])


DOWNSTREAM = "-m train -u fbank -d ctc -c {place}/pr.yaml -p out "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DOWNSTREAM + "-u ekd_student", "-u ekd_student needs -k"),
        (DOWNSTREAM + "-u ekd_student -k /no/student", "/no/student"),
        (DOWNSTREAM + "-u fbamk", "did you mean 'fbank'"),
        (DOWNSTREAM + "-u hubert_local -k no.pt", "-k no.pt: no such file"),
        (DOWNSTREAM + "-u ekd_student_mini -s hidden_state", "-s hidden_state: .* did you mean 'hidden_states'"),
        (DOWNSTREAM + "-d ctx", "did you mean 'ctc'"),
        (DOWNSTREAM + "-d foo.bar", "-d foo.bar: s3prl has no such task"),
        (DOWNSTREAM + "-o config.downstream_expert.text.vocab_file=None", "text.vocab_file: null; fill in the path"),
        (DOWNSTREAM + "-o config.runner.total_step=4", "-c .*pr.yaml with -o: .* did you mean 'total_steps'"),
        (DOWNSTREAM + "-o config.downstream_expert.model.projct_dim=4", "did you mean 'project_dim'"),
        (DOWNSTREAM + "-o runner.total_steps=4", "-o runner.total_steps=4: expected args.KEY=VALUE"),
        (DOWNSTREAM + "-o config.downstream_expert.text.vocab_file=null", "text.vocab_file: null; fill in the path"),
        (DOWNSTREAM + "-o config.runner.gradient_clipping=0", "gradient_clipping: expected a positive number"),
        (DOWNSTREAM + "-c no.yaml", "-c no.yaml: no such file"),
        (DOWNSTREAM + "-d asr -c recipes/downstream/mini/asr.yaml", "datarc.libri_root, .*: null; .* s3prl-ekd superb"),
        (DOWNSTREAM + "-c {place}/config_model.yaml", "has no section 'optimizer'"),
        (DOWNSTREAM + "-o config.optimizer.lr=fast", "-c .* with -o: optimizer or scheduler: TypeError: .* 'str'"),
        (DOWNSTREAM + "-u ekd_student_mini -l 7", r"s3prl stopped with IndexError: .*feature\[self.layer_selection\]"),
        (DOWNSTREAM + "-o config.specaug.num_tme_mask=2", "s3prl stopped with TypeError: .* 'num_tme_mask'"),
        (DOWNSTREAM + "-o config.runner.save_step=0", "ZeroDivisionError: .*runner.py, line .*'save_step'"),
        (DOWNSTREAM + "--seed x", "argument --seed: invalid int value: 'x'; run_downstream.py --help shows how"),
        (DOWNSTREAM + "-o args.seed=-1", "s3prl stopped with ValueError: Seed must be between"),
        (DOWNSTREAM + "-m trian", "-m/--mode: invalid choice: 'trian'"),
        ("", "-m is missing: train or evaluate"),
        (
            "-m evaluate -u fbank -d ctc -c {place}/pr.yaml -p out -t dve",
            "KeyError: 'dve' .*downstream/ctc/data.py, line",
        ),
        (
            DOWNSTREAM + "-c recipes/downstream/real/pt.yaml",
            "none of .* recipes; did you mean 'downstream/real/pr.yaml'",
        ),
        (DOWNSTREAM + "-g no.yaml", "-g no.yaml: no such file"),
        (DOWNSTREAM + "-i no.ckpt", "-i no.ckpt: no such file"),
        (DOWNSTREAM + "--local_rank 0", "on GPUs only"),
        (DOWNSTREAM + "--device cuda", "no GPU"),
        (DOWNSTREAM + "-g qqq", "-g qqq: no such file"),
        ("-m train -u fbank -d ctc -p out", "-c is missing"),
        ("-m train -u fbank -d ctc -c {place}/pr.yaml", "-n NAME .* or -p FOLDER"),
        ("-m train -a -u fbank -d ctc -c {place}/pr.yaml", "-a needs the experiment"),
        ("-m evaluate -u fbank -d ctc -c {place}/pr.yaml -p out -i {place}/pr.yaml", "not a checkpoint"),
        ("-m train -u fbank -p out", "-d is missing"),
        ("-m train -d ctc -c {place}/pr.yaml -p out", "-u is missing"),
        ("-m evaluate -e no.ckpt", "-e no.ckpt: no such checkpoint"),
        ("-m evaluate -e {place}/corpus", "holds no states-"),
        ("-m evaluate -e {place}/pr.yaml", "not a checkpoint, or a damaged one"),
    ],
)
def test_mistakes_downstream(place, here, options, message):
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=message) as caught:
        downstream_runner.run(options.format(place=place).split())
    assert "\n" not in str(caught.value)
    assert list(here.iterdir()) == []  # nothing half-written


def test_an_upstream_that_runs_code_of_a_file_and_cannot_be_fetched(place, here, caplog, monkeypatch):
    s3prl_hub.register()
    torch.save({}, here / "a.pt")

    def hubert_base(**kwargs):
        torch.load("a.pt", weights_only=False)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("s3prl.hub.hubert_base", hubert_base)
    options = [*DOWNSTREAM.format(place=place).split(), "-u", "hubert_base"]
    with pytest.raises(UserError, match=r"weights of hubert_base could not be fetched .* -u hubert_local -k FILE"):
        downstream_runner.run(options)
    assert "-u hubert_base unpickles a.pt, which can run code in it" in caplog.text
    assert [path.name for path in here.iterdir()] == ["a.pt"]


def test_an_upstream_whose_file_is_something_else(place, here, monkeypatch):
    s3prl_hub.register()
    (here / "a.pt").write_text("<html></html>")
    monkeypatch.setattr("s3prl.hub.hubert_base", lambda **kwargs: torch.load("a.pt"))
    options = [*DOWNSTREAM.format(place=place).split(), "-u", "hubert_base"]
    with pytest.raises(UserError, match=r"-u hubert_base cannot be loaded \(a.pt: .*a web page \(HTML\)"):
        downstream_runner.run(options)


def test_an_upstream_of_the_hub_works_and_is_warned_of(place, here, caplog, monkeypatch):
    """``--hub huggingface``, which today's huggingface_hub breaks in three places."""
    snapshot = here / "hub/models--somebody--model/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "requirements.txt").write_text("torch\n")
    (snapshot / "expert.py").write_text(
        "import torch\n"
        "class UpstreamExpert(torch.nn.Module):\n"
        "    def __init__(self, ckpt, **kwargs):\n"
        "        super().__init__()\n"
        "        self.ckpt = ckpt\n"
        "    def get_downsample_rates(self, key):\n"
        "        return 320\n"
        "    def forward(self, wavs):\n"
        "        assert self.ckpt.endswith('model.pt')\n"
        "        return {'hidden_states': [torch.ones(len(wavs), max(map(len, wavs)) // 320, 4)] * 2}\n"
    )
    refs = here / "hub/models--somebody--model/refs"
    refs.mkdir()
    (refs / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    common = ["-d", "ctc", "-c", str(place / "pr.yaml"), "-p", "out", "-o", "config.runner.eval_step=9"]
    with caplog.at_level(logging.WARNING):
        downstream_runner.run(["-m", "train", "-u", "somebody/model", "--hub", "huggingface", *common])
    assert "runs the code (expert.py) of the repository somebody/model" in caplog.text
    assert (here / "out/states-2.ckpt").is_file()
