"""Taps and heads as the recipe says: in the loss, in a folder, in a checkpoint, and in the upstream's predictions."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from helpers_models import TINY, FakeTeacher, batch_of, speech_like
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from s3prl_ekd.config.recipe import DistillConfig, StudentConfig
from s3prl_ekd.distiller import Distiller
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.checkpoint import RECIPE_KEY
from s3prl_ekd.student.folder import load_student_and_heads, save_student
from s3prl_ekd.student.heads import LinearHead, PredictionHeads, Tap, new_heads
from s3prl_ekd.targets import Target
from s3prl_ekd.upstream import ekd_student
from s3prl_ekd.weights.kinds import CHECKPOINT_KEY

DPHUBERT = {"kind": "linear", "initialize": "identity", "share": [[0], [1, 2]], "from": [0, 1, 2]}
STUDENT = {**TINY, "hidden_dropout": 0, "attention_dropout": 0, "activation_dropout": 0}


def recipe(heads, *layers, names="ab", aggregation="separate-heads", **student) -> DistillConfig:
    pairs = zip(names, layers or ([0, 1, 2],), strict=False)
    return DistillConfig.from_mapping(
        {
            "student": {**STUDENT, **student},
            "teachers": [{"name": name, "transformers": "unused", "layers": one} for name, one in pairs],
            "heads": heads,
            "objective": {"aggregation": aggregation, "cosine_weight": 0},
        }
    )


def make(config: DistillConfig, **teacher) -> Distiller:
    torch.manual_seed(1)
    return Distiller(config, [FakeTeacher(one.name, one.computed_layers, **teacher) for one in config.teachers])


def test_heads_of_dphubert():
    """Layer to layer, identity at the start, one head for several layers: the first loss is the states' distance."""
    distiller = make(recipe(DPHUBERT))
    heads = distiller.heads
    assert heads.taps == (Tap(0, "a/0"), Tap(1, "a/1"), Tap(2, "a/2"))
    assert heads.uses == (0, 1, 1)
    assert [type(head) for head in heads] == [LinearHead, LinearHead]
    batch = batch_of(speech_like(8000), speech_like(6000, 1))
    output = distiller.student(batch.clean, batch.lengths)
    states = distiller.student.encode(batch.clean, batch.lengths).states  # the encoder's own, 0 the first layer's input
    wanted = distiller.teachers[0].hidden_states(batch.clean, batch.lengths).rows
    expected = sum((state - target).abs().mean() for state, target in zip(states, wanted, strict=True)) / 3
    torch.testing.assert_close(distiller(batch).loss, expected)
    assert not torch.allclose(output.rows[0], states[0])  # ekd_student's 0 is the projected features


def test_a_shared_head_learns_from_all_its_targets():
    """Its gradient is the sum of what separate heads with the same weights get."""
    batch = batch_of(speech_like(8000))
    shared = make(recipe(DPHUBERT))
    apart = make(recipe({**DPHUBERT, "share": []}))
    assert len(apart.heads) == 3
    apart.student.load_state_dict(shared.student.state_dict())
    shared(batch).loss.backward()
    apart(batch).loss.backward()
    torch.testing.assert_close(shared.heads[1].weight.grad, apart.heads[1].weight.grad + apart.heads[2].weight.grad)


def test_the_same_layers_and_a_group_s_last():
    heads = make(recipe({"from": "same"}, [0, [1, 2]], [1, 2])).heads
    assert heads.taps == (Tap(0, "a/0"), Tap(2, "a/1-2"), Tap(1, "b/1"), Tap(2, "b/2"))
    average = recipe({"from": "same"}, [0, [1, 2]], [0, 2], aggregation="layerwise-average")
    assert make(average).heads.taps == (Tap(0, "average/0"), Tap(2, "average/1-2+2"))


def test_slots_of_each_teacher_share():
    heads = make(recipe({"share": [[0, 1]], "from": [1, 2]}, [1, 2], [1, 2])).heads
    assert heads.uses == (0, 0, 1, 1)
    assert len(heads) == 2


@pytest.mark.parametrize("heads", [DPHUBERT, {"kind": "linear"}, {"from": "same", "share": [[0, 2]]}])
def test_folder_and_checkpoint_keep_them(heads, tmp_path):
    config = recipe(heads)
    distiller = make(config).eval()
    with torch.no_grad():
        for parameter in distiller.heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = save_student(tmp_path / "student", distiller.student, distiller.heads, config)
    checkpoint = tmp_path / "states-1.ckpt"
    torch.save({RECIPE_KEY: config.to_mapping(), CHECKPOINT_KEY: distiller.state_dict()}, checkpoint)
    assert len({name.split(".")[0] for name in load_file(folder / "heads.safetensors")}) == len(distiller.heads)
    wave = speech_like(8000)
    output = distiller.student(wave[None])
    expected = [output.packing.unpack(rows) for rows in distiller.heads(output.tapped)]
    for where in (folder, checkpoint):
        loaded = load_student_and_heads(where)[1]
        assert (loaded.taps, loaded.uses, loaded.kind) == (
            distiller.heads.taps,
            distiller.heads.uses,
            distiller.heads.kind,
        )
        found = ekd_student(where, all_hidden_states=True)([wave])["all_hidden_states"][3:]
        for ours, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[:, : wanted.shape[1]], wanted)


