"""The tiny teachers that come with the package: the folders, and what trained and judges them."""

from __future__ import annotations

import importlib
import itertools
import json
import sys

import pytest
import soundfile
import torch
from helpers_models import ROOT
from transformers import AutoFeatureExtractor, AutoModel

from s3prl_ekd import assets
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import write_yaml

EXAMPLES = ROOT / "examples/mini"
NAMES = ("hubert", "robust_hubert", "wavlm")


@pytest.fixture(scope="module")
def recipe_modules():
    """The scripts of examples/mini, imported as they import each other."""
    folder = str(EXAMPLES)
    sys.path.insert(0, folder)
    try:
        yield {name: importlib.import_module(name) for name in ("teacher_data", "train_teachers", "probe_teachers")}
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def teachers():
    return {name: AutoModel.from_pretrained(assets.folder(f"teachers/{name}"), dtype=torch.float32) for name in NAMES}


@pytest.fixture(scope="module")
def wave():
    """Two seconds of something speech-like: pulses at 120 Hz through moving resonances, (1, S)."""
    time = torch.arange(32000) / 16000
    tone = sum(torch.sin(6.283 * 120 * k * time) / k for k in range(1, 30))
    return (0.05 * tone * (1 + torch.sin(6.283 * 4 * time)))[None]


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_small_and_complete(name):
    folder = assets.folder(f"teachers/{name}")
    assert {path.name for path in folder.iterdir()} >= {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    assert AutoFeatureExtractor.from_pretrained(folder).do_normalize is False


@pytest.mark.parametrize("name", NAMES)
def test_config_is_what_the_recipe_states(name, recipe_modules):
    config = json.loads((assets.folder(f"teachers/{name}") / "config.json").read_text())
    recipe = recipe_modules["train_teachers"].RecipeConfig.from_yaml(EXAMPLES / "teachers.yaml")
    for key, value in recipe.model.to_mapping().items():
        assert config[key] == value, key
    assert config["model_type"] == next(t.architecture for t in recipe.teachers if t.name == name)
    assert config["feat_extract_norm"] == "group"
    assert config["do_stable_layer_norm"] is False
    # nobody who fine-tunes it gets masked or loses a layer
    assert config["mask_time_prob"] == config["mask_feature_prob"] == config["layerdrop"] == 0
    assert torch.tensor(config["conv_stride"]).prod() == 320


def test_features_are_finite_and_their_own(teachers, wave):
    last = {}
    for name, model in teachers.items():
        model.eval()
        with torch.no_grad():
            states = model(wave, output_hidden_states=True).hidden_states
        assert len(states) == 5
        for state in states:
            assert state.shape == (1, 99, 192)
            assert state.isfinite().all()
            assert state.std() > 0.1
        last[name] = states[-1]
    for one, other in itertools.combinations(NAMES, 2):
        assert torch.nn.functional.cosine_similarity(last[one], last[other], dim=-1).mean() < 0.9


def test_train_mode_changes_nothing(teachers, wave):
    """Neither masking nor dropout: a fine-tuned teacher hears all of its input."""
    for model in teachers.values():
        with torch.no_grad():
            evaluated = model.eval()(wave).last_hidden_state
            trained = model.train()(wave).last_hidden_state
        model.eval()
        assert torch.allclose(evaluated, trained, atol=1e-5)


def test_span_mask_covers_whole_spans(recipe_modules):
    train = recipe_modules["train_teachers"]
    recipe = train.RecipeConfig.from_yaml(EXAMPLES / "teachers.yaml")
    mask = train.span_mask(64, 200, recipe, torch.Generator().manual_seed(0))
    assert mask.shape == (64, 200)
    assert 0.3 < mask.float().mean() < 0.5
    runs = [len(list(run)) for masked, run in itertools.groupby(mask[:, 5:-5].flatten().tolist()) if masked]
    assert sorted(runs)[len(runs) // 2] >= recipe.mask_span


def test_mixing_leaves_the_main_voice(recipe_modules):
    data = recipe_modules["teacher_data"]
    waves = torch.randn(6, 16000, generator=torch.Generator().manual_seed(0))
    mixed = data.mix_utterances(waves, torch.Generator().manual_seed(1))
    untouched = (mixed == waves).float().mean(1)
    assert (untouched >= 0.49).all()
    assert (untouched < 1).all()


def test_frames_of_a_stream_are_frames_of_the_conv_stack(recipe_modules, teachers, wave):
    data = recipe_modules["teacher_data"]
    for samples in (400, 719, 720, 32000):
        with torch.no_grad():
            frames = teachers["hubert"].feature_extractor(wave[:, :samples]).shape[-1]
        assert frames == data.frame_count(samples) == len(data.log_mel(wave[0, :samples]))
    whole, pieces = data.mfcc(wave[0]), data.chunked(wave[0], data.mfcc, chunk_frames=40)
    assert whole.shape == pieces.shape
    assert torch.allclose(whole[:30], pieces[:30], atol=1e-4)


def test_frame_labels_follow_the_window_centre(recipe_modules):
    labels = recipe_modules["probe_teachers"].frame_labels((("AA", 0, 840), ("T", 840, 1600)), 6)
    # centres at 200, 520, 840, 1160, 1480, 1800
    assert labels.tolist() == ["AA", "AA", "T", "T", "T", ""]


def test_training_says_what_is_wrong(recipe_modules, tmp_path, caplog):
    train = recipe_modules["train_teachers"]
    assert train.main(["--teacher", "hubrt", "--corpus", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "hubrt" in caplog.text
    assert "robust_hubert" in caplog.text
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="train it first"):
        train.load_body(
            train.build_model("hubert", train.RecipeConfig.from_yaml(EXAMPLES / "teachers.yaml").model),
            tmp_path / "hubert",
        )


def test_interrupted_training_ends_as_if_it_had_not_been(recipe_modules, tmp_path, monkeypatch):
    train = recipe_modules["train_teachers"]
    wave = 0.1 * torch.randn(4, 24000, generator=torch.Generator().manual_seed(0))
    for i, one in enumerate(wave):
        (tmp_path / "corpus" / str(i // 2)).mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "corpus" / str(i // 2) / f"{i}.wav", one.numpy(), 16000)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    stage = {
        "steps": 6,
        "learning_rate": 1e-3,
        "codebooks": [{"features": "mfcc", "clusters": 5}],
        "regressions": [{"features": "spectrum"}],
        "input": {"mixing": 0.5, "gaussian_noise": 0.5},
    }
    recipe = {
        "model": sizes,
        "crop_frames": 20,
        "batch_size": 2,
        "warmup": 0.1,
        "weight_decay": 0.0,
        "mask_probability": 0.1,
        "mask_span": 5,
        "unmasked_weight": 0.5,
        "warm_start_steps": 2,
        "warm_start_learning_rate": 1e-3,
        "checkpoint_steps": 2,
        "teachers": [{"name": "hubert", "architecture": "hubert", "stages": [stage]}],
    }
    write_yaml(tmp_path / "recipe.yaml", recipe)

    def run(out):
        return train.main(["--corpus", f"{tmp_path}/corpus", "--out", str(out), "--recipe", f"{tmp_path}/recipe.yaml"])

    threads = torch.get_num_threads()
    try:
        assert run(tmp_path / "whole") == 0
        steps, descend = iter(range(100)), train.descend

        def killed(*args):
            if next(steps) == 5:  # two of the warm start, three of the stage: one past the checkpoint
                raise KeyboardInterrupt
            descend(*args)

        monkeypatch.setattr(train, "descend", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "resumed")
        monkeypatch.setattr(train, "descend", descend)
        assert not (tmp_path / "resumed" / "hubert").exists()
        assert (tmp_path / "resumed" / "work" / "hubert-0.pt").exists()
        assert run(tmp_path / "resumed") == 0
    finally:
        torch.set_num_threads(threads)
    one, other = (AutoModel.from_pretrained(tmp_path / out / "hubert").state_dict() for out in ("whole", "resumed"))
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key
    assert "masked_spec_embed" not in one


def test_gates_choose_the_layer_without_the_test_set(recipe_modules):
    probe = recipe_modules["probe_teachers"]
    results = {
        "fbank": {"held-out": 60.0, "noisy": 20.0},
        "hubert:0": {"held-out": 50.0, "noisy": 40.0},
        "hubert:1": {"held-out": 70.0, "noisy": 15.0},
    }
    fbank = probe.Gate("must", "noisy PR", "pr", "noisy")
    layers = probe.Gate("must", "noisy PR, last over 0", "pr", "noisy", probe.LAYER_0)
    for gate, rival in ((fbank, "fbank"), (layers, "hubert:0")):
        judged = probe.judged_gate(gate, results, "hubert")
        assert (judged["feature"], judged["rival"], judged["passed"]) == ("hubert:1", rival, False)
