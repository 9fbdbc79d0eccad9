"""Targets beside hidden states: differences between teachers, units, principal components; and learnt weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_models import TINY, FakeTeacher, batch_of, speech_like
from safetensors.torch import load_file, save_file

from s3prl_ekd.config.recipe import DistillConfig, UnitsConfig
from s3prl_ekd.config.training import RunConfig
from s3prl_ekd.distiller import Distiller, teacher_states
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.student.folder import load_student_and_heads
from s3prl_ekd.target_cache.settings import check_cacheable, describe
from s3prl_ekd.targets import ComponentFit, Fits, UnitFit
from s3prl_ekd.training.optim import parameter_groups
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

STUDENT = {**TINY, "hidden_dropout": 0, "attention_dropout": 0, "activation_dropout": 0}
KL = [{"kind": "l1"}, {"kind": "kl"}]


def recipe(*teachers, **objective) -> DistillConfig:
    entries = [{"transformers": "unused", "layers": [1, 2], **teacher} for teacher in teachers]
    return DistillConfig.from_mapping({"student": STUDENT, "teachers": entries, "objective": objective})


def make(config: DistillConfig, fits: Fits | None = None) -> Distiller:
    torch.manual_seed(1)
    return Distiller(config, [FakeTeacher(one.name, one.computed_layers) for one in config.teachers], fits)


def batch():
    return batch_of(speech_like(8000), speech_like(6000, 1))


def hidden(distiller, given):
    return [teacher.hidden_states(given.clean, given.lengths).rows for teacher in distiller.teachers]


# ---- differences between teachers


def test_differences_are_from_the_weighted_mean():
    distiller = make(recipe({"name": "a"}, {"name": "bb", "weight": 3.0}, aggregation="teacher-differences"))
    assert [(target.name, target.weight) for target in distiller.targets] == [
        ("average/1", 1 / 4),
        ("average/2", 1 / 4),
        ("a-average/1", 1 / 16),
        ("bb-average/1", 3 / 16),
        ("a-average/2", 1 / 16),
        ("bb-average/2", 3 / 16),
    ]
    given = hidden(distiller, batch())
    found = distiller.aggregator(given)
    (a1, a2), (b1, b2) = given
    for mean, a, b, ours in ((a1 / 4 + 3 * b1 / 4, a1, b1, [0, 2, 3]), (a2 / 4 + 3 * b2 / 4, a2, b2, [1, 4, 5])):
        for index, wanted in zip(ours, (mean, a - mean, b - mean), strict=True):
            torch.testing.assert_close(found[index], wanted)
    parts = distiller.aggregator.states_of(found)
    for part, wanted in ((("a", "1"), a1), (("bb", "2"), b2)):
        torch.testing.assert_close(parts[part], wanted)
    metrics = distiller(batch(), details=True).metrics
    assert {"l1/average/1", "l1/a-average/2", "cosine/bb/1", "magnitude/a/2"} < metrics.keys()


def test_differences_need_equal_widths():
    config = recipe({"name": "a"}, {"name": "wide"}, aggregation="teacher-differences")
    with pytest.raises(UserError, match="teacher-differences needs teachers of equal width, found a 24, wide 32"):
        Distiller(config, [FakeTeacher("a"), FakeTeacher("wide", size=32)])


# ---- units and principal components

UNITS = {"count": 5, "layer": 3, "temperature": 2.0, "weight": 0.5}


def some_fits() -> Fits:
    generator = torch.Generator().manual_seed(3)
    unit = UnitFit(torch.randn(5, 24, generator=generator), 7.5)
    axes = [torch.linalg.qr(torch.randn(24, 24, generator=generator)).Q[:, :6] for _ in range(2)]
    slots = tuple(ComponentFit(torch.randn(24, generator=generator), one) for one in axes)
    return Fits(units={"a.b": unit}, components={"a.b": slots})


@pytest.mark.parametrize("aggregation", ["separate-heads", "layerwise-average"])
def test_units_and_components_by_hand(aggregation):
    entry = {"name": "a.b", "units": UNITS, "principal_components": 6, "layer_norm_targets": True}
    distiller = make(recipe(entry, losses=KL, aggregation=aggregation), some_fits())
    assert [(t.size, t.kind) for t in distiller.targets] == [(6, "states"), (6, "states"), (5, "units")]
    assert [target.weight for target in distiller.targets] == pytest.approx([0.4, 0.4, 0.2])
    given, fits = batch(), some_fits()
    (states,) = teacher_states(distiller.config, distiller.teachers, given, fits)
    first, second, third = hidden(distiller, given)[0]
    for found, rows, fit in zip(states.rows, (first, second), fits.components["a.b"], strict=False):
        normal = F.layer_norm(rows, rows.shape[-1:]) - fit.mean
        torch.testing.assert_close(found, normal @ fit.components, rtol=1e-4, atol=1e-5)
    rows, centres = third.double().numpy(), fits.units["a.b"].centres.double().numpy()  # as they are: not normalised
    distances = ((rows[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_allclose(states.rows[2].numpy(), -distances / 7.5 / 2.0, rtol=1e-4)

    output = distiller(given, details=True)
    predictions = distiller.heads(distiller.student(given.clean, given.lengths).tapped)
    wanted, q = states.rows[2].softmax(-1), predictions[2].log_softmax(-1)
    divergence = (wanted * (wanted.log() - q)).sum(-1).mean()
    distances = [(p - t).abs().mean() for p, t in zip(predictions[:2], states.rows[:2], strict=True)]
    torch.testing.assert_close(output.loss, 0.4 * sum(distances) + 0.2 * divergence, rtol=1e-4, atol=1e-6)
    assert "kl/a.b/units" in output.metrics
    assert not any(name.startswith("l1") and name.endswith("units") for name in output.metrics)


def test_fits_come_back_from_flat_tensors():
    fits = some_fits()
    state = fits.state()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    again = Fits.from_state(dict(sorted(state.items())))
    assert again.units["a.b"].scale == 7.5
    assert {name: tensor.tolist() for name, tensor in again.state().items()} == {
        name: tensor.tolist() for name, tensor in state.items()
    }
    assert fits.to(torch.device("cpu")) is fits
    assert Fits.from_state({}).state() == {}


def test_many_slots_come_back_in_their_order(tmp_path):
    """A file has slot 10 before slot 2."""
    fits = Fits(components={"a": tuple(ComponentFit(torch.full((3,), float(i)), torch.eye(3)) for i in range(12))})
    save_file(fits.state(), tmp_path / "fits.safetensors")
    again = Fits.from_state(load_file(tmp_path / "fits.safetensors"))
    assert [one.mean[0].item() for one in again.components["a"]] == list(range(12))


def test_scales_stay_numbers_on_every_device():
    """The device ``meta`` has no values that could be read back."""
    moved = some_fits().to(torch.device("meta"))
    assert moved.units["a.b"].scale == 7.5
    tensors = [moved.units["a.b"].centres, *(x for one in moved.components["a.b"] for x in (one.mean, one.components))]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.to(torch.device("meta")) is moved


def test_what_is_found_beforehand_is_needed():
    for entry, what in (({"units": UNITS}, "units"), ({"principal_components": 6}, "principal components")):
        losses = KL if "units" in entry else KL[:1]
        distiller = make(recipe({"name": "a", **entry}, losses=losses))
        with pytest.raises(UserError, match=f"teacher 'a': its {what} have not been found yet"):
            distiller(batch())


@pytest.mark.parametrize(
    ("entry", "objective", "message"),
    [
        ({"units": UNITS}, {}, "units are learnt by the loss term kl; name it under objective.losses"),
        ({}, {"losses": KL}, "kl compares units, and no teacher has them"),
        ({"units": {**UNITS, "count": 1}}, {"losses": KL}, r"units\.count: expected at least 2, found 1"),
        ({"principal_components": 0}, {}, "principal_components: expected at least 1"),
    ],
)
def test_bad_units_are_refused(entry, objective, message):
    with pytest.raises(UserError, match=message):
        recipe({"name": "a", **entry}, **objective)


@pytest.mark.parametrize("aggregation", ["layerwise-average", "teacher-differences"])
def test_components_of_several_teachers_are_not_averaged(aggregation):
    both = [{"name": name, "principal_components": 6} for name in ("a", "bb")]
    for entries in (both, [both[0], {"name": "bb"}]):
        with pytest.raises(UserError, match=f"{aggregation} would average them; use separate-heads or layerwise-conc"):
            recipe(*entries, aggregation=aggregation)
    assert recipe(both[0], aggregation="layerwise-average").teachers[0].principal_components == 6
    for other in ("separate-heads", "layerwise-concatenation"):
        assert recipe(*both, aggregation=other).objective.aggregation == other


def test_the_default_temperature_tells_units_apart():
    """Neither nearly uniform nor one unit alone, for frames as far from other centres as typical ones."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(100, 24, generator=generator)
    rows = centres[torch.randint(100, (500,), generator=generator)] + torch.randn(500, 24, generator=generator)
    scale = torch.cdist(rows, centres).square().mean().item()
    temperature = UnitsConfig(layer=3).temperature
    logits = UnitFit(centres, scale).logits(rows, temperature)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean() / np.log(100)
    assert 0.3 < entropy < 0.8