def test_a_folder_says_which_head_a_tap_uses(tmp_path, tiny_student):
    heads = PredictionHeads(24, [8], taps=[Tap(1, "a/1"), Tap(2, "a/2")], uses=[0, 0], kind="linear")
    folder = save_student(tmp_path / "student", tiny_student, heads)
    with safe_open(folder / "heads.safetensors", "pt") as file:
        metadata = file.metadata()
    told = {key: json.loads(metadata[key]) for key in ("student_layers", "targets", "heads")}
    assert told == {"student_layers": [1, 2], "targets": ["a/1", "a/2"], "heads": [0, 0]}
    weights = load_file(folder / "heads.safetensors")
    for change in ({"heads": "[0, 1]"}, {"heads": "[true]"}, {"heads": "3"}, {"kind": "cubic"}, {"kind": "mlp"}):
        save_file(weights, folder / "heads.safetensors", metadata | change)
        with pytest.raises(UserError, match=r"heads\.safetensors: |prediction heads of kind mlp"):
            load_student_and_heads(folder)


def test_identity_leaves_units_alone():
    """They have widths of their own."""
    config = {
        "student": STUDENT,
        "teachers": [{"name": "a", "transformers": "unused", "layers": [1], "units": {"count": 5, "layer": 2}}],
        "heads": {"kind": "linear", "initialize": "identity", "from": "same"},
        "objective": {"losses": [{"kind": "l1"}, {"kind": "kl"}]},
    }
    heads = make(DistillConfig.from_mapping(config)).heads
    assert heads.taps == (Tap(1, "a/1"), Tap(2, "a/units"))
    assert torch.equal(heads[0].weight, torch.eye(24))
    assert heads[1].weight.shape == (5, 24)
    assert F.cosine_similarity(heads[1].weight[0], torch.eye(24)[0], dim=0) < 0.9


@pytest.mark.parametrize(
    ("heads", "layers", "options", "message"),
    [
        ({"from": "same"}, [[1, 3]], {}, "same needs layer 3 of the student, as of teacher 'a', and it has 2"),
        ({"from": "first"}, [[1, 2]], {}, r"heads\.from: unknown value 'first'"),
        ({"from": [1]}, [[1, 2]], {}, r"heads\.from: 1 layers for 2 slots; give one for each"),
        ({"from": [1, 2]}, [[1, 2], [1]], {}, r"heads\.from: 2 layers for 1 or 2 slots"),
        ({"from": [1, 3]}, [[1, 2]], {}, r"heads\.from: layer 3 of 2; the student's hidden states are 0 to 2"),
        (
            {"from": "same"},
            [[1, 2], [2, 1]],
            {"aggregation": "layerwise-average"},
            r"name different layers for one slot \(a \[1, 2\]; b \[2, 1\]\)",
        ),
        ({"initialize": "identity"}, [[1, 2]], {}, "identity needs heads.kind: linear"),
        ({"share": [[0, 1]]}, [[1, 2]], {}, r"slots \[0, 1\] are predicted by one head from one layer of the student"),
        ({"share": [[0, 1]], "from": [2, 2]}, [[1, 2]], {}, "would be equal; give them different layers"),
        ({"share": [[0, 1]], "from": "same"}, [[2, [1, 2]]], {}, "end with one layer of teacher 'a'"),
        ({"share": [[0, 0]]}, [[1, 2]], {}, r"heads\.share: a slot is named twice"),
        ({"share": [[]]}, [[1, 2]], {}, r"heads\.share: a group of slots is empty"),
        ({"from": [0, 1]}, [[1, 2]], {}, "nothing is predicted from a layer of the student above 1, so that of its 2"),
        (
            {"from": "same"},
            [[0, 1], [1, 0]],
            {},
            r"give it fewer layers \(num_hidden_layers; copy_layers of a copy\), or",
        ),
        ({"share": [[0], [2]]}, [[1, 2]], {}, r"heads\.share: slot 2 of 2; the slots are numbered from 0 to 1"),
        ({"kind": "conv"}, [[1, 2]], {}, r"heads\.kind: unknown value 'conv'"),
    ],
)
def test_bad_heads_are_refused_with_the_recipe(heads, layers, options, message):
    with pytest.raises(UserError, match=message):
        recipe(heads, *layers, **options)


def test_layers_that_nothing_would_train_are_refused_once_a_copy_is_made():
    """How many layers a copy has only its teacher tells."""
    mapping = recipe({"from": [0, 1]}, [0, 1], num_hidden_layers=1).to_mapping()
    config = DistillConfig.from_mapping(mapping | {"student": {"copy": "a"}})
    targets = [Target(f"a/{slot}", 24, 0.5, (("a", str(slot)),), slot=slot) for slot in (0, 1)]
    assert len(new_heads(config, targets, StudentConfig.from_mapping({**STUDENT, "num_hidden_layers": 1}))) == 2
    with pytest.raises(UserError, match="of its 2 layers those above would never be trained"):
        new_heads(config, targets, StudentConfig.from_mapping(STUDENT))


def test_units_are_predicted_from_the_last_layer_and_train_all():
    mapping = recipe({}, [0, 1]).to_mapping() | {"heads": {"from": [0, 1]}}
    mapping["teachers"][0]["units"] = {"count": 5, "layer": 2}
    mapping["objective"] = {"losses": [{"kind": "l1"}, {"kind": "kl"}]}
    assert [tap.layer for tap in make(DistillConfig.from_mapping(mapping)).heads.taps] == [0, 1, -1]


def test_what_only_the_teachers_tell_is_refused_before_training():
    config = recipe({"kind": "linear", "initialize": "identity"}, [1, 2])
    with pytest.raises(UserError, match="targets as wide as the student, 24; a/1 has 32 features"):
        make(config, size=32)
    same = recipe({"from": "same"}, [1, 2])
    teacher = FakeTeacher("a", (1, 2))
    teacher.num_hidden_layers = 12
    with pytest.raises(UserError, match="same, but teacher 'a' has 12 layers and the student 2"):
        Distiller(same, [teacher])
