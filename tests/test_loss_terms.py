"""Every term of the loss against a formula written by hand, utterance by utterance, and what holds for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_models import TINY, FakeTeacher, batch_of, speech_like

from s3prl_ekd.config.recipe import LOSS_TERMS, DistillConfig, LossTermConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.loss import Comparison
from s3prl_ekd.network.frames import Packing

FRAMES = (6, 3, 1)
TERMS = [
    {"kind": "l1"},
    {"kind": "l2"},
    {"kind": "cosine"},
    {"kind": "cosine", "form": "raw"},
    {"kind": "kl", "temperature": 2.5},
    {"kind": "gram"},
    {"kind": "correlation"},
]


def name_of(term):
    return "-".join(map(str, term.values()))


def sums(term, prediction, target, frames=FRAMES):
    packing = Packing(torch.tensor(frames), prediction.device)
    settings = LossTermConfig.from_mapping(term)
    return LOSS_TERMS.load(settings.kind)(Comparison(prediction, target, packing, settings))


def rows(seed):
    return torch.randn(sum(FRAMES), 4, generator=torch.Generator().manual_seed(seed))


# ---- by hand, in numpy and double precision: an utterance's mean over its frames, or what counts as that


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def cosines(p, t):
    return (p * t).sum(-1) / np.linalg.norm(p, axis=-1) / np.linalg.norm(t, axis=-1)


def divergence(p, t, temperature=2.5):
    q, r = softmax(p / temperature), softmax(t / temperature)
    return (temperature**2 * (r * np.log(r / q)).sum(-1)).mean()


def similar_frames(p, t):
    frames, size = p.shape
    pairs = [(i, j) for i in range(frames) for j in range(frames)]
    return np.mean([((p[i] @ p[j] - t[i] @ t[j]) / size) ** 2 for i, j in pairs])


def uncorrelated(p, t):
    if len(p) == 1:  # every feature is constant
        return 0.0
    return 1 - np.mean([np.corrcoef(p[:, d], t[:, d])[0, 1] for d in range(p.shape[1])])


BY_HAND = {
    "l1": lambda p, t: np.abs(p - t).mean(),
    "l2": lambda p, t: ((p - t) ** 2).mean(),
    "cosine": lambda p, t: np.log1p(np.exp(-cosines(p, t))).mean(),
    "cosine-raw": lambda p, t: 1 - cosines(p, t).mean(),
    "kl-2.5": divergence,
    "gram": similar_frames,
    "correlation": uncorrelated,
}


@pytest.mark.parametrize("term", TERMS, ids=name_of)
def test_a_term_is_its_formula(term):
    prediction, target = rows(1), rows(2)
    found = sums(term, prediction, target)
    parts = [[x.double().numpy() for x in rows.split(FRAMES)] for rows in (prediction, target)]
    expected = sum(len(p) * BY_HAND[name_of(term)](p, t) for p, t in zip(*parts, strict=True))
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)
    logged = {
        "cosine": sum(cosines(p, t).sum() for p, t in zip(*parts, strict=True)),
        "correlation": sum(FRAMES) - expected,
    }
    assert found.logged.item() == pytest.approx(logged.get(term["kind"], expected), rel=1e-4)


@pytest.mark.parametrize("term", TERMS, ids=name_of)
def test_utterances_add_up(term):
    """So batches, accumulation and processes may split them as they like, and batch mates do not matter."""
    prediction, target = rows(1), rows(2)
    pairs = zip(prediction.split(FRAMES), target.split(FRAMES), FRAMES, strict=True)
    alone = sum(sums(term, p, t, [frames]).loss for p, t, frames in pairs)
    torch.testing.assert_close(sums(term, prediction, target).loss, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("term", TERMS, ids=name_of)
def test_no_gradient_where_the_prediction_is_the_target(term):
    """Of L1 the subgradient there is 0."""
    target = rows(2)
    prediction = target.clone().requires_grad_()
    sums(term, prediction, target).loss.backward()
    assert prediction.grad.abs().max() < 1e-6
    moved = (target + 0.1 * rows(3)).requires_grad_()
    sums(term, moved, target).loss.backward()
    assert moved.grad.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("term", "change"),
    [
        ({"kind": "cosine"}, lambda rows: 3 * rows),
        ({"kind": "cosine", "form": "raw"}, lambda rows: 3 * rows),
        ({"kind": "kl"}, lambda rows: rows + 5),
        ({"kind": "gram"}, lambda rows: rows.flip(-1)),
        ({"kind": "correlation"}, lambda rows: 3 * rows - 1),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_what_a_term_does_not_see(term, change):
    prediction, target = rows(1), rows(2)
    torch.testing.assert_close(sums(term, change(prediction), target), sums(term, prediction, target))


def test_constant_features():
    """One that the target does not move is matched; one that only the prediction does not move has correlation 0."""
    target = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    still = torch.tensor([[1.0, 0.3], [2.0, 0.3], [5.0, 0.3]], requires_grad=True)
    found = sums({"kind": "correlation"}, still, target, [3])
    assert found.loss.item() == pytest.approx(3 * 0.5, rel=1e-5)
    found.loss.backward()
    assert still.grad.isfinite().all()
    assert still.grad[:, 0].abs().max() == 0
    assert still.grad[:, 1].abs().max() > 0


# ---- in a Distiller

SEVERAL = [{"kind": "l2"}, {"kind": "cosine", "form": "raw"}, {"kind": "gram", "weight": 0.5}, {"kind": "correlation"}]


def make(losses=SEVERAL, padded=False) -> Distiller:
    student = {**TINY, "hidden_dropout": 0, "attention_dropout": 0, "activation_dropout": 0}
    entry = {"name": "fake", "transformers": "unused", "layers": [1, 2]}
    objective = {"losses": losses, "loss_on_padding": padded}
    torch.manual_seed(1)
    config = DistillConfig.from_mapping({"student": student, "teachers": [entry], "objective": objective})
    return Distiller(config, [FakeTeacher(padded=padded)])


def test_parts_of_a_batch_make_its_loss(utterances):
    """As accumulation and processes take it: each part's sum, divided by the frames of all."""
    distiller = make()
    whole = distiller(batch_of(*utterances), details=True)
    parts = [distiller(batch_of(u), total_frames=whole.frames).loss for u in utterances]
    torch.testing.assert_close(sum(parts), whole.loss, rtol=1e-5, atol=1e-6)
    assert {"l2/fake/1", "cosine/fake/1", "gram/fake/2", "correlation/fake/2"} < whole.metrics.keys()


