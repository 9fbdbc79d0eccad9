"""Teachers: the same targets from every source, for each utterance alone, whatever anybody does to them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_models import speech_like
from helpers_pruned import pruned_student
from helpers_teachers import KERNELS, STRIDES, padded_states, s3prl_checkpoint, tiny_model
from helpers_weights import distiller_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from s3prl_ekd import assets
from s3prl_ekd.config.recipe import DistillConfig, TeacherConfig, UnitsConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.folder import save_student
from s3prl_ekd.student.heads import PredictionHeads
from s3prl_ekd.student.model import Student
from s3prl_ekd.teachers import Teacher, load_teacher, load_teachers
from s3prl_ekd.teachers.base import ModelTeacher
from s3prl_ekd.teachers.own_encoder import FastTeacher

KINDS = [(kind, large) for kind in ("hubert", "wav2vec2", "wavlm") for large in (False, True)]
UPSTREAMS = {"hubert": "hubert_local", "wav2vec2": "wav2vec2_custom", "wavlm": "wavlm_local"}
LENGTHS = torch.tensor([16000, 9999, 16000, 800])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of model as ``<kind>-<large>`` (transformers folder) and ``<kind>-<large>.pt`` (s3prl)."""
    folder = tmp_path_factory.mktemp("teachers")
    for kind, large in KINDS:
        model = tiny_model(kind, large=large)
        model.save_pretrained(folder / f"{kind}-{large}")
        s3prl_checkpoint(model, kind, folder / f"{kind}-{large}.pt", large=large)
    return folder


@pytest.fixture
def copy(shelf: Path, tmp_path: Path) -> Path:
    """A HuBERT folder of one's own, to be changed."""
    return shutil.copytree(shelf / "hubert-False", tmp_path / "copy")


def from_transformers(folder: Path, **options: Any) -> Teacher:
    defaults = {"name": "t", "transformers": str(folder), "layers": (0, 1, 2, 3), "own_forward": True}
    return load_teacher(TeacherConfig(**defaults | options), initializes=3)


def from_s3prl(upstream: str, ckpt: Path | None = None, **options: Any) -> Teacher:
    ckpt = None if ckpt is None else str(ckpt)
    defaults = {"name": "t", "s3prl": upstream, "ckpt": ckpt, "layers": (0, 1, 2, 3), "own_forward": True}
    return load_teacher(TeacherConfig(**defaults | options), initializes=3)


def from_source(source: str, shelf: Path, kind: str, large: bool, **options: Any) -> Teacher:
    if source == "transformers":
        return from_transformers(shelf / f"{kind}-{large}", **options)
    return from_s3prl(UPSTREAMS[kind], shelf / f"{kind}-{large}.pt", **options)


def batch() -> Tensor:
    waveforms = torch.zeros(len(LENGTHS), int(LENGTHS.max()))
    for i, length in enumerate(LENGTHS.tolist()):
        waveforms[i, :length] = speech_like(length, seed=i)
    return waveforms


def difference(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(left, right, strict=True))


# --- one teacher, two sources -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "large"), KINDS)
@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1,), (2, 0)])
def test_sources_agree(shelf, kind, large, layers):
    reference = from_transformers(shelf / f"{kind}-{large}", layers=layers)
    expected, frames = padded_states(reference, batch(), LENGTHS)
    assert frames.tolist() == [49, 30, 49, 2]
    assert [tuple(layer.shape) for layer in expected] == [(4, 49, 24)] * len(layers)
    assert len(reference.module.encoder.layers) == max(layers)
    weights = tiny_model(kind, large=large).state_dict()
    del weights["masked_spec_embed"]
    assert_same_weights(reference, weights)

    for source, own_forward in (("s3prl", True), ("s3prl", False), ("transformers", False)):
        teacher = from_source(source, shelf, kind, large, layers=layers, own_forward=own_forward)
        assert isinstance(teacher, FastTeacher) is not own_forward
        found, other_frames = padded_states(teacher, batch(), LENGTHS)
        assert other_frames.tolist() == frames.tolist()
        assert difference(found, expected) < (1e-5 if own_forward else 2e-5)
        assert teacher.num_hidden_layers == 3
        assert len((teacher.module.model if own_forward else teacher.module).encoder.layers) == max(layers)
        assert_same_weights(teacher, weights)


