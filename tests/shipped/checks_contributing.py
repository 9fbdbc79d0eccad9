"""What CONTRIBUTING.md adds is used: run by test_contributing.py in a copy of the package that has it."""

from __future__ import annotations

import csv
import json

import soundfile
import torch
from helpers_models import speech_like

from s3prl_ekd.cli import main
from s3prl_ekd.config.recipe import DistillConfig

STUDENT = {
    "conv_dim": [32] * 7,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
TEACHERS = [{"name": name, "mini": name, "layers": [2, 4]} for name in ("hubert", "robust_hubert", "wavlm")]


def recipe(**changes) -> DistillConfig:
    return DistillConfig.from_mapping({"student": STUDENT, "teachers": TEACHERS, **changes})


def test_distortion():
    from s3prl_ekd.audio.distortion import Distorter

    low = {"probability": 1.0, "cutoff_hz": [1000, 1000]}
    noise = torch.randn(16000)
    heard = Distorter(recipe(distortion={"low_pass": low}).distortion)(noise, epoch=0, utterance="a")
    assert heard.shape == noise.shape
    power = torch.fft.rfft(heard).abs().square()  # bin k is k Hz
    assert power[4000:].mean() < 0.01 * power[:500].mean()


def test_task(tmp_path):
    """Trained for two steps and judged, on a corpus in the real layout."""
    corpus = tmp_path / "fluent_speech_commands_dataset"
    (corpus / "data").mkdir(parents=True)
    (corpus / "wavs").mkdir()
    intents = [("increase", "volume", "none"), ("activate", "lights", "kitchen"), ("decrease", "heat", "bedroom")]
    for part in ("train", "valid", "test"):
        with (corpus / f"data/{part}_data.csv").open("w") as stream:
            table = csv.writer(stream)
            table.writerow(("path", "action", "object", "location"))
            for number, intent in enumerate(2 * intents):
                name = f"wavs/{part}{number}.wav"
                soundfile.write(corpus / name, speech_like(8000 + 1000 * number, number).numpy(), 16000)
                table.writerow((name, *intent))
    words = ["superb", "--upstream", "fbank", "--corpus", "real", "--tasks", "ic", "--out", str(tmp_path / "out")]
    small = ["runner.total_steps=2", "runner.eval_step=1", "runner.log_step=1", "runner.save_step=1"]
    small += ["downstream_expert.datarc.num_workers=0", "downstream_expert.datarc.train_batch_size=3"]
    assert main([*words, "--fluent-commands", str(corpus), *(w for s in small for w in ("--set", f"ic:{s}"))]) == 0
    (row,) = json.loads((tmp_path / "out/summary.json").read_text())["rows"]
    assert (row["task"], row["metric"], row["utterances"]) == ("ic", "accuracy", 6)
    assert 0 <= row["value"] <= 100
