"""A corpus of noise in LibriSpeech's layout, a downstream configuration for it, a student, a pretraining recipe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import soundfile
import torch
import yaml
from helpers_models import TINY, speech_like
from helpers_teachers import tiny_model

from s3prl_ekd import assets
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.model import Student

LEXICON = "CAT\tK AE1 T\nDOG\tD AO1 G\nSUN\tS AH1 N\nSUN\tS UH1 N\n"
SENTENCES = ("CAT DOG", "SUN", "DOG SUN CAT", "SUN SUN")


def write_corpus(root: Path, splits: tuple[str, ...] = ("train", "dev")) -> Path:
    """``root/<split>/1/2/1-2-NNNN.flac`` of about half a second each, with transcripts, and ``root/lexicon.txt``."""
    for seed, split in enumerate(splits):
        chapter = root / split / "1" / "2"
        chapter.mkdir(parents=True)
        for i in range(len(SENTENCES)):
            wave = speech_like(6000 + 800 * i, seed=10 * seed + i).numpy()
            soundfile.write(chapter / f"1-2-{i:04d}.flac", wave, 16000)
        lines = [f"1-2-{i:04d} {sentence}\n" for i, sentence in enumerate(SENTENCES)]
        (chapter / "1-2.trans.txt").write_text("".join(lines))
    (root / "lexicon.txt").write_text(LEXICON)
    return root


def write_phone_recognition(root: Path, corpus: Path, **runner: Any) -> Path:
    """``root/pr.yaml``: s3prl's ``-d ctc`` on :func:`write_corpus`, a few updates."""
    config = {
        "runner": {
            "total_steps": 2,
            "gradient_clipping": 1,
            "gradient_accumulate_steps": 1,
            "log_step": 1,
            "eval_step": 2,
            "save_step": 1,
            "max_keep": 2,
            "eval_dataloaders": ["dev"],
        }
        | runner,
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 0.01},
        "downstream_expert": {
            "corpus": {
                "name": "libriphone",
                "path": str(corpus),
                "lexicon": [str(corpus / "lexicon.txt")],
                "train": ["train"],
                "dev": ["dev"],
                "bucketing": True,
                "batch_size": 2,
                "num_workers": 0,
            },
            "text": {"mode": "word", "vocab_file": str(assets.folder("vocab/phoneme.txt"))},
            "model": {"project_dim": 8, "zero_infinity": True, "select": "FrameLevel"},
            "save_best_on": ["dev"],
            "metric_higher_better": False,
            "metric": ["per"],
        },
    }
    (root / "pr.yaml").write_text(yaml.safe_dump(config))
    return root / "pr.yaml"


def write_student(folder: Path) -> Path:
    """A student folder with random weights."""
    torch.manual_seed(0)
    return save_student(folder, Student(StudentConfig.from_mapping(TINY)))


def write_recipe(root: Path, corpus: Path, **runner: Any) -> Path:
    """``root/config_model.yaml``, ``root/config_runner.yaml`` and one tiny teacher: a few updates on a corpus."""
    tiny_model("hubert").save_pretrained(root / "teacher")
    model = {
        "student": TINY | {"num_hidden_layers": 1},
        "teachers": [{"name": "hubert", "transformers": str(root / "teacher"), "layers": [1, 3]}],
    }
    steps = {
        "total_steps": 4,
        "gradient_clipping": 5.0,
        "gradient_accumulate_steps": 1,
        "log_step": 1,
        "save_step": 1,
        "max_keep": 9,
    }
    config = {
        "runner": {"n_epochs": -1} | steps | runner,
        "optimizer": {"name": "AdamW_with_schedule", "lr": 1e-3, "warmup_proportion": 0.25},
        "pretrain_expert": {"datarc": {"train_batch_size": 1, "num_workers": 0, "audio_folder": str(corpus)}},
    }
    (root / "config_model.yaml").write_text(yaml.safe_dump(model))
    (root / "config_runner.yaml").write_text(yaml.safe_dump(config))
    return root


def python(*arguments: str, executable: str = sys.executable, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with one thread and no network."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    options = {"env": environment, "timeout": 200} | options
    return subprocess.run([executable, *arguments], capture_output=True, text=True, **options)