def assert_same_weights(teacher: Teacher, weights: dict[str, Tensor]) -> None:
    """All of them, whether or not the teacher still computes their layer."""
    found = teacher.encoder_state()
    assert set(found) == set(weights)
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("kind", ["hubert", "wavlm"])
def test_last_hidden_state_of_a_large_model_is_after_its_layer_norm(shelf, kind):
    model = tiny_model(kind, large=True)
    waveform = speech_like(8000)
    teacher = from_transformers(shelf / f"{kind}-True", layers=(2, 3))
    (inner, last), _ = padded_states(teacher, waveform[None], torch.tensor([8000]))
    raw: dict[int, Tensor] = {}
    for i, layer in enumerate(model.encoder.layers, start=1):
        layer.register_forward_hook(
            lambda module, args, output, i=i: raw.update({i: output[0] if isinstance(output, tuple) else output})
        )
    with torch.no_grad():
        model(F.layer_norm(waveform, waveform.shape)[None])
        assert difference([inner], [raw[2]]) < 1e-5
        assert difference([last], [model.encoder.layer_norm(raw[3])]) < 1e-5
    shortened = from_transformers(shelf / f"{kind}-True", layers=(2,))
    assert difference(padded_states(shortened, waveform[None], torch.tensor([8000]))[0], [raw[2]]) < 1e-5


def test_distilled_students_teach_and_initialise_through_s3prl(tiny_config, tmp_path, caplog):
    student, heads = Student(tiny_config).eval(), PredictionHeads(24, [24, 24])
    state = student.state_dict() | {f"heads.{key}": value for key, value in heads.state_dict().items()}
    settings = {
        "extractor_conv_feature_layers": str(list(zip(tiny_config.conv_dim, KERNELS, STRIDES, strict=True))),
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "encoder_layers": 2,
        "encoder_embed_dim": 24,
        "encoder_ffn_embed_dim": 48,
        "encoder_attention_heads": 4,
        "final_dim": 24,
        "n_tasks": 2,
        "pred_layer_id": [1, 2],
        "task_emb_type": "expand-last",
    }
    torch.save({"Distiller": distiller_weights(state), "Config": {"distiller": settings}}, tmp_path / "states.ckpt")
    with caplog.at_level(logging.WARNING):
        teacher = from_s3prl("distiller_local", tmp_path / "states.ckpt", layers=(0, 1, 2))
    assert "unpickles" in caplog.text
    assert "states.ckpt" in caplog.text
    waveforms, lengths = batch(), LENGTHS
    states, frames = padded_states(teacher, waveforms, lengths)
    for i, (count, length) in enumerate(zip(frames.tolist(), lengths.tolist(), strict=True)):
        with torch.no_grad():
            expected = student(waveforms[i : i + 1, :length]).hidden_states
        assert difference([state[i, :count] for state in states], [state[0] for state in expected]) < 1e-5
    assert all(torch.equal(value, state[key]) for key, value in teacher.encoder_state().items())


# --- the targets of an utterance are its targets alone ----------------------------------------------------------------


