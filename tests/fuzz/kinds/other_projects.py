"""Files of other projects, opened as students: bytes, entries, shapes, and the settings beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers_foreign import as_fairseq_writes_it, pruned_hubert, pruned_wavlm
from helpers_teachers import s3prl_checkpoint, tiny_model

from fuzz.change import Change
from fuzz.kinds.good import use
from s3prl_ekd.student.folder import load_student_and_heads
from s3prl_ekd.weights.pickles import load_pickle_safely

ABOUT = "files of fairseq, torchaudio, DPHuBERT, DiariZen: bytes, entries, shapes, the settings beside them"


def prepare(good: Path) -> None:
    torch.save(pruned_hubert()[1], good / "dphubert.pt")
    _, states = pruned_wavlm()
    torch.save(states, good / "dpwavlm.pt")
    torch.save(states["state_dict"], good / "diarizen.pt")
    (good / "diarizen.json").write_text(json.dumps(states["config"]))
    s3prl_checkpoint(tiny_model("hubert"), "hubert", good / "converted.pt")
    as_fairseq_writes_it(good / "converted.pt", good / "fairseq.pt")


def draw(good: Path, change: Change) -> Callable[[], object]:
    name = change.rng.choice(("dphubert", "dpwavlm", "diarizen", "converted", "fairseq"))
    change.note(name)
    path = Path(f"{name}.pt")
    data, settings = (good / path).read_bytes(), good / f"{name}.json"
    action = change.rng.choice(("bytes", "ends", "entries", "shapes", "settings"))
    if action == "bytes":
        path.write_bytes(change.data(data))
    elif action == "ends":  # the record of the pickle is at the front, the list of records at the end
        path.write_bytes(change.data(data[:4096]) + data[4096:-4096] + change.data(data[-4096:]))
    elif name == "fairseq":  # whose objects cannot be saved again
        path.write_bytes(data)
    else:
        states = load_pickle_safely(good / path)
        if action == "entries":
            states = change.mapping(states)
        if action == "shapes" and not change.harmless:
            _reshape(states, change)
        torch.save(states, path)
    if settings.is_file():
        values = json.loads(settings.read_text())
        Path(settings.name).write_text(json.dumps(change.mapping(values) if action == "settings" else values))
    return lambda: use(*load_student_and_heads(path))


def _reshape(states: dict[str, Any], change: Change) -> None:
    """One tensor loses rows, a dimension or all of it, or gets one more."""
    weights = next((states[key] for key in ("state_dict", "model_weight") if key in states), states)
    name = change.rng.choice(sorted(weights))
    tensor = weights[name]
    weights[name] = change.rng.choice((tensor[:1], tensor.flatten(), tensor[None], tensor[..., :0], tensor.sum()))
    change.note(f"{name} of the shape {tuple(weights[name].shape)}")
