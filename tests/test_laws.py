"""What holds for every input, tried on drawn ones (hypothesis, the same ones each time)."""

from __future__ import annotations

import types

import pytest
import torch
from helpers_models import TINY, speech_like
from helpers_settings import refusal, students
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from s3prl_ekd import cost
from s3prl_ekd.config.recipe import AGGREGATORS, DistillConfig, ObjectiveConfig, StudentConfig
from s3prl_ekd.cost import UNITS
from s3prl_ekd.cuts.read import cut_key
from s3prl_ekd.errors import LONGEST_MESSAGE, printable_line
from s3prl_ekd.files import parse_yaml, read_yaml
from s3prl_ekd.network.frames import Packing, conv_frames, receptive_field
from s3prl_ekd.pruning.gates import Gates
from s3prl_ekd.pruning.shrink import shrink
from s3prl_ekd.student.model import Student
from s3prl_ekd.target_cache.reading import TargetCache
from s3prl_ekd.target_cache.settings import write_description
from s3prl_ekd.target_cache.shards import ShardWriter, write_index
from s3prl_ekd.targets import TeacherSpec

few = settings(max_examples=12)


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


@few
@given(students(), st.sets(st.sampled_from(UNITS), min_size=1), st.floats(0, 0.95), st.integers(0, 99))
def test_a_student_shrinks_to_what_it_is_with_its_gates(mapping, units, share, seed):
    """In any sizes, whatever the gates, and never to more than the budget."""
    torch.manual_seed(seed)
    student = Student(StudentConfig.from_mapping(mapping)).double().eval()
    sizes, counts = cost.FixedSizes.of(student.config), cost.UnitCounts.of(student.config)
    full, least = cost.parameters(sizes, counts), cost.parameters(sizes, counts.least(units))
    assume(least < full)
    gates = Gates(student, sorted(units), {"parameters": least + share * (full - least)}).eval()
    gates.hard_concrete.log_alpha.data.normal_(std=3)
    smaller = shrink(student, gates)
    assert smaller.config.parameters <= gates.budget.amount
    assert sum(parameter.numel() for parameter in smaller.parameters()) == smaller.config.parameters
    waveform = speech_like(2000, seed)[None].double()
    with torch.no_grad(), gates.attached(student):
        gated = student(waveform).rows
    for ours, theirs in zip(smaller(waveform).rows, gated, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


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
    parts = aggregator.per_teacher(whole)
    assert parts.keys() == {(spec.name, name) for spec in specs for name in spec.slot_names}
    for (name, layer), share in parts.items():
        if aggregator.separable:
            torch.testing.assert_close(share, states[int(name[1:])][int(layer) - 1], rtol=1e-5, atol=1e-6)


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