@pytest.mark.parametrize("own_forward", [True, False])
@pytest.mark.parametrize("source", ["transformers", "s3prl"])
@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_targets_alone_are_targets_in_a_batch(shelf, source, kind, large, own_forward):
    teacher = from_source(source, shelf, kind, large, own_forward=own_forward)
    waveforms = batch()
    junk = waveforms.clone()
    for i, length in enumerate(LENGTHS.tolist()):
        junk[i, length:] = 7.0
    states, frames = padded_states(teacher, junk, LENGTHS)
    teacher.padded = True
    padded, padded_frames = padded_states(teacher, waveforms, LENGTHS)
    teacher.padded = False
    assert padded_frames.tolist() == [max(frames)] * len(frames)
    worst = 0.0
    for i, (count, length) in enumerate(zip(frames.tolist(), LENGTHS.tolist(), strict=True)):
        alone, _ = padded_states(teacher, waveforms[i : i + 1, :length], torch.tensor([length]))
        assert difference([state[i, :count] for state in states], [state[0] for state in alone]) < 1e-5
        assert all(not state[i, count:].any() for state in states)
        worst = max(worst, difference([state[i, :count] for state in padded], [state[0] for state in alone]))
    if not large:  # GroupNorm over padded time: what the other road avoids
        assert worst > 1e-2
        assert padded[-1][-1, frames[-1] :].abs().max() > 0


def test_frame_counts_follow_the_model(shelf):
    teacher = from_transformers(shelf / "hubert-False", layers=(1,))
    lengths = torch.tensor([400, 719, 720, 16000])
    _, frames = padded_states(teacher, 0.1 * torch.randn(4, 16000), lengths)
    assert frames.tolist() == [1, 1, 2, 49]
    with pytest.raises(ValueError, match="399 samples"):
        teacher.hidden_states(0.1 * torch.randn(1, 399), torch.tensor([399]))


class Scripted(ModelTeacher):
    """A teacher whose layers have the frames it is told, filled with the number of utterances of the forward pass."""

    def __init__(self, frames: tuple[int, ...] = (50, 50), *, batches: bool = True) -> None:
        self.frames = frames
        super().__init__(
            TeacherConfig(name="scripted", mini="hubert", layers=(0, 1)),
            nn.Linear(1, 1),
            source="script",
            normalize_waveform=False,
            batches=batches,
        )

    def _forward(self, waveforms: list[Tensor]) -> list[Tensor]:
        return [torch.full((len(waveforms), count, 4), float(len(waveforms))) for count in self.frames]

    def _drop_layers(self, depth: int) -> dict[str, nn.Module]:
        return {}

    def _weights(self) -> dict[str, Tensor]:
        return self.module.state_dict()


def test_one_frame_between_layers_is_cropped_and_more_is_an_error():
    teacher = Scripted((51, 50))
    states, frames = padded_states(teacher, torch.zeros(1, 16000), torch.tensor([16000]))
    assert [state.shape[1] for state in states] == [50, 50]
    assert frames.tolist() == [50]
    teacher.frames = (51, 49)
    with pytest.raises(UserError, match=r"\[51, 49\] frames"):
        padded_states(teacher, torch.zeros(1, 16000), torch.tensor([16000]))


@pytest.mark.parametrize(("batches", "seen"), [(True, [2, 1, 2]), (False, [1, 1, 1])])
def test_only_equal_lengths_share_a_forward_pass(batches, seen):
    states, _ = padded_states(Scripted(batches=batches), torch.zeros(3, 16000), torch.tensor([16000, 9000, 16000]))
    assert states[0][:, 0, 0].tolist() == seen


# --- frozen, in eval mode, in float32 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("own_forward", [True, False])
@pytest.mark.parametrize("source", ["transformers", "s3prl"])
def test_train_mode_changes_nothing(shelf, source, own_forward):
    teacher = from_source(source, shelf, "hubert", False, own_forward=own_forward)
    before, _ = padded_states(teacher, batch(), LENGTHS)
    teacher.module.train()
    after, _ = padded_states(teacher, batch(), LENGTHS)
    assert difference(before, after) == 0
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert not any(state.requires_grad for state in after)
    assert not isinstance(teacher, nn.Module)


