"""A student whose layers differ in size, padded so that stock models of transformers open it: the same function."""

from __future__ import annotations

import pytest
import torch
from helpers_models import TINY, speech_like
from helpers_pruned import KINDS, pruned_student
from torch.nn.utils.rnn import pad_sequence

from s3prl_ekd.config.layer_sizes import is_uniform
from s3prl_ekd.config.recipe import StudentConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.student.flat import flatten
from s3prl_ekd.student.model import Student


@pytest.mark.parametrize(("kind", "large"), KINDS)
def test_it_has_the_same_function(kind, large):
    student = pruned_student(kind, large=large)
    flat = flatten(student)
    assert is_uniform(flat.config)
    assert not flat.training
    assert (flat.config.num_attention_heads, flat.config.intermediate_size) == (4, 10)
    assert flat.config.conv_dim == student.config.conv_dim
    waveforms = [speech_like(9000), speech_like(5000, 1)]
    batch = pad_sequence(waveforms, batch_first=True), torch.tensor([len(one) for one in waveforms])
    with torch.no_grad():
        for ours, theirs in zip(flat(*batch).rows, student(*batch).rows, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_heads_of_a_wavlm_are_at_their_old_places():
    """The first layer has kept heads 1 and 3 of four."""
    student = pruned_student("wavlm")
    small, padded = (one.encoder.layers[0].attention.q_proj.weight for one in (student, flatten(student)))
    assert torch.equal(padded[6:12], small[:6])
    assert torch.equal(padded[18:], small[6:])
    assert not padded[:6].any()


def test_one_with_layers_of_equal_size_is_given_back(tiny_student):
    assert flatten(tiny_student) is tiny_student


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"num_attention_heads": [2, 1], "head_dim": 5}, "are up to 2 of width 5"),
        ({"num_attention_heads": [5, 1], "head_dim": 6}, "are up to 5 of width 6"),
    ],
)
def test_heads_that_a_stock_model_cannot_have(sizes, words):
    with pytest.raises(UserError, match=f"cannot be made flat: .*{words}"):
        flatten(Student(StudentConfig.from_mapping({**TINY, **sizes})))


def test_no_layer_with_inner_units():
    student = pruned_student("hubert", intermediate_size=[0, 0, 0])
    flat = flatten(student)
    assert flat.config.intermediate_size == 1
    with torch.no_grad():
        torch.testing.assert_close(flat(speech_like(4000)[None]).rows[-1], student(speech_like(4000)[None]).rows[-1])
