"""Mistakes in the runners' YAML that s3prl would not notice."""

from __future__ import annotations

import logging

import pytest

from s3prl_ekd import assets, s3prl_hub
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_plugin.runners import downstream_config
from s3prl_ekd.s3prl_plugin.runners.optimizer_config import check_training


def test_only_a_key_that_looks_misspelt_is_refused():
    """s3prl reads more keys than any file of its own shows; these are some."""
    decoder = {"decoder_type": "kenlm", "kenlm_model": "4-gram.arpa", "unk_weight": "-math.inf", "beam": 5}
    data = {"test-other": ["test-other"], "mine": ["a", "b"], "trains": ["c"], "decoder_args": decoder}
    model = {"select": "Wav2Letter", "Wav2Letter": {"total_rate": 320}, "RNNs": {"module": "GRU"}}
    parts = {
        "asr": {"datarc": data, "modelrc": model},
        "ctc": {"corpus": {"train_speakers": ["Ivy"], "ratio": 1}, "text": {"slots_file": "slots.txt"}, "model": model},
        "emotion": {"modelrc": {"DeepModel": {"model_type": "FCN", "hidden_dim": 80}, "FrameLevel": {}}},
        "voxceleb1": {"modelrc": {"UtteranceLevel": {"pooling": "MeanPooling", "post_net": {"select": "FrameLevel"}}}},
    }
    for task, part in parts.items():
        runner = {"fp16": True, "evaluate_ratio": 1, "train_dataloader": "train"}
        downstream_config.check_keys(task, {"runner": runner, "specaug": {}, "downstream_expert": part})
    downstream_config.check_keys("another_task", {"runner": {"total_step": 1}})  # may be read there
    for task, place, key in (
        ("emotion", "runner", "total_step"),
        ("ctc", "downstream_expert.model", "projct_dim"),
        ("asr", "downstream_expert.datarc", "train_batchsize"),
    ):
        config: dict = {key: 1}
        for part in reversed(place.split(".")):
            config = {part: config}
        with pytest.raises(UserError, match=f"unknown key '{place}.{key}'; did you mean "):
            downstream_config.check_keys(task, config)


@pytest.mark.parametrize("limit", [0, -1, "1.0", None, float("nan")])
def test_a_limit_of_the_gradient_that_lets_nothing_be_learnt(limit):
    with pytest.raises(UserError, match=r"runner.gradient_clipping: expected a positive number"):
        downstream_config.check_keys("any_task", {"runner": {"gradient_clipping": limit}})


def test_what_is_evaluated_where_no_one_says(caplog):
    with caplog.at_level(logging.INFO):
        assert (
            downstream_config.default_split("asr", read_yaml(assets.recipe("downstream/real/asr.yaml"))) == "test-clean"
        )
    assert "evaluating test-clean; -t chooses another of train, dev-clean, test-clean" in caplog.text
    assert downstream_config.default_split("ctc", read_yaml(assets.recipe("downstream/real/pr.yaml"))) == "test"
    assert downstream_config.default_split("emotion", {}) == "test"


def test_optimizers_and_schedules_are_tried_before_anything_is_made():
    s3prl_hub.register()

    def check(optimizer: dict, scheduler: dict | None = None) -> None:
        config = {"runner": {"total_steps": 9}, "optimizer": optimizer, "scheduler": scheduler}
        check_training(config, package="s3prl.")

    adam = {"name": "TorchOptim", "torch_optim_name": "AdamW", "lr": 1e-3}
    linear = {"name": "linear_schedule_with_warmup", "num_warmup_steps": 3}
    check(adam | {"betas": [0.9, 0.98], "fused": True, "weight_decay": 0}, linear)
    check({"name": "AdamW", "lr": 1e-4})
    check({"name": "AdamW_with_schedule", "lr": 2e-4, "warmup_proportion": 0.07, "betas": [0.9, 0.98], "eps": 1e-6})
    for optimizer, scheduler, message in (
        (adam | {"torch_optim_name": "Adem"}, None, "optimizer or scheduler: AttributeError: .* 'Adem'"),
        (adam | {"beta": [0.9, 0.98]}, None, "TypeError: .* unexpected keyword argument 'beta'"),
        (adam | {"betas": 0.9}, None, "optimizer or scheduler: TypeError"),
        (adam | {"lr": "1e-3"}, None, "TypeError: .* .lr is the text '1e-3': YAML reads 1.0e-03 as a number"),
        (adam | {"lr": float("nan")}, None, "ValueError: Invalid learning rate: nan"),
        (adam | {"lr": -1.0}, None, "ValueError: Invalid learning rate"),
        (adam | {"lr": 1e308}, None, "ValueError: one update makes the weights infinite"),
        (adam | {"torch_optim_name": "LBFGS"}, None, "optimizer or scheduler: TypeError"),
        ({"name": "AdamW", "lr": 1e-4, "weight_decay": 0.1}, None, "unknown key 'optimizer.weight_decay'; valid: lr,"),
        ({"name": "Adam", "betas": [0.9, 0.98]}, None, "unknown key 'optimizer.betas'"),
        ({"name": "BertAdam_with_schedule", "warmup": 0.1}, None, "unknown key 'optimizer.warmup'; did you mean 'warm"),
        ({"name": "AdamV"}, None, "NameError: name 'get_AdamV'"),
        ({}, None, "optimizer or scheduler: KeyError: no entry 'name'"),
        (adam, linear | {"warmup": 3}, "TypeError: .* unexpected keyword argument 'warmup'"),
        (adam, {"name": "linear_schedule_with_warmup"}, "TypeError: .*num_warmup_steps"),
    ):
        with pytest.raises(UserError, match=message):
            check(optimizer, scheduler)