def test_nothing_masks_or_drops_layers(shelf):
    saved = json.loads((shelf / "hubert-False" / "config.json").read_text())
    assert saved["mask_time_prob"] > 0
    config = from_transformers(shelf / "hubert-False").module.config
    assert config.mask_time_prob == config.mask_feature_prob == config.layerdrop == 0


def test_half_precision_folders_run_in_single_precision_unless_autocast(copy):
    tiny_model("hubert").half().save_pretrained(copy)
    teacher = from_transformers(copy)
    assert {parameter.dtype for parameter in teacher.module.parameters()} == {torch.float32}
    plain, _ = padded_states(teacher, batch(), LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = padded_states(teacher, batch(), LENGTHS)
    assert {state.dtype for state in plain + cast} == {torch.float32}
    assert 0 < difference(plain, cast) < 0.5
    assert {value.dtype for value in teacher.encoder_state().values()} == {torch.float32}


# --- input normalisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("large", "file", "option", "normalizes"),
    [
        (False, None, None, False),
        (True, None, None, True),
        (False, True, None, False),
        (True, False, None, False),
        (True, None, False, False),
        (False, None, True, True),
    ],
)
def test_transformers_input_normalization(shelf, tmp_path, large, file, option, normalizes):
    folder = shutil.copytree(shelf / f"hubert-{large}", tmp_path / "folder")
    if file is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": file}))
    teacher = from_transformers(folder, normalize_waveform=option)
    check_normalization(teacher, normalizes)
    assert ("normalised" in teacher.describe()) is normalizes


@pytest.mark.parametrize("kind", UPSTREAMS)
@pytest.mark.parametrize(
    ("large", "option", "normalizes"), [(True, None, True), (True, False, False), (False, True, True)]
)
def test_s3prl_input_normalization(shelf, kind, large, option, normalizes):
    teacher = from_s3prl(UPSTREAMS[kind], shelf / f"{kind}-{large}.pt", normalize_waveform=option)
    check_normalization(teacher, normalizes)


def check_normalization(teacher: Teacher, normalizes: bool) -> None:
    """Looks at what reaches the conv stack."""
    model = getattr(teacher.module, "model", teacher.module)
    heard: list[Tensor] = []
    model.feature_extractor.register_forward_pre_hook(lambda module, args: heard.append(args[0]))
    waveform = speech_like(8000) + 0.3
    teacher.hidden_states(waveform[None], torch.tensor([8000]))
    wanted = F.layer_norm(waveform, waveform.shape) if normalizes else waveform
    torch.testing.assert_close(heard[0].flatten(), wanted, atol=1e-6, rtol=0)


def test_a_preprocessor_at_odds_with_the_architecture_is_mentioned(copy, caplog):
    (copy / "processor_config.json").write_text(json.dumps({"feature_extractor": {"do_normalize": True}}))
    with caplog.at_level(logging.INFO):
        teacher = from_transformers(copy)
    assert "normalize_waveform: true" in caplog.text
    check_normalization(teacher, False)


# --- where teachers come from -----------------------------------------------------------------------------------------


def test_a_folder_wins_over_a_hub_id(shelf, tmp_path, monkeypatch):
    shutil.copytree(shelf / "wavlm-False", tmp_path / "microsoft" / "wavlm-base")
    monkeypatch.chdir(tmp_path)
    assert from_transformers(Path("microsoft/wavlm-base")).hidden_size == 24