def test_more_components_than_features_are_refused():
    with pytest.raises(UserError, match="principal_components is 25, but its layers have 24 features"):
        make(recipe({"name": "a", "principal_components": 25}))


# ---- learnt weights


def learnt(aggregation, floor=0.1, **teacher):
    entries = [{"name": name, **teacher} for name in ("a", "bb")]
    return recipe(*entries, aggregation=aggregation, learnt_weights={"floor": floor})


@pytest.mark.parametrize("aggregation", ["layerwise-average", "separate-heads"])
def test_learnt_weights_begin_equal(aggregation):
    """With the loss of fixed ones, and all targets' weights adding up to 1."""
    ours = make(learnt(aggregation))
    fixed = make(recipe({"name": "a"}, {"name": "bb"}, aggregation=aggregation))
    assert ours.state_dict().keys() - fixed.state_dict().keys() == {"learnt_weights.logits"}
    torch.testing.assert_close(ours(batch()).loss, fixed(batch()).loss)
    with torch.no_grad():
        ours.learnt_weights.logits.normal_()
        assert float(sum(ours.aggregator.weights())) == pytest.approx(1)


def test_learnt_weights_by_hand():
    """In the average the mean moves, with separate heads the losses' shares do; a gradient reaches them."""
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    shares = 0.1 + 0.8 * logits.softmax(-1)
    given = batch()
    for aggregation in ("layerwise-average", "separate-heads"):
        distiller = make(learnt(aggregation))
        with torch.no_grad():
            distiller.learnt_weights.logits.copy_(logits)
        a, b = hidden(distiller, given)
        means = [shares[slot, 0] * a[slot] + shares[slot, 1] * b[slot] for slot in range(2)]
        output = distiller(given, details=True)
        targets, weights = (means, [0.5, 0.5]) if "average" in aggregation else ([*a, *b], (shares.T / 2).flatten())
        predictions = distiller.heads(distiller.student(given.clean, given.lengths).tapped)
        expected = sum(
            w * ((p - t).abs().mean() - F.logsigmoid(F.cosine_similarity(p, t, dim=-1)).mean())
            for w, p, t in zip(weights, predictions, targets, strict=True)
        )
        torch.testing.assert_close(output.loss, expected)
        output.loss.backward()
        assert distiller.learnt_weights.logits.grad.abs().min() > 1e-6
        told = {name: value.item() for name, value in output.metrics.items() if name.startswith("weight/")}
        names = [(f"weight/{name}/{slot + 1}", slot, k) for k, name in enumerate(("a", "bb")) for slot in range(2)]
        assert told == pytest.approx({name: shares[slot, k].item() for name, slot, k in names})


