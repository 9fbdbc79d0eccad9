"""Caches of targets: description, index, shards, a student's first weights."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path

import torch

from fuzz.change import Change
from fuzz.kinds.good import MODEL_KEYS, RECIPE
from s3prl_ekd.config.recipe import DistillConfig, StudentConfig
from s3prl_ekd.cuts.read import cut_key
from s3prl_ekd.network.config import Architecture, EncoderConfig
from s3prl_ekd.target_cache.initial_weights import write_start
from s3prl_ekd.target_cache.reading import TargetCache
from s3prl_ekd.target_cache.settings import write_description
from s3prl_ekd.target_cache.shards import ShardWriter, write_index

ABOUT = "caches of targets: bytes of index, shards and start flipped or cut, values of cache.json replaced"

_CUTS = [types.SimpleNamespace(id=f"cut{number}", start=0.0, duration=1.0 + number) for number in range(5)]
_CONFIG = {key: RECIPE[key] for key in MODEL_KEYS}
_STUDENT = StudentConfig(copy="hubert", copy_layers=(0,))


def _frames(seconds: float) -> int:
    return (round(16000 * seconds) - 400) // 320 + 1


def prepare(good: Path) -> None:
    folder = good / "cache"
    folder.mkdir()
    write_description(folder, DistillConfig.from_mapping(_CONFIG), {"hubert": 4, "wavlm": 4})
    writer, generator = ShardWriter(folder, 0, 5000), torch.Generator().manual_seed(0)
    for cut in _CUTS:
        targets = torch.randn(_frames(cut.duration), 8, generator=generator).half()
        writer.add(cut_key(cut.id, cut.start, round(16000 * cut.duration)), targets)
    writer.flush()
    write_index(folder)
    write_start(folder, _STUDENT, {"encoder.layers.0.x": torch.ones(3, 3)}, Architecture(encoder=EncoderConfig()))


def draw(good: Path, change: Change) -> Callable[[], object]:
    folder = Path("cache")
    shutil.copytree(good / "cache", folder)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = change.rng.choice(files)
    change.note(path.name)
    if change.rng.random() < 0.05 and not change.harmless:
        path.unlink()
    elif path.suffix == ".json" and change.rng.random() < 0.6:
        path.write_text(json.dumps(change.mapping(json.loads(path.read_text()))))
    else:
        path.write_bytes(change.data(path.read_bytes(), header=500))
    return lambda: _read(folder)


def _read(folder: Path) -> None:
    cache = TargetCache(folder).require(DistillConfig.from_mapping(_CONFIG))
    for cut in _CUTS:
        targets = cache.read(cut, 0, round(16000 * cut.duration))
        assert targets.shape == (_frames(cut.duration), 8)
        assert targets.isfinite().all(), "targets are not finite"
    cache.start(_STUDENT)