def test_the_cache_is_enough_without_network(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    repository = tmp_path / "models--someone--model"
    shutil.copytree(shelf / "hubert-True", repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    teacher = from_transformers(Path("someone/model"))
    assert teacher.describe().startswith("t: someone/model, layers 0 1 2 3 of 3, width 24")


def test_mini_teachers_come_from_the_package(shelf, monkeypatch):
    asked = []
    monkeypatch.setattr(assets, "folder", lambda name: asked.append(name) or shelf / "hubert-False")
    names = ("hubert", "robust_hubert")
    entries = tuple(TeacherConfig(name=name, mini=name, layers=(1, 2), weight=2.0) for name in names)
    teachers = load_teachers(DistillConfig(teachers=entries))
    assert asked == ["teachers/hubert", "teachers/robust_hubert"]
    assert [(teacher.name, teacher.layers, teacher.weight) for teacher in teachers] == [
        ("hubert", (1, 2), 2.0),
        ("robust_hubert", (1, 2), 2.0),
    ]
    assert (
        teachers[0].describe().startswith("hubert: mini hubert, layers 1 2 of 3 (2 computed), width 24, 18,248 param")
    )


# --- bad input --------------------------------------------------------------------------------------------------------


def _bert(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _stride_160(folder: Path) -> None:
    tiny_model("hubert", conv_stride=(5, 2, 2, 2, 2, 2, 1)).save_pretrained(folder)


def _squeezed(folder: Path) -> None:
    from transformers import SEWConfig, SEWModel

    sizes = {"conv_dim": (8,) * 7, "conv_kernel": KERNELS, "conv_stride": STRIDES, "hidden_size": 16}
    SEWModel(
        SEWConfig(**sizes, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, num_conv_pos_embeddings=8)
    ).save_pretrained(folder)


def _truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def _incomplete(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layers.1.final_layer_norm.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _wrong_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"encoder.layer_norm.bias": torch.zeros(3)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_bert, "is a bert model, not a speech encoder"),
        (_no_config, "no config.json"),
        (_broken_config, "cannot be loaded.*config.json: not valid JSON"),
        (_stride_160, "160 samples a frame; a teacher needs 320"),
        (_squeezed, "24 frames for a second.*needs 50"),
        (_truncated, "cannot be loaded as a transformers model.*incomplete: 5,000 of 6,944 bytes are there"),
        (_incomplete, r"missing or of another shape.*encoder\.layers\.1\.final_layer_norm\.bias"),
        (_wrong_shape, r"missing or of another shape.*encoder\.layer_norm\.bias"),
    ],
)
def test_bad_folders(copy, spoil: Callable[[Path], None], message):
    spoil(copy)
    with pytest.raises(UserError, match=rf"^teacher 't': {copy}.*{message}") as raised:
        from_transformers(copy)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("layer_heads", [10**6, 0, 1], "layer_heads times head_dim is 6000000, but none of the weights has that size"),
        ("layer_intermediate_sizes", [10**6, 3, 0], "layer_intermediate_sizes is 1000000, but none of the weights"),
        ("layer_heads", [1, 0, 1], r"missing or of another shape.*encoder\.layers\.0\.attention"),
        ("layer_heads", [1], "cannot be loaded as a transformers model.*has no entry for each of 3 layers"),
    ],
)
def test_pruned_folders_whose_sizes_are_not_those_of_the_weights(tmp_path, key, values, message):
    save_student(tmp_path / "student", pruned_student("hubert"))
    file = tmp_path / "student" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: values}))
    with pytest.raises(UserError, match=rf"^teacher 't': .*student.*{message}"):
        from_transformers(tmp_path / "student")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"s3prl": "hubert_bas"}, "s3prl has no upstream 'hubert_bas'; did you mean hubert_base"),
        ({"s3prl": "hubert_local"}, "hubert_local needs the path of a checkpoint: add 'ckpt: PATH'"),
        ({"s3prl": "hubert_local", "ckpt": "nowhere.pt"}, "ckpt nowhere.pt does not exist"),
        (
            {"s3prl": "hubert_local", "ckpt": "{}/wavlm-False.pt"},
            "wavlm-False.pt: a WavLM checkpoint .as a teacher: s3prl: wavlm_local",
        ),
        (
            {"s3prl": "wavlm_local", "ckpt": "{}/hubert-False.pt"},
            "hubert-False.pt: an s3prl-converted HuBERT .*hubert_local",
        ),
        ({"s3prl": "hubert_base", "ckpt": "{}/hubert-False.pt"}, "brings its own checkpoint; leave ckpt out"),
        ({"s3prl": "hf_hubert_custom", "ckpt": "{}/hubert-False"}, "use 'transformers: .*hubert-False' instead"),
        ({"s3prl": "hf_hubert_custom", "ckpt": "no/body"}, "ckpt no/body is no local folder.*hub"),
        ({"s3prl": "fbank"}, "160 samples a frame; a teacher needs 320"),
        ({"transformers": "a/b/c"}, "a/b/c is no folder that exists"),
        ({"transformers": "no/body"}, "no/body is no local folder and not in the cache.*local folder instead"),
        ({"mini": "huber"}, "no mini teacher 'huber'; did you mean 'hubert'"),
    ],
)
def test_bad_sources(shelf, entry, message):
    entry = {key: value.format(shelf) for key, value in entry.items()}
    with pytest.raises(UserError, match=f"^teacher 't': .*{message}") as raised:
        load_teacher(TeacherConfig(name="t", layers=(1,), **entry))
    assert "\n" not in str(raised.value)


