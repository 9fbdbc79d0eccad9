"""What CONTRIBUTING.md adds is used: run by test_contributing.py in a copy of the package that has it."""

from __future__ import annotations

import csv
import json
import types

import pytest
import soundfile
import torch
import torchaudio
from helpers_models import speech_like

from s3prl_ekd.audio.batch import Batch, collate
from s3prl_ekd.cli import main
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller, DistillOutput, teacher_states
from s3prl_ekd.errors import UserError
from s3prl_ekd.teachers import load_teachers

SIZES = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64, "conv_dim": [16] * 7}
POSITION = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
TEACHERS = [{"name": name, "mini": name, "layers": [2, 4]} for name in ("hubert", "robust_hubert", "wavlm")]


def recipe(**changes) -> DistillConfig:
    return DistillConfig.from_mapping({"student": SIZES | POSITION, "teachers": TEACHERS, **changes})


def a_step(config: DistillConfig) -> tuple[Distiller, DistillOutput, Batch]:
    """One step of training on two utterances."""
    torch.manual_seed(0)
    distiller = Distiller(config, load_teachers(config)).train()
    waves = [speech_like(16000, 1), speech_like(9000, 2)]
    batch = collate(waves, waves, ["one", "two"])
    output = distiller(batch, details=True)
    output.loss.backward()
    torch.optim.SGD(distiller.parameters(), lr=0.01).step()
    return distiller, output, batch


@pytest.fixture
def tiny_pipeline(monkeypatch):
    """A pipeline of torchaudio that needs no download: a HuBERT of three layers."""
    convolutions = [(16, kernel, stride) for kernel, stride in ((10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2)]
    model = torchaudio.models.wav2vec2_model(
        "group_norm", convolutions, False, 48, 0.0, 16, 4, 3, 4, 0.0, 64, 0.0, 0.0, False, 0.0, None
    ).eval()
    monkeypatch.setattr(torchaudio.pipelines, "TINY", types.SimpleNamespace(get_model=lambda: model), raising=False)
    return model


def test_aggregation():
    """Two teachers that agree outvote the third."""
    teachers = [{**TEACHERS[0], "name": name} for name in ("one", "other")] + [TEACHERS[2]]
    config = recipe(teachers=teachers, objective={"aggregation": "layerwise-median"})
    distiller, output, batch = a_step(config)
    assert [target.name for target in distiller.targets] == ["median/2", "median/4"]
    assert torch.isfinite(output.loss)
    one, other, third = (states.rows for states in teacher_states(config, distiller.teachers, batch))
    for slot, target in enumerate(distiller.aggregator.combine([one, other, third])):
        assert torch.equal(target, one[slot])
        assert not torch.equal(target, third[slot])


def test_loss_term():
    terms = [{"kind": "l1"}, {"kind": "cosine"}]
    plain, more = (
        a_step(recipe(objective={"losses": losses}))[1]
        for losses in (terms, [*terms, {"kind": "huber", "weight": 0.5}])
    )
    errors = [value for name, value in more.metrics.items() if name.startswith("huber/")]
    assert len(errors) == 6
    torch.testing.assert_close(more.loss - plain.loss, 0.5 * torch.stack(errors).mean())


def test_teacher_source(tiny_pipeline):
    """Its hidden states are torchaudio's, and a student learns from them."""
    config = recipe(teachers=[{"name": "theirs", "torchaudio": "TINY", "layers": [1, 3]}])
    distiller, output, batch = a_step(config)
    (states,) = teacher_states(config, distiller.teachers, batch)
    layers, _ = tiny_pipeline.extract_features(batch.clean[1:, :9000])
    frames = int(states.packing.frames[1])
    torch.testing.assert_close(states.rows[0][-frames:], layers[0][0])
    torch.testing.assert_close(states.rows[1][-frames:], layers[2][0])
    assert torch.isfinite(output.loss)
    with pytest.raises(UserError, match="torchaudio has no pipeline 'HUBERT_BAS'"):
        load_teachers(recipe(teachers=[{"name": "theirs", "torchaudio": "HUBERT_BAS"}]))


def test_distortion():
    from s3prl_ekd.audio.distortion import Distorter

    low = {"probability": 1.0, "cutoff_hz": [1000, 1000]}
    noise = torch.randn(16000)
    heard = Distorter(recipe(distortion={"low_pass": low}).distortion)(noise, epoch=0, utterance="a")
    assert heard.shape == noise.shape
    power = torch.fft.rfft(heard).abs().square()  # bin k is k Hz
    assert power[4000:].mean() < 0.01 * power[:500].mean()


def test_checkpoint_format(tiny_pipeline):
    """A student begins with the first layers of a model that is stored under torchaudio's names."""
    student = SIZES | POSITION | {"num_hidden_layers": 2, "initialize_from": "theirs"}
    teachers = [{"name": "theirs", "torchaudio": "TINY", "layers": [3]}]
    config = recipe(student=student, teachers=teachers)
    made = Distiller(config, load_teachers(config)).student.state_dict()
    theirs = tiny_pipeline.state_dict()
    for layer in range(2):
        for name in ("attention.q_proj.weight", "feed_forward.output_dense.bias", "final_layer_norm.weight"):
            expected = theirs[f"encoder.transformer.layers.{layer}.{name}"]
            assert torch.equal(made[f"encoder.layers.{layer}.{name}"], expected)
    assert torch.equal(
        made["feature_extractor.conv_layers.0.conv.weight"], theirs["feature_extractor.conv_layers.0.conv.weight"]
    )


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
