"""What holds for every input, tried on drawn ones (hypothesis, the same ones each time)."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable

import pytest
import torch
import yaml
from helpers_models import TINY, speech_like
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from s3prl_ekd.config.base import Config, OneOf, Range
from s3prl_ekd.config.data import DataConfig
from s3prl_ekd.config.parts import Parts
from s3prl_ekd.config.recipe import (
    AGGREGATORS,
    DistillConfig,
    DistortionConfig,
    ObjectiveConfig,
    StudentConfig,
    TeacherConfig,
)
from s3prl_ekd.config.training import OptimizerConfig, RunConfig, ScheduleConfig, TrainerConfig, apply_override
from s3prl_ekd.cuts.read import cut_key
from s3prl_ekd.errors import LONGEST_MESSAGE, UserError, printable_line
from s3prl_ekd.files import parse_yaml, read_yaml
from s3prl_ekd.network.frames import Packing, conv_frames, receptive_field
from s3prl_ekd.student.model import Student
from s3prl_ekd.target_cache.reading import TargetCache
from s3prl_ekd.target_cache.settings import write_description
from s3prl_ekd.target_cache.shards import ShardWriter, write_index
from s3prl_ekd.targets import TeacherSpec

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=40)
settings.load_profile("repeatable")
few = settings(max_examples=12)


def values(hint, name: str = "") -> st.SearchStrategy:
    """Plain values that a field of this type may have, by its rules."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        kind, rule = arguments[0], arguments[1]
        if isinstance(rule, Range):
            return numbers(kind, rule)
        if isinstance(rule, OneOf):
            return st.sampled_from(rule.names)
        if isinstance(rule, Parts):
            return st.sampled_from(sorted(rule))
        if kind is str:
            return names()
        return values(kind).map(sorted)  # a range of two numbers
    if origin in (typing.Union, types.UnionType):
        return st.none() | values(next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if arguments[-1] is not ...:
            return st.tuples(*map(values, arguments)).map(list)
        return st.lists(values(arguments[0]), min_size=1, max_size=3, unique_by=str)
    if issubclass(hint, Config):
        return mappings(hint)
    if issubclass(hint, enum.Enum):
        return st.sampled_from([item.value for item in hint])
    return {bool: st.booleans(), str: names()}[hint]


def names() -> st.SearchStrategy[str]:
    """Any text, and what YAML would take for something else."""
    return st.sampled_from(["1e-3", "yes", "null", "2024-01-05", "0x10", "~", "[", "a: b", "'", " x", "#"]) | st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8
    ).filter(str.strip)


def numbers(kind: type, rule: Range) -> st.SearchStrategy:
    low = rule.at_least if rule.at_least is not None else rule.more_than
    high = rule.at_most if rule.at_most is not None else rule.less_than
    if kind is int:
        return st.integers(low, high)
    exclude = {"exclude_min": rule.at_least is None, "exclude_max": rule.at_most is None}
    return st.floats(low, high, **exclude)