def test_missing_layers_are_named(shelf):
    default = TeacherConfig(name="hubert", transformers=str(shelf / "hubert-False"))
    with pytest.raises(UserError, match=r"teacher 'hubert': layer 12 of 3; .*hidden states 0 to 3.*'layers'"):
        load_teacher(default)
    units = replace(default, layers=(1,), units=UnitsConfig(layer=9))
    with pytest.raises(
        UserError, match=r"teacher 'hubert': layer 9 of 3; .*, name the one to cluster under 'units.lay"
    ):
        load_teacher(units)
    with pytest.raises(UserError, match="layer 4 of 3"):
        from_s3prl("wavlm_local", shelf / "wavlm-False.pt", layers=(1, 4))


@pytest.mark.parametrize(
    ("failure", "message"),
    [("unreachable", "hub cannot be reached"), ("unknown", "on the hub there is none, or a private one")],
)
def test_hub_failures_are_one_quick_line(monkeypatch, failure, message):
    from huggingface_hub.errors import RepositoryNotFoundError

    errors = {
        "unreachable": ConnectionError("Name or service not known"),
        "unknown": RepositoryNotFoundError.__new__(RepositoryNotFoundError, "404"),  # needs no HTTP library's response
    }

    def model_info(self, repo_id, timeout):
        assert timeout <= 5
        raise errors[failure]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(UserError, match=rf"no/body is no local folder.*{message}") as raised:
        from_transformers(Path("no/body"))
    assert "\n" not in str(raised.value)


def test_s3prl_download_failures_name_the_local_way(shelf, monkeypatch):
    from s3prl_ekd.s3prl_compat import patches

    patches.apply()
    import s3prl.upstream.hubert.hubconf as hubconf

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(hubconf, "_urls_to_filepaths", unreachable)
    with pytest.raises(UserError, match=r"hubert_base_robust_mgr could not be downloaded.*s3prl: hubert_local"):
        from_s3prl("hubert_base_robust_mgr")


def test_what_cannot_initialise_a_student_says_so(tmp_path):
    from transformers import Data2VecAudioConfig, Data2VecAudioModel

    config = Data2VecAudioConfig(
        conv_dim=(16,) * 7,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        num_conv_pos_embeddings=2,
        conv_pos_kernel_size=5,
        num_conv_pos_embedding_groups=4,
    )
    Data2VecAudioModel(config).save_pretrained(tmp_path)
    teacher = from_transformers(tmp_path)
    states, _ = padded_states(teacher, batch(), LENGTHS)
    assert states[-1].shape == (4, 49, 24)
    with pytest.raises(UserError, match=r"cannot initialise a student.*initialize_from: null"):
        teacher.encoder_state()
    with pytest.raises(UserError, match="cannot initialise"):
        Scripted().encoder_state()