@pytest.mark.parametrize("padded", [False, True])
def test_padding_counts_only_where_it_is_asked_for(padded):
    """Then an utterance has all frames of the batch."""
    distiller = make(padded=padded)
    batch = batch_of(speech_like(8000), speech_like(6000, 1))
    output = distiller(batch)
    frames = [24, 24] if padded else [24, 18]
    assert output.frames == sum(frames)
    predictions = distiller.heads(distiller.student(batch.clean, batch.lengths, padded=padded).tapped)
    wanted = distiller.teachers[0].hidden_states(batch.clean, batch.lengths).rows
    expected = 0.0
    for prediction, target in zip(predictions, wanted, strict=True):
        for term in SEVERAL:
            one = {key: value for key, value in term.items() if key != "weight"}
            expected += term.get("weight", 1.0) * sums(one, prediction, target, frames).loss / sum(frames) / 2
    torch.testing.assert_close(output.loss, expected)


def test_the_list_of_todays_two_is_the_loss_without_a_list():
    batch = batch_of(speech_like(8000))
    assert torch.equal(make([{"kind": "l1"}, {"kind": "cosine"}])(batch).loss, make([])(batch).loss)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"losses": [{"kind": "l1", "form": "raw"}]}, r"objective\.losses: form is a setting of cosine, not of l1"),
        ({"losses": [{"kind": "l1", "temperature": 1.0}]}, "temperature is a setting of kl, not of l1"),
        ({"losses": [{"kind": "l1"}, {"kind": "l1"}]}, "a kind is named twice, found l1, l1"),
        ({"losses": [{"kind": "mse"}]}, r"objective\.losses\[0\]\.kind: unknown value 'mse'"),
        ({"losses": [{"kind": "l1", "weight": 0}]}, "nothing compares the hidden states"),
        ({"losses": [{"kind": "l1"}], "cosine_weight": 2}, "cosine_weight is for the loss without a list"),
        ({"losses": [{"kind": "l1"}, {"kind": "kl"}]}, "kl compares units, and no teacher has them"),
        ({"losses": [{"kind": "kl"}]}, "nothing compares the hidden states"),
    ],
)
def test_bad_lists_are_refused(objective, message):
    entry = {"name": "a", "mini": "hubert", "layers": [1, 2]}
    with pytest.raises(UserError, match=message):
        DistillConfig.from_mapping({"teachers": [entry], "objective": objective})


def test_gram_over_cached_targets_is_refused():
    recipe = {
        "teachers": [{"name": "a", "mini": "hubert", "layers": [1, 2]}],
        "objective": {"losses": [{"kind": "gram"}]},
        "data": {"cuts": ["train"]},
        "output": "run",
    }
    RunConfig.from_mapping(recipe)
    with pytest.raises(UserError, match=r"gram compares frames .* let the teachers run"):
        RunConfig.from_mapping({**recipe, "targets": {"cache": "cache"}})
