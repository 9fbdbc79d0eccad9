"""Whatever people have as waveforms: the right features, or one line that says what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_models import speech_like

from s3prl_ekd.errors import UserError
from s3prl_ekd.network.frames import conv_frames
from s3prl_ekd.student.waveforms import to_floats
from s3prl_ekd.upstream import EkdUpstream

LENGTHS = (8000, 5001)
SPEECH = [speech_like(n, seed) for seed, n in enumerate(LENGTHS)]
LIKE = torch.zeros(1)


def as_pcm(speech, dtype):
    """16 significant bits, whatever the type holds."""
    pcm = (speech * 2**15).round().to(torch.int32)
    return (pcm << 16 if dtype == torch.int32 else pcm).to(dtype)


def padded(waveforms):
    return torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)


KINDS = {
    "float64": lambda speech: speech.double(),
    "int16": lambda speech: as_pcm(speech, torch.int16),
    "int32": lambda speech: as_pcm(speech, torch.int32),
    "numpy": lambda speech: speech.numpy(),
    "numpy float64": lambda speech: speech.double().numpy(),
    "numpy int16": lambda speech: as_pcm(speech, torch.int16).numpy(),
    "numpy backwards": lambda speech: speech.flip(-1).numpy()[..., ::-1],
    "one channel": lambda speech: speech.unsqueeze(-2),
}


@pytest.fixture
def features(tiny_student):
    """Of the speech as it is: (B, F, D), and (B,) frames."""
    with torch.no_grad():
        output = tiny_student(padded(SPEECH), torch.tensor(LENGTHS))
    return output.hidden_states[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_student_takes_what_people_have(tiny_student, features, kind):
    """Sixteen bits are enough for features equal to 1e-3; the rest is exact."""
    atol = 1e-3 if "int" in kind else 0
    with torch.no_grad():
        as_batch = tiny_student(KINDS[kind](padded(SPEECH)), torch.tensor(LENGTHS))
        as_list = tiny_student([KINDS[kind](speech) for speech in SPEECH])
    for output in (as_batch, as_list):
        torch.testing.assert_close(output.hidden_states[-1], features, atol=atol, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_upstream_takes_each_waveform_for_itself(tiny_student, kind):
    """Beside one of another type, before it and after it, and alone."""
    upstream = EkdUpstream(tiny_student)
    first, second = SPEECH
    atol = 1e-3 if "int" in kind else 1e-5
    with torch.no_grad():
        wanted = upstream([first, second])["last_hidden_state"]
        for wavs in ([KINDS[kind](first), second], [first, KINDS[kind](second)]):
            torch.testing.assert_close(upstream(wavs)["last_hidden_state"], wanted, atol=atol, rtol=0)
        alone = upstream([KINDS[kind](second)])["last_hidden_state"][0]
        torch.testing.assert_close(alone, wanted[1, : len(alone)], atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "samples", "floats"),
    [
        (torch.int16, [-(2**15), 0, 2**14], [-1.0, 0.0, 0.5]),
        (torch.int32, [-(2**31), 0, 2**30], [-1.0, 0.0, 0.5]),
        (torch.uint8, [0, 128, 192], [-1.0, 0.0, 0.5]),
        (torch.int8, [-128, 0, 64], [-1.0, 0.0, 0.5]),
        (torch.float16, [-1.5, 0.0, 0.5], [-1.5, 0.0, 0.5]),
    ],
    ids=str,
)
def test_integers_are_divided_by_their_own_full_scale(dtype, samples, floats):
    found = to_floats(torch.tensor(samples, dtype=dtype), LIKE)
    assert found.dtype == torch.float32
    assert found.tolist() == floats
    assert to_floats(torch.tensor(samples, dtype=dtype), LIKE.double()).dtype == torch.float64
    assert to_floats(torch.tensor(samples, dtype=dtype), LIKE.half()).dtype == torch.float32


def test_double_precision_is_kept_for_a_network_in_double_precision():
    samples = torch.tensor([1 / 3], dtype=torch.float64)
    assert torch.equal(to_floats(samples, LIKE.double()), samples)


X = padded(SPEECH)
NAN = torch.full((1, 8000), float("nan"))
BAD = {
    "one dimension": ((X[0],), r"\(8000,\).* waveforms\[None\]"),
    "stereo": ((X[None],), r"\(1, 2, 8000\).* mono"),
    "no waveforms": ((torch.zeros(0, 8000),), "no waveforms"),
    "an empty list": (([],), "no waveforms"),
    "an empty waveform in a list": (([X[0], torch.zeros(0)],), r"waveform 1 .*\(0,\).* not empty"),
    "a stereo waveform in a list": (([X[0], X],), r"waveform 1 .*\(2, 8000\).* mono"),
    "a file name": (("speech.wav",), "found str; read files"),
    "a list of numbers": (([0.1, 0.2],), "found float"),
    "int64": ((X.long(),), "int64 have no known full scale"),
    "bool": ((X > 0,), "bool have no known full scale"),
    "numpy of objects": ((np.array([[None]]),), "array of object"),
    "numpy of a foreign byte order": ((X.numpy().astype(">f4"),), "array of >f4"),
    "NaN": ((NAN,), "waveform 0 .* NaN"),
    "infinity after the first": ((torch.stack([X[0], X[1] / 0]),), "waveform 1 .* infinity"),
    "lengths as a list": ((X, [8000, 5001]), "found list"),
    "lengths relative": ((X, torch.tensor([1.0, 0.6])), "float32; of relative ones"),
    "lengths as a mask": ((X, torch.ones(2, 8000, dtype=torch.bool)), "bool"),
    "lengths too few": ((X, torch.tensor([8000])), r"\(1,\) for 2 waveforms"),
    "lengths too many": ((X, torch.tensor([8000, 5001, 400])), r"\(3,\) for 2 waveforms"),
    "lengths of another shape": ((X, torch.tensor([[8000, 5001]])), r"\(1, 2\) for 2 waveforms"),
    "lengths too long": ((X, torch.tensor([8000, 8001])), "8001 samples of waveform 1, which has 8000"),
    "lengths too long for one of a list": ((SPEECH, torch.tensor([8000, 8000])), "waveform 1, which has 5001"),
}


@pytest.mark.parametrize("kind", BAD)
def test_student_refuses_in_one_line(tiny_student, kind):
    arguments, message = BAD[kind]
    with pytest.raises(UserError, match=message) as caught:
        tiny_student(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        ([], "no waveforms"),
        ([X[0], "speech.wav"], "found str"),
        ([X[0], X.long()[0]], "int64 have no known full scale"),
        ([X[0], NAN[0]], "waveform 1 .* NaN"),
    ],
    ids=["none", "a file name", "int64", "NaN"],
)
def test_upstream_refuses_in_one_line(tiny_student, wavs, message):
    with pytest.raises(UserError, match=message):
        EkdUpstream(tiny_student)(wavs)


def test_what_is_loud_or_past_the_end_is_no_nan(tiny_student, features):
    """A finite waveform whose sum is not, and padding that is none of the utterance's."""
    waveforms = X.clone()
    waveforms[1, LENGTHS[1] :] = float("nan")
    with torch.no_grad():
        found = tiny_student(waveforms, torch.tensor(LENGTHS)).hidden_states[-1]
        torch.testing.assert_close(found, features, atol=1e-5, rtol=0)
        assert tiny_student(torch.full((1, 8000), 3e37)).hidden_states[-1].shape[1] == 24


def test_training_looks_at_nothing(tiny_student):
    """The Distiller passes batches that its loaders made; a bad one makes a loss that is not finite, and no error."""
    with torch.no_grad():
        assert tiny_student(NAN, check=False).hidden_states[-1].isnan().any()


def test_lengths_of_other_integers(tiny_student, features):
    with torch.no_grad():
        found = tiny_student(X, torch.tensor(LENGTHS, dtype=torch.int32))
    assert torch.equal(found.hidden_states[-1], features)
    assert (
        found.frame_lengths.tolist()
        == conv_frames(torch.tensor(LENGTHS), (10, 3, 3, 3, 3, 2, 2), (5,) + (2,) * 6).tolist()
    )
