"""``len_for_bucket`` lists of s3prl's pretraining, read and drawn from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import soundfile
from helpers_models import speech_like

from fuzz.change import Change
from s3prl_ekd.config.recipe import DistortionConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data import PretrainDataConfig, PretrainDataset

ABOUT = "len_for_bucket lists: bytes flipped, columns and numbers replaced; every batch is read"

_FRAGMENTS = (",", '"', "\n", "\r\n", "\r", "\0", "file_path", "label", "../", "/dev/zero", "é", "x" * 200_000, "-1")


def prepare(good: Path) -> None:
    rows = ["file_path,length,label"]
    for number in range(4):
        path = good / f"{number}.wav"
        soundfile.write(path, speech_like(4000 + 900 * number, number).numpy(), 16000)
        rows.append(f"{number}.wav,{4000 + 900 * number},x")
    (good / "train.csv").write_text("\n".join(rows) + "\n")


def draw(good: Path, change: Change) -> Callable[[], object]:
    text = (good / "train.csv").read_text()
    data = change.data(text.encode()) if change.rng.random() < 0.5 else change.text(text, _FRAGMENTS).encode()
    Path("train.csv").write_bytes(data)
    config = {"libri_root": str(good), "file_path": ".", "sets": ["train"], "train_batch_size": 2, "num_workers": 0}
    return lambda: _read(PretrainDataConfig.from_mapping({**config, "max_timestep": 3000}, "datarc"))


def _read(config: PretrainDataConfig) -> None:
    dataset = PretrainDataset(config, DistortionConfig())
    for index in range(len(dataset)):
        loaded = dataset[0, index]
        if isinstance(loaded, UserError):
            raise loaded
        assert loaded.batch.clean.isfinite().all()
