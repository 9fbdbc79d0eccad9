"""Files that are not the model they are named as, and models in every format that others write."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def object_of(module: str, name: str) -> Any:
    """An object whose class is said to be ``module.name``, which need not be installed and is not there to load it."""
    return type(name, (), {"__module__": module, "__qualname__": name})()


def save_with_objects(states: Any, path: Path) -> None:
    """torch.save of what holds :func:`object_of`s: their modules exist while it is written."""
    there = {}
    for value in states.values():
        cls = type(value)
        parts = cls.__module__.split(".")
        for i in range(1, len(parts) + 1):
            name = ".".join(parts[:i])
            there.setdefault(name, sys.modules.get(name))
            sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[cls.__module__], cls.__name__, cls)
    try:
        torch.save(states, path)
    finally:
        for name, module in there.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _truncated(path: Path) -> None:
    torch.save({"weight": torch.zeros(5000)}, path)
    path.write_bytes(path.read_bytes()[:9000])


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x" * 100)


class RunsCode:
    """An object that prints when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("code ran",)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 378342945\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"

# Name of a file that is no checkpoint -> how it is made, and words that name it.
IMPOSTORS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (Path.touch, "an empty file"),
    "git-lfs pointer": (lambda path: path.write_text(POINTER), "a git-lfs pointer.*git lfs pull"),
    "web page": (lambda path: path.write_text(PAGE), r"a web page \(HTML\)"),
    "text": (lambda path: path.write_text("Entry not found"), "a text file.*Entry not found"),
    "zeros": (lambda path: path.write_bytes(bytes(9000)), "filled with zeros"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(99)), "a gzip archive; unpack it first"),
    "wav": (lambda path: path.write_bytes(b"RIFF\x24\x08WAVEfmt "), "a RIFF file, such as a WAV recording"),
    "zip": (_zip, r"a zip archive that torch did not write \(it holds notes.txt\)"),
    "truncated": (_truncated, "incomplete: its end is missing"),
    "noise": (lambda path: path.write_bytes(bytes(range(255, 0, -1)) * 20), "not a checkpoint, or a damaged one"),
    "fairseq with objects of others": (
        lambda path: save_with_objects(
            {"model": object_of("fairseq.data.dictionary", "Dictionary"), "hook": object_of("others.code", "Hook")},
            path,
        ),
        r"a fairseq checkpoint .*\(others.code.Hook\).*could run code.*convert",
    ),
    "omegaconf alone": (
        lambda path: save_with_objects({"cfg": object_of("omegaconf.dictconfig", "DictConfig")}, path),
        "a checkpoint with the entries cfg",
    ),
    "code": (lambda path: torch.save({"x": RunsCode()}, path), "print.*it could run code"),
    "old code": (
        lambda path: torch.save({"x": RunsCode()}, path, _use_new_zipfile_serialization=False),
        "print.*it could run code",
    ),
    **{
        f"pickle {protocol}": (
            lambda path, protocol=protocol: path.write_bytes(pickle.dumps({"x": RunsCode()}, protocol)),
            "print.*it could run code",
        )
        for protocol in (0, 2, 5)
    },
    "TorchScript": (
        lambda path: torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path),
        "a TorchScript program, which holds code",
    ),
    "module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "Linear.*it could run code"),
}


def as_pickle(folder: Path) -> Path:
    """The same folder with pytorch_model.bin instead of model.safetensors."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def as_pickled_parts(folder: Path) -> Path:
    """The same folder with its weights in two pickled files and their index."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts: Mapping[str, list[str]] = {"part-1.bin": names[::2], "part-2.bin": names[1::2]}
    for part, chosen in parts.items():
        torch.save({name: weights[name] for name in chosen}, folder / part)
    index = {"weight_map": {name: part for part, chosen in parts.items() for name in chosen}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return folder


def save_again(folder: Path, to: Path) -> None:
    """As ``AutoModel(...).save_pretrained`` writes a student."""
    from transformers import AutoModel

    AutoModel.from_pretrained(folder).save_pretrained(to)


def save_in_parts(folder: Path, to: Path) -> None:
    """The same with its weights in several files."""
    from transformers import AutoModel

    AutoModel.from_pretrained(folder).save_pretrained(to, max_shard_size="30KB")
    assert len(list(to.glob("model-*.safetensors"))) > 1


def save_ctc(folder: Path, to: Path) -> None:
    """Fine-tuned to recognise speech: a head on top, masking in training."""
    from transformers import HubertForCTC

    HubertForCTC.from_pretrained(folder, vocab_size=30, mask_time_prob=0.05).save_pretrained(to)


def save_classification(folder: Path, to: Path) -> None:
    """Fine-tuned to tell utterances apart, from a weighted sum of the layers."""
    from transformers import HubertForSequenceClassification

    HubertForSequenceClassification.from_pretrained(
        folder, num_labels=3, use_weighted_layer_sum=True, classifier_proj_size=8
    ).save_pretrained(to)
