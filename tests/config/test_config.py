"""Recipes: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import importlib
import pkgutil
import time
import typing

import pytest
import torch
from helpers_models import TINY

import s3prl_ekd
from s3prl_ekd.config.base import Config, apply_override
from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.config.recipe import DistillConfig, StudentConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.errors import LONGEST_MESSAGE, UserError
from s3prl_ekd.files import atomic_path, parse_yaml, read_yaml, write_yaml
from s3prl_ekd.network.config import EncoderConfig
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data import PretrainDataConfig
from s3prl_ekd.student.model import Student

TEACHER = {"name": "hubert", "mini": "hubert", "layers": [1, 2]}


def recipe(**changes):
    return {"teachers": [TEACHER], **changes}


def test_defaults_are_distilhubert():
    config = DistillConfig.from_mapping(recipe())
    assert config.student.hidden_size == 768
    assert config.student.num_hidden_layers == 2
    assert config.student.feature_grad_scale == 0.1
    assert config.objective.cosine_weight == 1.0
    assert not config.objective.loss_on_padding
    assert not config.distortion.active


def test_round_trip_through_plain_values():
    config = DistillConfig.from_mapping(
        recipe(
            objective={"aggregation": "layerwise-average", "cosine_weight": "1e-1"},
            distortion={"noise": {"folder": "noise", "probability": 0.5, "snr_db": [0, 20]}},
        )
    )
    assert config.objective.aggregation == "layerwise-average"
    assert config.objective.cosine_weight == 0.1
    assert DistillConfig.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"teacher": []}, ["'teacher'", "'teachers'"]),
        (recipe(teachers=[{**TEACHER, "layer": 3}]), ["teachers[0].layer", "'layers'"]),
        (recipe(objective={"aggregation": "layerwise-avg"}), ["layerwise-avg", "'layerwise-average'"]),
        (recipe(objective={"aggregation": 3}), ["objective.aggregation", "3"]),
        (recipe(teachers=[{"name": "a"}]), ["'a'", "exactly one source", "s3prl, transformers, mini"]),
        (recipe(teachers=[{"mini": "hubert"}]), ["missing key 'teachers[0].name'"]),
        (recipe(teachers=[TEACHER, TEACHER]), ["unique"]),
        (recipe(teachers=[]), ["at least one teacher"]),
        (recipe(teachers=[{**TEACHER, "layers": []}]), ["layers is empty"]),
        (recipe(teachers=[{**TEACHER, "layers": [1, 1]}]), ["twice"]),
        (recipe(teachers=[{**TEACHER, "weight": "heavy"}]), ["teachers[0].weight", "float", "heavy"]),
        (recipe(teachers=[{**TEACHER, "weight": True}]), ["teachers[0].weight", "bool"]),
        (recipe(teachers=[{**TEACHER, "ckpt": "x"}]), ["ckpt", "s3prl"]),
        (recipe(student={"hidden_size": 100}), ["hidden_size 100", "num_attention_heads 12"]),
        (recipe(student={"conv_stride": [5, 2, 2, 2, 2, 2, 1]}), ["160", "320"]),
        (recipe(student={"hidden_size": None}), ["student.hidden_size", "nothing"]),
        (recipe(student={"initialize_from": "wavlm"}), ["'wavlm'", "hubert"]),
        (recipe(distortion={"noise": {"probability": 1}}), ["distortion.noise", "folder"]),
        (recipe(distortion={"gaussian_noise": {"probability": 1.5}}), ["gaussian_noise.probability", "1.5"]),
        (recipe(distortion={"gaussian_noise": {"snr_db": [20, 0]}}), ["snr_db", "[low, high]"]),
        (recipe(distortion={"gaussian_noise": {"snr_db": [20]}}), ["snr_db", "2 values"]),
        (
            recipe(
                teachers=[TEACHER, {**TEACHER, "name": "b", "layers": [1]}],
                objective={"aggregation": "layerwise-average"},
            ),
            ["pairs layers by position", "separate-heads"],
        ),
        (
            recipe(
                teachers=[TEACHER, {**TEACHER, "name": "b", "weight": 2.0}],
                objective={"aggregation": "layerwise-concatenation"},
            ),
            ["layerwise-concatenation has no weights"],
        ),
    ],
)
def test_bad_recipes_are_refused_in_one_line(mapping, words):
    with pytest.raises(UserError) as caught:
        DistillConfig.from_mapping(mapping)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_yaml_messages_name_the_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    write_yaml(path, {"hiden_size": 4})
    with pytest.raises(UserError, match=r"recipe\.yaml: unknown key 'hiden_size'; did you mean 'hidden_size'"):
        StudentConfig.from_yaml(path)
    path.write_text("a: [1, 2")
    with pytest.raises(UserError, match=r"recipe\.yaml: not valid YAML"):
        StudentConfig.from_yaml(path)
    path.write_text("student: {}\nstudent: {}\n")
    with pytest.raises(UserError, match="'student' is there twice"):
        StudentConfig.from_yaml(path)
    path.write_text("- 1")
    with pytest.raises(UserError, match="expected 'key: value' lines"):
        StudentConfig.from_yaml(path)
    with pytest.raises(UserError, match="No such file"):
        StudentConfig.from_yaml(tmp_path / "absent.yaml")


RUN = {"teachers": [TEACHER], "data": {"cuts": ["train.jsonl.gz"]}, "output": "out"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed: expected at least 0, found -1"),
        ("seed=4294967296", "seed: expected at most 4294967295, found 4294967296"),
        ("seed='7'", "seed: expected int, found str '7'"),
        ("seed=true", "seed: expected int, found bool True"),
        ("seed=2024-13-45", "seed: expected int, found str '2024-13-45'"),
        ("output=''", "output: expected a name, found nothing"),
        ('output="a\\0b"', "output: 'a\\x00b' holds a character that no file name and no text can have"),
        ("student.hidden_size=0", "student.hidden_size: expected at least 1"),
        ("student.hidden_size=2000000000", "student.hidden_size: expected at most 16384"),
        ("student.num_hidden_layers=10000", "student.num_hidden_layers: expected at most 1000"),
        (
            "student.num_hidden_layers=300",
            "student: these sizes make 2.1 billion parameters, and 1 billion is the most",
        ),
        ("student.conv_dim=[512,512,512,512,512,512,0]", "student.conv_dim[6]: expected at least 1, found 0"),
        ("student.conv_dim=[]", "student: conv_dim, conv_kernel and conv_stride need the same number"),
        (f"student={{conv_dim: {[1] * 99}, conv_kernel: {[1] * 99}, conv_stride: {[1] * 99}}}", "32 are the most"),
        ("student.conv_kernel=[10,3,3,3,3,2,0]", "student.conv_kernel[6]: expected at least 1, found 0"),
        ("student.conv_kernel=[10,3,3,3,3,2,3]", "student.conv_kernel: a frame is computed from 560 samples"),
        ("student.conv_stride=[-5,-2,2,2,2,2,2]", "student.conv_stride[0]: expected at least 1, found -5"),
        ("student.num_conv_pos_embeddings=0", "student.num_conv_pos_embeddings: expected at least 1"),
        ("student.hidden_dropout=1", "student.hidden_dropout: expected less than 1"),
        ("student.feature_grad_scale=-0.1", "student.feature_grad_scale: expected at least 0"),
        ("teachers.0.weight=0", "teachers[0].weight: expected more than 0"),
        ("teachers.0.weight=.nan", "teachers[0].weight: expected a finite number, found nan"),
        ("teachers.0.layers=[-1]", "teachers[0].layers[0]: expected at least 0, found -1"),
        ("objective.cosine_weight=-1", "objective.cosine_weight: expected at least 0"),
        ("distortion.seed=-1", "distortion.seed: expected at least 0"),
        ("distortion.reverberation.probability=1.1", "distortion.reverberation.probability: expected at most 1"),
        ("distortion.noise.snr_db=[20,0]", "distortion.noise.snr_db: expected [low, high]"),
        ("distortion.gaussian_noise.snr_db=[0,1e308]", "distortion.gaussian_noise.snr_db[1]: expected at most 200"),
        ("distortion.gaussian_noise.snr_db=[-.inf,0]", "snr_db[0]: expected a finite number, found -inf"),
        ("optimizer.lr=1e308", "optimizer.lr: expected at most 1, found 1e+308"),
        ("optimizer.lr=-1e-3", "optimizer.lr: expected at least 0"),
        ("optimizer.eps=0", "optimizer.eps: expected at least 1e-30, found 0.0"),
        ("optimizer.betas=[0.9,1.0]", "optimizer.betas[1]: expected less than 1"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay: expected at least 0"),
        ("optimizer.clip_norm=-1", "optimizer.clip_norm: expected at least 0"),
        ("schedule.warmup=1", "schedule.warmup: expected less than 1"),
        ("schedule.final=-0.1", "schedule.final: expected at least 0"),
        ("trainer.devices=-1", "trainer.devices: expected at least 1, found -1; null means all there are"),
        ("trainer.devices=0", "trainer.devices: expected at least 1"),
        ("trainer.devices=auto", "trainer.devices: expected int, found str 'auto'"),
        ("trainer.accelerator=gpus", "trainer.accelerator: unknown value 'gpus'; did you mean 'gpu'?"),
        ("trainer.strategy=dpp", "trainer.strategy: unknown value 'dpp'; did you mean 'ddp'?"),
        ("trainer.precision=8", "trainer.precision: unknown value 8"),
        ("trainer.max_steps=0", "trainer.max_steps: expected at least 1"),
        ("trainer.max_steps=1" + 40 * "0", "trainer.max_steps: expected at most"),
        ("data.batch_seconds=0", "data.batch_seconds: expected more than 0"),
        ("data.batch_seconds=1e300", "data.batch_seconds: expected at most"),
        ("data.num_workers=-1", "data.num_workers: expected at least 0"),
        ("data.max_crop_samples=1", "data.max_crop_samples: expected at least 16000"),
        ("data.shar_cache_gb=-1", "data.shar_cache_gb: expected at least 0"),
        ("data.cuts=[]", "data.cuts: name at least one manifest"),
        ("data.cuts=['']", "data.cuts[0]: expected a name, found nothing"),
        ("teachers.².weight=1", "teachers.²: expected an entry's number below 1, found '²'"),
        ("teachers.-1.weight=1", "teachers.-1: expected an entry's number below 1, found '-1'"),
        ("teachers..weight=1", "expected key.path=value"),
        ("output=[" + 10**5 * "[", "nested deeper than 50 levels"),
        ("output=!!python/object/apply:os.system [ls]", "settings are plain values"),
        ("output=&a [*a]", "an alias of what it stands in"),
        (5000 * "x" + "=1", "unknown key 'xxxx"),
        ("output=" + 5000 * "x" + ": 1", "not valid YAML"),
    ],
)
def test_what_no_run_can_have_is_refused_in_one_short_line(tmp_path, override, message):
    path = tmp_path / "recipe.yaml"
    write_yaml(path, RUN)
    with pytest.raises(UserError) as caught:
        RunConfig.from_yaml(path, [override])
    said = str(caught.value)
    assert message in said
    assert said.isprintable()
    assert len(said.removeprefix(f"{path}: ")) <= 450


def test_settings_at_the_ends_of_their_ranges_are_accepted(tmp_path):
    path = tmp_path / "recipe.yaml"
    write_yaml(path, RUN)
    given = [
        "seed=4294967295", "student.num_hidden_layers=1", "optimizer.lr=0", "optimizer.betas=[0, 0.999]",
        "distortion.noise.snr_db=[5, 5]", "distortion.gaussian_noise.probability=1", "trainer.devices=null",
        "trainer.strategy=ddp_find_unused_parameters_true", "data.num_workers=0", "optimizer.clip_norm=null",
        "student.conv_kernel=[5,2,2,2,2,2,2]",
    ]  # fmt: skip
    config = RunConfig.from_yaml(path, given)
    assert (config.seed, config.optimizer.lr, config.trainer.devices, config.optimizer.clip_norm) == (
        2**32 - 1,
        0,
        None,
        None,
    )
    assert RunConfig.from_mapping(config.to_mapping()) == config


def test_direct_construction_is_checked_too():
    with pytest.raises(UserError, match="hidden_size: expected at least 1, found 0"):
        StudentConfig(hidden_size=0)
    with pytest.raises(UserError, match="layer_norm_eps: expected more than 0"):
        EncoderConfig(layer_norm_eps=0.0)
    with pytest.raises(UserError, match="max_timestep: a frame needs 400 samples, found 399"):
        PretrainDataConfig(train_batch_size=1, audio_folder="x", max_timestep=399)
    assert PretrainDataConfig(train_batch_size=1, audio_folder="x", max_timestep=-1).max_crop_samples is None


def all_configs() -> list[type[Config]]:
    for module in pkgutil.walk_packages(s3prl_ekd.__path__, "s3prl_ekd."):
        if module.name.rsplit(".", 1)[1].endswith(("config", "pretrain", "upstream")):
            importlib.import_module(module.name)
    found, waiting = [], [Config]
    while waiting:
        waiting += (subclasses := waiting.pop().__subclasses__())
        found += [cls for cls in subclasses if cls.__module__.startswith("s3prl_ekd.")]
    return found


def numbers(hint, bounded: bool = False):
    """Each int or float in a type, with whether something bounds it."""
    if hint in (int, float):
        yield bounded
    for argument in typing.get_args(hint):
        yield from numbers(argument, bounded or typing.get_origin(hint) is typing.Annotated)


def test_every_number_of_every_configuration_is_bounded():
    fields = 0
    for cls in all_configs():
        for name, hint in typing.get_type_hints(cls, include_extras=True).items():
            found = list(numbers(hint))
            fields += len(found)
            assert all(found), f"{cls.__name__}.{name} has no Range"
    assert fields > 70


LAYERS_DIFFER = {"num_attention_heads": [2, 0], "intermediate_size": [0, 9], "head_dim": 6}
LARGE = {"conv_bias": True, "conv_layer_norm": True, "feat_proj_layer_norm": True, "do_stable_layer_norm": True}
WAVLM = {"kind": "wavlm", "num_buckets": 32, "feat_proj_layer_norm": True}


@pytest.mark.parametrize(
    ("student", "words"),
    [
        ({"num_attention_heads": [12, 12, 12]}, "num_attention_heads: 3 numbers for 2 layers; give one for each"),
        ({"intermediate_size": [9]}, "intermediate_size: 1 numbers for 2 layers"),
        ({"num_attention_heads": [12, 8]}, "num_attention_heads: a list needs student.head_dim"),
        ({"intermediate_size": [-1, 3]}, r"intermediate_size\[0\]: expected at least 0"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected at least 1"),
        ({"num_buckets": 320}, "num_buckets: a hubert has no relative positions"),
        ({"kind": "wavlm", "feat_proj_layer_norm": True}, "num_buckets: kind wavlm needs some; WavLM has 320"),
        ({"kind": "wavlm", "num_buckets": 320}, "feat_proj_layer_norm: kind wavlm has this LayerNorm"),
        ({"remaining_heads": [[0], [1]]}, "remaining_heads: only the heads of a WavLM"),
        ({**WAVLM, "num_buckets": 3}, "num_buckets: 3 buckets are too few"),
        ({**WAVLM, "max_bucket_distance": 8}, "max_bucket_distance: 8 is not beyond the first 8 frames"),
        ({**WAVLM, "head_dim": 65}, "hidden_size 768 is not divisible by head_dim 65"),
        (
            {**WAVLM, "head_dim": 64, "num_attention_heads": 11},
            "num_attention_heads: of the 12 heads of width 64 .* some are gone",
        ),
        (
            {**WAVLM, "head_dim": 64, "num_attention_heads": [1, 0], "remaining_heads": [[0], [1]]},
            r"remaining_heads: names \[1, 1\] heads a layer, where num_attention_heads is \[1, 0\]",
        ),
        (
            {**WAVLM, "head_dim": 64, "num_attention_heads": [2, 1], "remaining_heads": [[1, 12], [1]]},
            r"remaining_heads: \[1, 12\] are not numbers of heads, from 0 to 11 in rising order",
        ),
        (
            {**WAVLM, "head_dim": 64, "num_attention_heads": 2, "remaining_heads": [[1, 1], [0, 1]]},
            r"remaining_heads: \[1, 1\] are not numbers",
        ),
    ],
)
def test_sizes_of_layers_that_do_not_fit_together(student, words):
    with pytest.raises(UserError, match=f"^student.{words}"):
        DistillConfig.from_mapping(recipe(student=student))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conv_dim": [16, 8, 24, 16, 8, 16, 40], "num_conv_pos_embeddings": 5},
        LARGE | LAYERS_DIFFER,
        WAVLM | LAYERS_DIFFER | {"remaining_heads": [[1, 3], []]},
    ],
)
def test_parameters_are_counted_without_building_the_network(changes):
    config = StudentConfig.from_mapping({**TINY, **changes})
    assert config.parameters == sum(parameter.numel() for parameter in Student(config).parameters())
    assert config.receptive_field == Student(config).min_samples


def test_strategies_and_accelerators_are_lightnings():
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    hints = typing.get_type_hints(s3prl_ekd.config.training.TrainerConfig, include_extras=True)
    names = {key: set(hints[key].__metadata__[0].names) for key in ("strategy", "accelerator")}
    assert names["strategy"] == {"auto", *StrategyRegistry.available_strategies()}
    assert names["accelerator"] == {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}


def test_a_manifest_under_two_names_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl.gz").touch()
    (tmp_path / "link.jsonl.gz").symlink_to("a.jsonl.gz")
    (tmp_path / "there").symlink_to(tmp_path)
    for other in ("./a.jsonl.gz", str(tmp_path / "a.jsonl.gz"), "link.jsonl.gz", "there/a.jsonl.gz", "x/../a.jsonl.gz"):
        with pytest.raises(UserError, match=r"data.cuts: .*, also as a\.jsonl\.gz, is named twice"):
            DataConfig.from_mapping({"cuts": ["a.jsonl.gz", other]}, "data")
        with pytest.raises(UserError, match=r"data.dev_cuts: .* is named twice"):
            DataConfig.from_mapping({"cuts": ["b.jsonl.gz"], "dev_cuts": [other, "a.jsonl.gz"]}, "data")
    addresses = ["s3://x/a.jsonl.gz", "s3://x/./a.jsonl.gz", "pipe:cat a", "pipe:cat ./a"]
    assert DataConfig.from_mapping({"cuts": addresses}).cuts == tuple(addresses)


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(9))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{','.join([f'*a{i}'] * 9)}]}}\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "more than 10000 values, aliases included"),
        (MERGES, "more than 10000 values, aliases included"),
        ("a: [" + 20_000 * "1," + "]", "more than 10000 values"),
        ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(99)), "more than 50 levels"),
        ("a: &a {b: *a}", "line 1, column 11: an alias of what it stands in"),
        ("a: " + 10**5 * "[", "line 1, column 53: nested deeper than 50 levels"),
        ("a: " + 10**5 * "{a: ", "nested deeper than 50 levels"),
        ("a: !!python/object/apply:os.system [ls]", "settings are plain values"),
        ("a: !!timestamp x", "settings are plain values"),
        ("a: !!set {a, b}", "settings are plain values"),
        ("a: !!binary x", "settings are plain values"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a: !!int ''", "'' is no int"),
        ("a: 0b_", "'0b_' is no int"),
        ("a: " + 5000 * "9", "is no int"),
        ("a: 0x" + 5000 * "f", "a number of too many digits"),
        ("? [a, b]\n: 1", "unhashable key"),
        ("a:\n\t- b", "line 2, column 1: found character '\\t'"),
        ("a: 1\n---\nb: 1", "another document"),
        ("a: 1\nb: 1\na: 1", "line 3, column 1: 'a' is there twice"),
        ("a: \0", "unacceptable character"),
        ("a: *b", "undefined alias"),
        ("a: '" + (1 << 20) * "x" + "'", "longer than 1048576 bytes"),
        ("a: \x1b[31mred", "unacceptable character"),
    ],
)
def test_hostile_yaml_is_refused_in_one_short_line_at_once(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert time.process_time() - start < 5
    said = str(caught.value).removeprefix(f"{path}: ")
    assert message in said
    assert said.isprintable()
    assert len(said) <= 200


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    for data in (b"\xff\xfea\x00", bytes(range(256)), b"a: \xe4"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"recipe\.yaml: not valid YAML"):
            read_yaml(path)
    with pytest.raises(UserError, match="null byte"):
        read_yaml("a\0b")


def test_plain_yaml_means_what_it_did():
    text = "\ufeffa: &x {k: 1, f: 1.5, t: yes, n: ~, e: 1e-3}\nb: {<<: *x, k: 2}\nc: [*x, 0x10, 1_000]\nd: 2024-01-05\n"
    assert parse_yaml(text) == {
        "a": {"k": 1, "f": 1.5, "t": True, "n": None, "e": "1e-3"},
        "b": {"k": 2, "f": 1.5, "t": True, "n": None, "e": "1e-3"},
        "c": [{"k": 1, "f": 1.5, "t": True, "n": None, "e": "1e-3"}, 16, 1000],
        "d": "2024-01-05",  # a run's folder may be called so
    }
    # A merged mapping may come to hold a key twice before it is read itself: that is no mistake of the file.
    assert parse_yaml("b: &b {x: 1}\np: {d: &d {<<: *b, x: 2}}\ne: {<<: *d}")["p"] == {"d": {"x": 2}}


def test_an_override_may_be_null_or_a_date():
    mapping = {"teachers": [dict(TEACHER)], "a": 1}
    for override in ("a=null", "teachers.0.layers=[2]", "b.c=2024-01-05", "d="):
        apply_override(mapping, override)
    assert mapping == {"teachers": [{**TEACHER, "layers": [2]}], "a": None, "b": {"c": "2024-01-05"}, "d": None}


def test_every_message_is_one_printable_line_of_bounded_length():
    said = str(UserError("x: " + "a\nb\x1b[31m\0" * 1000 + "; do this"))
    assert said.isprintable()
    assert len(said) <= LONGEST_MESSAGE
    assert said.startswith("x: a b\\x1b[31m\\x00a b")
    assert said.endswith("; do this")
    assert str(UserError("wie schön: 東京")) == "wie schön: 東京"


def test_nothing_stays_of_a_file_that_was_not_written(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(IsADirectoryError), atomic_path(tmp_path / "old" / "new" / "newer" / "file.json") as temporary:
        temporary.parent.write_text("a folder is no file")
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
    with atomic_path(tmp_path / "old" / "new" / "file.json") as temporary:
        temporary.touch()
    assert (tmp_path / "old" / "new" / "file.json").is_file()


class Refusing(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise UserError("a.wav: truncated; replace it")


def test_an_error_of_a_loaders_worker_comes_without_its_traceback():
    with pytest.raises(UserError) as caught:
        list(torch.utils.data.DataLoader(Refusing(), num_workers=1))
    assert str(caught.value) == "a.wav: truncated; replace it"
