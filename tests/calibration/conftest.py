"""Twelve recordings, their manifest, a teacher with equal layers, and recipes that ask for groups of its layers."""

from __future__ import annotations

import pytest
import soundfile
from helpers_models import TINY, speech_like
from helpers_teachers import tiny_model

from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.cuts.manifests import folder_recordings, write_manifest


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    """12 recordings of 0.3 to 1.3 s and their manifest."""
    root = tmp_path_factory.mktemp("speech")
    (root / "wav").mkdir()
    for i in range(12):
        soundfile.write(root / "wav" / f"{i}.wav", speech_like(4800 + 1501 * i, i).numpy(), 16000)
    write_manifest(root / "cuts.jsonl.gz", folder_recordings(root / "wav"))
    return root / "cuts.jsonl.gz"


@pytest.fixture(scope="session")
def repeating(tmp_path_factory):
    """A HuBERT with hidden states 0 to 5 of which 1 and 2 are equal, and 3, 4 and 5."""
    import torch

    model = tiny_model("hubert", num_hidden_layers=5)
    with torch.no_grad():
        for layer in (model.encoder.layers[number] for number in (1, 3, 4)):
            layer.attention.out_proj.weight.zero_()
            layer.attention.out_proj.bias.zero_()
            layer.feed_forward.output_dense.weight.zero_()
            layer.feed_forward.output_dense.bias.zero_()
        for layer in model.encoder.layers:  # so that the norms of what was normalised change nothing
            for norm in (layer.layer_norm, layer.final_layer_norm):
                norm.weight.fill_(1)
                norm.bias.zero_()
    folder = tmp_path_factory.mktemp("teachers") / "repeating"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(speech, repeating, tmp_path):
    """A function: a recipe with ``layers`` of one or several teachers; ``changes`` are those of whole sections."""

    def make(*layers, teacher=None, data=None, output=None, **changes) -> RunConfig:
        teachers = [
            {"name": f"teacher{number}", "transformers": str(repeating), "layers": one, **(teacher or {})}
            for number, one in enumerate(layers)
        ]
        settings = {"cuts": [str(speech)], "max_crop_samples": 16000, "batch_seconds": 4.0, "num_workers": 0}
        mapping = {
            "student": TINY,
            "teachers": teachers,
            "data": settings | (data or {}),
            "trainer": {"accelerator": "cpu", "precision": "32", "devices": 1, "max_steps": 2, "log_every": 1},
            "output": str(output or tmp_path / "run"),
        }
        return RunConfig.from_mapping(mapping | changes)

    return make
