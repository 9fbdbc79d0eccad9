"""Units and principal components, against scikit-learn and formulas on all frames at once."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA

from s3prl_ekd.calibration import fits, speech
from s3prl_ekd.calibration.find import find
from s3prl_ekd.config.recipe import UnitsConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.targets import slot_states
from s3prl_ekd.teachers import load_teacher

KL = {"objective": {"losses": [{"kind": "l1"}, {"kind": "kl"}]}}


def rows(frames=300, width=6):
    """Far from zero mean, each feature with another variance."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(width, width, generator=generator)
    return torch.randn(frames, width, generator=generator) * torch.arange(1, width + 1) @ mixing + 20


def moments(values):
    summed = fits.Moments(values.shape[1])
    for part in values.split([100, 1, len(values) - 101]):
        summed.add(part)
    return summed


def test_components_are_those_of_scikit_learn():
    values = rows()
    found = fits.principal_components(moments(values), 4, "a")
    theirs = PCA(4, svd_solver="full").fit(values.double().numpy())
    directions = torch.from_numpy(theirs.components_.T)  # (D, P)
    signs = (directions * found.components).sum(dim=0).sign()
    torch.testing.assert_close(found.components.double(), directions * signs, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.mean.double(), torch.from_numpy(theirs.mean_), rtol=1e-6, atol=0)
    expected = torch.from_numpy(theirs.transform(values.double().numpy())) * signs
    torch.testing.assert_close(found.project(values).double(), expected, rtol=0, atol=1e-3)
    assert found.components.gather(0, found.components.abs().argmax(dim=0, keepdim=True)).min() > 0


def test_components_that_there_cannot_be_are_refused():
    with pytest.raises(UserError, match="principal_components is 7, but its layers have 6 features"):
        fits.principal_components(moments(rows()), 7, "a")
    few = fits.Moments(6)
    few.add(rows()[:5])
    assert fits.principal_components(few, 4, "a").components.shape == (6, 4)
    with pytest.raises(UserError, match="5 principal components need more frames than that, and there are 5"):
        fits.principal_components(few, 5, "a")
    few.add(torch.full((1, 6), torch.nan))
    with pytest.raises(UserError, match="not finite"):
        fits.principal_components(few, 2, "a")


def test_units_are_the_clouds_of_frames():
    """Scale: the mean squared distance over frames and centres."""
    means = 50 * torch.eye(5, 8)
    labels = torch.arange(400) % 5
    values = means[labels] + torch.randn(400, 8)
    found = fits.units(values, UnitsConfig(count=5, layer=1), 0, "a")
    distances = (values[:, None] - found.centres).square().sum(dim=-1)
    nearest = distances.argmin(dim=-1)
    assert len({(label, unit) for label, unit in zip(labels.tolist(), nearest.tolist(), strict=True)}) == 5
    assert found.scale == pytest.approx(float(distances.mean()), rel=1e-4)
    again = fits.units(values, UnitsConfig(count=5, layer=1), 0, "a")
    assert torch.equal(again.centres, found.centres)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (torch.randn(9, 4), r"units\.count is 10, but there are 9 frames.*units\.utterances \(now 64\)"),
        (torch.ones(30, 4), "layer 3 is the same for all frames"),
        (torch.full((30, 4), torch.inf), "not finite"),
    ],
)
def test_units_that_there_cannot_be_are_refused(values, says):
    with pytest.raises(UserError, match=says):
        fits.units(values, UnitsConfig(count=10, layer=3), 0, "a")


@pytest.mark.parametrize("layers", [[1, [0, 3]], {"clusters": 2, "utterances": 2}])
def test_they_are_those_of_the_recipes_layers_and_slots(layers, recipe):
    """Components of each slot, normalised as its target will be; units of the layer as it is."""
    units = {"count": 4, "layer": 2, "utterances": 3}
    config = recipe(layers, teacher={"units": units, "principal_components": 5, "layer_norm_targets": True}, **KL)
    found = find(config)
    (entry,) = found.resolve(config).teachers
    spoken = list(speech.hidden_states(config, load_teacher(entry), 64, ""))
    assert len(spoken) == 12
    frames = torch.cat([states[2] for states in spoken[:3]])
    expected = fits.units(frames, entry.units, config.seed, "a")
    torch.testing.assert_close(found.fits.units["teacher0"].centres, expected.centres)
    slots = [torch.cat(slot) for slot in zip(*(slot_states(entry, states) for states in spoken), strict=True)]
    for slot, fit in zip(slots, found.fits.components["teacher0"], strict=True):
        theirs = PCA(5, svd_solver="full").fit(slot.double().numpy())
        kept = fit.project(slot).double().var(dim=0, correction=1)
        torch.testing.assert_close(kept, torch.from_numpy(theirs.explained_variance_), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layers", [[1, 3], {"clusters": 2, "utterances": 2}])
@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ({"units": {"count": 4, "layer": 9}}, "layer 9 of 5"),
        ({"units": {"count": 9000, "layer": 1}}, "units.count is 9000, but there are"),
    ],
)
def test_what_does_not_fit_is_refused(layers, teacher, says, recipe):
    with pytest.raises(UserError, match=says):
        find(recipe(layers, teacher=teacher, **KL))


def test_more_components_than_features_are_refused(recipe):
    with pytest.raises(UserError, match="principal_components is 99, but its layers have 24 features"):
        find(recipe([1, 3], teacher={"principal_components": 99}))
