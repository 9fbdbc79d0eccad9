"""Where it all meets: the loss of a batch, who hears what, what is trained and saved."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers_models import TINY, FakeTeacher, batch_of, speech_like

from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.distiller import Distiller, teacher_states
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.model import Student


def recipe(*teachers, **changes):
    entries = [{"name": t.name, "transformers": "unused", "layers": list(t.layers)} for t in teachers]
    student = {**TINY, "hidden_dropout": 0, "attention_dropout": 0, "activation_dropout": 0}
    return DistillConfig.from_mapping({"student": student, "teachers": entries, **changes})


def make(*teachers, **changes):
    torch.manual_seed(1)
    return Distiller(recipe(*teachers, **changes), teachers)


def distilhubert_loss(predictions, targets):
    """As in s3prl's distiller: means over everything, heads stacked; (B, H, F, D) each."""
    cosine = F.cosine_similarity(predictions, targets, dim=-1)
    return (predictions - targets).abs().mean() - F.logsigmoid(cosine).mean()


def test_one_teacher_is_distilhubert():
    teacher = FakeTeacher()
    distiller = make(teacher)
    batch = batch_of(speech_like(16000))
    predictions = distiller.heads(distiller.student(batch.clean).hidden_states)
    targets = teacher.hidden_states(batch.clean, batch.lengths).hidden_states
    expected = distilhubert_loss(torch.stack(predictions, 1), torch.stack(targets, 1))
    torch.testing.assert_close(distiller(batch).loss, expected)


def test_padding_does_not_count(utterances):
    """The loss of a batch is the mean over its real frames: each utterance's own loss weighted by its frames."""
    distiller = make(FakeTeacher())
    output = distiller(batch_of(*utterances))
    alone = [distiller(batch_of(u)) for u in utterances]
    assert output.frames == sum(o.frames for o in alone)
    expected = sum(o.loss * o.frames for o in alone) / output.frames
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)


def test_total_frames_spans_several_batches(utterances):
    distiller = make(FakeTeacher())
    whole = distiller(batch_of(*utterances))
    parts = [distiller(batch_of(u), total_frames=whole.frames).loss for u in utterances]
    torch.testing.assert_close(sum(parts), whole.loss, rtol=1e-5, atol=1e-6)


def test_loss_on_padding_is_s3prls_mean(utterances):
    teacher = FakeTeacher(padded=True)
    distiller = make(teacher, objective={"loss_on_padding": True})
    batch = batch_of(*utterances)
    student = distiller.student(batch.clean, batch.lengths, padded=True)
    predictions = torch.stack(distiller.heads(student.hidden_states), 1)
    targets = teacher.hidden_states(batch.clean, batch.lengths).hidden_states
    expected = distilhubert_loss(predictions, torch.stack(targets, 1))
    torch.testing.assert_close(distiller(batch).loss, expected)
    assert abs(make(FakeTeacher())(batch).loss - expected) > 1e-3
    with pytest.raises(ValueError, match="loss_on_padding is True: the teachers must be loaded with padded=True"):
        make(FakeTeacher(), objective={"loss_on_padding": True})


@pytest.mark.parametrize("aggregation", ["layerwise-average", "separate-heads"])
def test_another_teacher_does_not_change_the_scale(aggregation):
    """Twice the same teacher gives the loss of one, and so the same step."""
    batch = batch_of(speech_like(16000))
    one = make(FakeTeacher("a"), objective={"aggregation": aggregation})
    two = make(FakeTeacher("a"), FakeTeacher("b"), objective={"aggregation": aggregation})
    two.student.load_state_dict(one.student.state_dict())
    for i, head in enumerate(two.heads):
        head.load_state_dict(one.heads[i % 2].state_dict())
    torch.testing.assert_close(two(batch).loss, one(batch).loss)


