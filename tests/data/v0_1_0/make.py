"""Makes the other files of this folder; README.md says when it ran. Only commands and loaders that stay are used."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import soundfile
import torch
import yaml
from lhotse import CutSet, MonoCut, Recording
from safetensors.torch import save_file
from transformers import HubertConfig, HubertModel, WavLMConfig, WavLMModel

from s3prl_ekd.student.folder import load_student

STOPPED, STEPS = 3, 6  # all runs: where the kept one was stopped, and how far it was to go
SIZES = {
    "conv_dim": [4] * 7,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
MODEL = {
    "student": {**SIZES, "num_hidden_layers": 1, "initialize_from": "hubert"},
    "teachers": [
        {"name": "hubert", "transformers": "teachers/hubert", "layers": [1, 2]},
        {"name": "wavlm", "transformers": "teachers/wavlm", "layers": [1, 2], "layer_norm_targets": True},
    ],
    "distortion": {"gaussian_noise": {"probability": 0.5}},
}
DISTILL = {
    **MODEL,
    "data": {
        "cuts": ["train.jsonl"],
        "dev_cuts": ["dev.jsonl"],
        "batch_seconds": 1.2,
        "max_crop_samples": 16000,
        "num_buckets": 2,
        "num_workers": 0,
    },
    "optimizer": {"lr": 3e-3},
    "trainer": {
        "max_steps": STEPS,
        "precision": "32",
        "accelerator": "cpu",
        "log_every": 1,
        "dev_every": STOPPED,
        "checkpoint_every": STOPPED,
        "keep_checkpoints": 9,
    },
    "output": "run",
}
PRETRAIN = {
    "runner": {
        "n_epochs": -1,
        "total_steps": STEPS,
        "gradient_clipping": 5.0,
        "gradient_accumulate_steps": 1,
        "log_step": 1,
        "save_step": STOPPED,
        "max_keep": 9,
    },
    "optimizer": {"name": "AdamW_with_schedule", "lr": 3e-3, "warmup_proportion": 0.25},
    "pretrain_expert": {"datarc": {"train_batch_size": 2, "num_workers": 0, "audio_folder": "speech"}},
}


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", *words], check=True)


def write_yaml(path: str, value: object) -> None:
    Path(path).write_text(yaml.safe_dump(value, sort_keys=False))


def speech() -> None:
    """Eight recordings of about half a second, quiet enough that FLAC makes little of them, and their manifests."""
    Path("speech").mkdir()
    cuts = []
    for number in range(8):
        samples = 6000 + 640 * number
        time = torch.arange(samples) / 16000
        wave = 0.002 * torch.sin(2 * torch.pi * (150 + 40 * number) * time) * (1 + torch.sin(20 * time))
        path = f"speech/{number}.flac"
        soundfile.write(path, (wave + 2e-4 * torch.randn(samples)).numpy(), 16000)
        recording = Recording.from_file(path, recording_id=f"{number}.flac")
        cuts.append(MonoCut(recording.id, start=0, duration=recording.duration, channel=0, recording=recording))
    CutSet.from_cuts(cuts[:6]).to_file("train.jsonl")
    CutSet.from_cuts(cuts[6:]).to_file("dev.jsonl")


def teachers() -> None:
    kinds = {"hubert": (HubertConfig, HubertModel), "wavlm": (WavLMConfig, WavLMModel)}
    for name, (config_class, model_class) in kinds.items():
        model = model_class(config_class(**SIZES))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(f"teachers/{name}")
        Path(f"teachers/{name}/model.safetensors").chmod(0o644)


def losses(folder: str) -> dict[str, float]:
    (path,) = Path(folder, "logs", "csv").glob(f"from-step-{STOPPED:08d}*/metrics.csv")
    with path.open(newline="") as file:
        return {row["step"]: float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")}


def distill() -> None:
    """``run``: the folder as it was at a step; ``continued.json``: the losses of the rest."""
    write_yaml("distill.yaml", DISTILL)
    command("s3prl_ekd.cli", "distill", "distill.yaml")
    for path in Path("run/checkpoints").iterdir():
        if path.name != f"step-{STOPPED:08d}.ckpt":
            path.unlink()
    shutil.rmtree("run/student")
    shutil.rmtree("run/logs")
    shutil.copytree("run", "stopped")
    command("s3prl_ekd.cli", "distill", "distill.yaml", "--resume")
    weights("run/student", "distill")
    Path("continued.json").write_text(json.dumps(losses("run"), indent=1) + "\n")
    shutil.move("run/student", "student")
    shutil.rmtree("run")
    os.rename("stopped", "run")


def pretrain() -> None:
    """``pretrain``: s3prl's folder as it was at a step."""
    write_yaml("config_model.yaml", MODEL)
    write_yaml("config_runner.yaml", PRETRAIN)
    new = ("-u", "ekd_student", "-g", "config_model.yaml", "-c", "config_runner.yaml", "-p", "pretrain")
    command("s3prl_ekd.run_pretrain", *new, "--device", "cpu")
    for path in Path("pretrain").iterdir():
        if path.name != f"states-{STOPPED}.ckpt":
            path.unlink()
    shutil.copytree("pretrain", "stopped")
    command("s3prl_ekd.run_pretrain", "-e", "pretrain", "--device", "cpu")
    (last,) = (path for path in Path("pretrain").glob("*.ckpt") if path.name != f"states-{STOPPED}.ckpt")
    weights(str(last), "pretrain")
    shutil.rmtree("pretrain")
    os.rename("stopped", "pretrain")


EXPECTED: dict[str, torch.Tensor] = {}


def weights(path: str, name: str) -> None:
    """Note the student's weights, to be expected where a run is continued."""
    EXPECTED.update({f"{name}/{key}": tensor.clone() for key, tensor in load_student(path).state_dict().items()})


def features() -> None:
    wave, _ = soundfile.read("speech/0.flac", dtype="float32")
    with torch.no_grad():
        states = load_student("student").eval()(torch.from_numpy(wave)[None]).hidden_states
    EXPECTED.update({f"features/{layer}": state.contiguous() for layer, state in enumerate(states)})


if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    torch.manual_seed(0)
    speech()
    teachers()
    distill()
    pretrain()
    command("s3prl_ekd.cli", "cache-targets", "distill.yaml", "cache")
    features()
    save_file(EXPECTED, "expected.safetensors")