def mappings(cls: type[Config], **fixed: st.SearchStrategy) -> st.SearchStrategy[dict]:
    """Mappings of a configuration, fields with a default left out here and there."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {name: fixed[name] if name in fixed else values(hint) for name, hint in hints.items()}
    optional = {f.name for f in dataclasses.fields(cls) if f.default is not f.default_factory}
    required = {name: strategy for name, strategy in fields.items() if name not in optional}
    return st.fixed_dictionaries(required, optional={name: fields[name] for name in fields if name in optional})


def students() -> st.SearchStrategy[dict]:
    divisors = st.sampled_from([1, 2, 4])
    fixed = {
        "conv_dim": st.lists(st.integers(1, 20), min_size=7, max_size=7),
        "conv_kernel": st.just([10, 3, 3, 3, 3, 2, 2]),
        "conv_stride": st.just([5, 2, 2, 2, 2, 2, 2]),
        "hidden_size": st.just(24),
        "num_attention_heads": divisors,
        "num_conv_pos_embedding_groups": divisors,
        "num_conv_pos_embeddings": st.integers(1, 20),
        "intermediate_size": st.integers(1, 64),
        "num_hidden_layers": st.integers(1, 3),
        "initialize_from": st.none(),
    }
    return mappings(StudentConfig, **fixed).map(lambda found: {**TINY, **found})


TEACHER = st.fixed_dictionaries({"name": names(), "mini": st.just("hubert"), "layers": st.just([1, 2])})
TEACHERS = st.lists(TEACHER, min_size=1, max_size=3, unique_by=lambda teacher: teacher["name"])
NO_FOLDER = st.fixed_dictionaries({}, optional={"folder": names()})
FREE = {
    "objective": (ObjectiveConfig, mappings(ObjectiveConfig)),
    "distortion": (DistortionConfig, mappings(DistortionConfig, noise=NO_FOLDER)),
    "optimizer": (OptimizerConfig, mappings(OptimizerConfig)),
    "schedule": (ScheduleConfig, mappings(ScheduleConfig)),
    "trainer": (TrainerConfig, mappings(TrainerConfig)),
    "student": (StudentConfig, students()),
}


def refusal(function: Callable[..., object], *arguments: object) -> str | None:
    """What a UserError says; None if there is none."""
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    return None


def same_again(config: Config) -> None:
    """From plain values, and from YAML text, comes the same."""
    plain = config.to_mapping()
    assert type(config).from_mapping(plain) == config
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    assert type(config).from_mapping(parse_yaml(text)) == config


@pytest.mark.parametrize("section", FREE)
def test_settings_within_their_ranges_are_accepted_and_come_back(section):
    cls, strategy = FREE[section]

    @given(strategy)
    def law(mapping):
        same_again(cls.from_mapping(mapping, section))

    law()


@given(
    st.fixed_dictionaries({"teachers": TEACHERS, "student": FREE["student"][1], "distortion": FREE["distortion"][1]})
)
def test_model_sides_come_back(mapping):
    same_again(DistillConfig.from_mapping(mapping))


@given(mappings(DataConfig), FREE["optimizer"][1], TEACHERS, names())
def test_whole_recipes_are_refused_by_name_or_come_back(data, optimizer, teachers, output):
    mapping = {"data": data, "optimizer": optimizer, "teachers": teachers, "output": output}
    said = refusal(RunConfig.from_mapping, mapping)
    if said is None:
        same_again(RunConfig.from_mapping(mapping))
    else:
        assert said.startswith(("data.", "data: "))  # crops and batches, which depend on each other; equal manifests


@given(mappings(TeacherConfig))
def test_teachers_are_refused_by_name_or_come_back(mapping):
    said = refusal(TeacherConfig.from_mapping, mapping, "teachers[0]")
    if said is None:
        same_again(TeacherConfig.from_mapping(mapping))
    else:
        assert said.startswith("teacher ")  # without a source, or with several


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), part, max_size=3),
    max_leaves=5,
)
FIELDS = sorted({field.name for cls, _ in FREE.values() for field in dataclasses.fields(cls)})


@given(
    st.sampled_from(sorted(FREE)), st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), ANYTHING, max_size=2)
)
def test_whatever_a_section_holds_is_accepted_or_refused_by_its_name(section, mapping):
    said = refusal(FREE[section][0].from_mapping, mapping, section)
    assert said is None or (f"{section}." in said or f"{section}:" in said or f"{section} " in said)
    assert said is None or len(said) <= 500


PIECES = (
    "a", "b", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&x ", "*x", "<<: ", "!!int ", "!!set ", "!x ", "? ",
    "=", "|", ">", "'", '"', "#", "\t", "1", "-", "0b", "0x", "1e3", "~", "%", "---\n", "...", "\x85", "\ufeff",
    "2024-13-45",
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=30))
def test_yaml_is_plain_values_or_a_user_error(text):
    said = refusal(parse_yaml, text)
    if said is None:
        assert {type(item) for item in every(parse_yaml(text))} <= {dict, list, str, int, float, bool, type(None)}
    else:
        assert said.startswith("not valid YAML (")
        assert len(said) < 250


def every(value):
    yield value
    if isinstance(value, dict | list):
        for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            yield from every(item)


@given(st.binary(max_size=60))
def test_files_of_any_bytes_are_mappings_or_user_errors(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    said = refusal(read_yaml, path)
    assert isinstance(read_yaml(path), dict) if said is None else said.startswith(f"{path}: ")


PATHS = st.lists(st.sampled_from(["teachers", "0", "1", "²", "a", ".", "=", "["]), max_size=8).map("".join)


@given(st.text(max_size=20) | PATHS)
def test_overrides_are_set_or_user_errors(text):
    mapping = {"teachers": [{"a": 1}], "a": {"b": 2}}
    said = refusal(apply_override, mapping, text)
    assert "=" in text if said is None else said.isprintable()


@given(st.text(max_size=50) | st.text(max_size=50).map(lambda text: 100 * text))
def test_messages_are_one_printable_line(text):
    line = printable_line(text)
    assert line == "" or line.isprintable()
    assert len(line) <= LONGEST_MESSAGE
    assert printable_line(line) == line
    if text.isprintable() and len(text) <= LONGEST_MESSAGE:
        assert line == text


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(0, 3))
def test_packing_and_back(frames, extra):
    assume(max(frames) > 0)
    lengths, size = torch.tensor(frames), max(frames) + extra
    packing = Packing(lengths, lengths.device, size)
    padded = torch.rand(len(frames), size, 2) + 1
    rows = packing.pack(padded)
    assert rows.shape == (sum(frames), 2)
    back = packing.unpack(rows)
    mask = packing.mask()
    assert torch.equal(back[mask], padded[mask])
    assert not back[~mask].any()
    assert torch.equal(packing.pack(back), rows)
    assert torch.equal(torch.cat([one[:count] for one, count in zip(padded, frames, strict=True)]), rows)


@few
@given(st.lists(st.integers(400, 4000), min_size=2, max_size=4), st.booleans())
def test_features_do_not_depend_on_batch_mates(samples, normalize):
    torch.manual_seed(0)
    student = Student(StudentConfig.from_mapping({**TINY, "normalize_waveform": normalize})).eval()
    waves = [speech_like(count, seed) for seed, count in enumerate(samples)]
    with torch.no_grad():
        together = student(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), torch.tensor(samples))
        for number, wave in enumerate(waves):
            alone = student(wave[None])
            assert int(together.frame_lengths[number]) == int(alone.frame_lengths[0])
            for ours, theirs in zip(together.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(ours[number, : theirs.shape[1]], theirs[0], atol=2e-5, rtol=1e-4)


@few
@given(students())
def test_parameters_and_receptive_field_are_those_of_the_network(mapping):
    config = StudentConfig.from_mapping(mapping)
    student = Student(config)
    assert config.parameters == sum(parameter.numel() for parameter in student.parameters())
    assert config.receptive_field == student.min_samples


@given(st.integers(400, 10**6), st.integers(0, 50))
def test_frames_are_counted_as_convolutions_count_them(samples, skipped):
    kernels, strides = StudentConfig().conv_kernel, StudentConfig().conv_stride
    frames = int(conv_frames(torch.tensor(samples), kernels, strides))
    assert frames == (samples - 400) // 320 + 1
    assert receptive_field(kernels, strides) == 400
    if samples - 320 * skipped >= 400:  # a part that starts on a frame has the frames that are left
        assert int(conv_frames(torch.tensor(samples - 320 * skipped), kernels, strides)) == frames - skipped


@given(st.sampled_from(list(AGGREGATORS)), st.integers(1, 3), st.integers(1, 3), st.data())
def test_aggregation_is_frame_by_frame(aggregation, teachers, slots, data):
    weights = [data.draw(st.floats(0.1, 5)) for _ in range(teachers)]
    specs = [TeacherSpec(f"t{k}", tuple(range(1, slots + 1)), 3, weights[k]) for k in range(teachers)]
    aggregator = AGGREGATORS.load(aggregation)(specs, ObjectiveConfig(aggregation=aggregation))
    states = [[torch.randn(6, 3) for _ in range(slots)] for _ in specs]
    whole = aggregator.combine(states)
    assert sum(target.weight for target in aggregator.targets) == pytest.approx(1)
    assert [value.shape for value in whole] == [(6, target.size) for target in aggregator.targets]
    start, end = sorted(data.draw(st.tuples(st.integers(0, 6), st.integers(0, 6))))
    part = aggregator.combine([[state[start:end] for state in layers] for layers in states])
    assert all(torch.equal(ours, value[start:end]) for ours, value in zip(part, whole, strict=True))
    for index, target in enumerate(aggregator.targets):
        for (name, layer), share in zip(target.parts, aggregator.per_teacher(index, whole[index]), strict=True):
            if aggregator.separable:
                assert torch.equal(share, states[int(name[1:])][layer - 1])


CUTS = [types.SimpleNamespace(id=f"cut{i}", start=0.5 * i, duration=1.0 + 0.37 * i) for i in range(4)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_description(folder, DistillConfig.from_mapping({"teachers": [{"name": "a", "mini": "hubert"}]}), {"a": 4})
    writer, wanted = ShardWriter(folder, 0, 1000), {}
    for cut in CUTS:
        samples = round(16000 * cut.duration)
        wanted[cut.id] = torch.randn((samples - 400) // 320 + 1, 4).half()
        writer.add(cut_key(cut.id, cut.start, samples), wanted[cut.id])
    writer.flush()
    write_index(folder)
    return TargetCache(folder), wanted


@given(st.sampled_from(CUTS), st.data())
def test_targets_of_a_crop_are_those_frames_of_the_whole(cache, cut, data):
    stored, wanted = cache
    total = round(16000 * cut.duration)
    first = data.draw(st.integers(0, (total - 400) // 320))
    samples = data.draw(st.integers(400, total - 320 * first))
    frames = (samples - 400) // 320 + 1
    assert torch.equal(stored.read(cut, 320 * first, samples), wanted[cut.id][first : first + frames])