def test_learnt_weights_are_not_decayed():
    distiller = make(learnt("separate-heads"))
    decayed, free = parameter_groups(distiller, 0.1)
    assert any(parameter is distiller.learnt_weights.logits for parameter in free["params"])
    assert not any(parameter is distiller.learnt_weights.logits for parameter in decayed["params"])


def test_a_checkpoint_with_learnt_weights_is_read(tmp_path):
    distiller = make(learnt("separate-heads"))
    states = {RECIPE_KEY: distiller.config.to_mapping(), CHECKPOINT_KEY: distiller.state_dict()}
    torch.save(states, tmp_path / "states-1.ckpt")
    student, heads = load_student_and_heads(tmp_path / "states-1.ckpt")
    assert len(heads) == 4
    assert torch.equal(student.state_dict()["encoder.layer_norm.bias"], distiller.student.encoder.layer_norm.bias)


def test_learnt_weights_and_cached_targets():
    """An average on disk has fixed weights; separate targets have none."""
    separate = learnt("separate-heads")
    check_cacheable(separate)
    assert describe(separate) == describe(recipe({"name": "a"}, {"name": "bb"}))
    with pytest.raises(UserError, match="a cached layerwise-average is of fixed weights; use separate-heads, or let"):
        check_cacheable(learnt("layerwise-average"))


def test_the_weight_of_units_is_free_in_a_cache():
    described, heavier, other = (
        describe(recipe({"name": "a", "units": UNITS | change}, losses=KL))
        for change in ({}, {"weight": 2.0}, {"count": 6})
    )
    assert described == heavier
    assert described != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"aggregation": "layerwise-concatenation"}}, "layerwise-concatenation has no weights; use"),
        ({"objective": {"aggregation": "teacher-differences"}}, "differences from a fixed mean; use layerwise-average"),
        ({"teachers": ["a"]}, "weights of several teachers are learnt, and there is one"),
        ({"weight": 2.0}, "they begin equal; leave the teachers' weight out"),
        ({"layers": [1]}, r"the teachers name \[1, 2\] layers; name equally many"),
        ({"floor": 0.5}, "2 teachers of at least 0.5 each are 1 or more together; give less than 0.5"),
        ({"floor": 2}, r"learnt_weights\.floor: expected at most 1, found 2"),
    ],
)
def test_weights_that_cannot_be_learnt_are_refused(change, message):
    entries = [{"name": name} for name in change.get("teachers", ["a", "bb"])]
    entries[0] |= {key: value for key, value in change.items() if key in ("weight", "layers")}
    objective = {"learnt_weights": {"floor": change.get("floor", 0.1)}, **change.get("objective", {})}
    with pytest.raises(UserError, match=message):
        recipe(*entries, **objective)


def test_a_run_s_recipe_has_it_all():
    """The same checks on the Lightning road."""
    entry = {"name": "a", "mini": "hubert", "layers": [[1, 2], 3], "units": UNITS}
    mapping = {"teachers": [entry], "objective": {"losses": KL}, "data": {"cuts": ["x"]}, "output": "run"}
    config = RunConfig.from_mapping(mapping)
    assert config.teachers[0].computed_layers == (1, 2, 3)
    assert RunConfig.from_mapping(config.to_mapping()) == config