@pytest.mark.parametrize(
    ("aggregation", "heads", "metrics"),
    [
        ("layerwise-average", 2, {"l1/average/1", "cosine/average/2", "l1/a/1", "cosine/bb/2", "magnitude/bb/1"}),
        ("layerwise-concatenation", 2, {"l1/concatenation/1", "cosine/concatenation/2", "l1/a/1", "cosine/bb/2"}),
        ("separate-heads", 4, {"l1/a/1", "l1/a/2", "cosine/bb/1", "cosine/bb/2", "magnitude/a/2"}),
    ],
)
def test_aggregations_train_and_tell(aggregation, heads, metrics):
    distiller = make(FakeTeacher("a"), FakeTeacher("bb"), objective={"aggregation": aggregation})
    batch = batch_of(speech_like(8000), speech_like(6000, 1))
    assert len(distiller.heads) == heads
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=3e-3)
    first = distiller(batch, details=True)
    assert metrics < set(first.metrics)
    assert set(distiller(batch).metrics) == {"loss"}
    assert all(value.dim() == 0 and not value.requires_grad for value in first.metrics.values())
    for _ in range(15):
        optimizer.zero_grad()
        distiller(batch).loss.backward()
        optimizer.step()
    assert distiller(batch).loss < 0.97 * first.loss


def test_one_frame_is_cropped_and_two_are_an_error():
    batch = batch_of(speech_like(8000), speech_like(6000, 1))
    exact = make(FakeTeacher("t"))(batch)
    longer = make(FakeTeacher("t", surplus=1))(batch)
    torch.testing.assert_close(longer.loss, exact.loss)
    assert longer.frames == exact.frames
    with pytest.raises(ValueError, match="differ by 2 frames"):
        make(FakeTeacher("t", surplus=2))(batch)


@pytest.mark.parametrize("teacher_input", ["clean", "distorted"])
def test_who_hears_what(teacher_input):
    teacher = FakeTeacher()
    distiller = make(teacher, distortion={"teacher_input": teacher_input})
    distorted = torch.randn(1, 8000)
    batch = batch_of(speech_like(8000), distorted=distorted)
    heard = []
    distiller.student.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[0]))
    distiller(batch)
    assert heard[0] is distorted
    assert teacher.heard is (distorted if teacher_input == "distorted" else batch.clean)


def test_layer_norm_targets():
    teacher = FakeTeacher()
    entry = {"name": "fake", "transformers": "unused", "layers": [1, 2], "layer_norm_targets": True}
    config = DistillConfig.from_mapping({"student": TINY, "teachers": [entry]})
    state = teacher_states(config, [teacher], batch_of(speech_like(8000)))[0].rows[0]
    assert state.mean(-1).abs().max() < 1e-5
    assert (state.std(-1, correction=0) - 1).abs().max() < 1e-2


def test_layerwise_average_of_unequal_widths_is_refused():
    with pytest.raises(UserError, match="equal width"):
        make(FakeTeacher("a"), FakeTeacher("wide", size=32), objective={"aggregation": "layerwise-average"})


@pytest.fixture(scope="module")
def tiny_hubert(tmp_path_factory):
    """A folder with a random transformers HuBERT of the tiny student's sizes, four layers."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    sizes = {key: value for key, value in TINY.items() if key != "num_hidden_layers"}
    model = HubertModel(HubertConfig(**sizes, num_hidden_layers=4, hidden_dropout=0.3, attention_dropout=0.3))
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    return folder


def test_teachers_stay_in_eval_and_out_of_training(tiny_hubert):
    """Switching everything to train mode changes no target; teachers are no parameters, no state, no modules."""
    from s3prl_ekd.teachers import load_teachers

    entry = {"name": "hubert", "transformers": str(tiny_hubert), "layers": [2, 4]}
    student = {**TINY, "initialize_from": "hubert"}
    config = DistillConfig.from_mapping({"student": student, "teachers": [entry]})
    distiller = Distiller(config, load_teachers(config))
    batch = batch_of(speech_like(8000))
    before = teacher_states(config, distiller.teachers, batch)[0].rows[1]
    distiller.train()
    distiller.teachers[0].module.train()  # as if somebody had reached for it
    assert torch.equal(teacher_states(config, distiller.teachers, batch)[0].rows[1], before)
    assert not distiller.teachers[0].module.training
    assert not before.requires_grad
    count = sum(p.numel() for p in Student(config.student).parameters()) + sum(
        p.numel() for p in distiller.heads.parameters()
    )
    assert sum(p.numel() for p in distiller.parameters()) == count
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "heads"}
    teacher = distiller.teachers[0].encoder_state()
    assert torch.equal(
        distiller.student.encoder.layers[1].attention.q_proj.weight, teacher["encoder.layers.1.attention.q_proj.weight"]
    )
