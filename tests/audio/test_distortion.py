"""Distortion: determinism, alignment, signal-to-noise ratio, edge cases."""

from __future__ import annotations

import logging
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest
import soundfile
import torch
from helpers_models import speech_like

from s3prl_ekd.audio.acoustics import add_noise, direct_path, generated_impulse_response
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.audio.distortions.base import Distortion
from s3prl_ekd.audio.randomness import integer, keyed_generator
from s3prl_ekd.errors import UserError

RATE = 16000


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    """MUSAN's layout: a short recording, a long one, and something that is no audio."""
    folder = tmp_path_factory.mktemp("musan")
    for name, samples in (("noise/free-sound/a.wav", 4000), ("speech/us-gov/b.flac", 80000)):
        path = folder / name
        path.parent.mkdir(parents=True)
        noise = torch.randn(samples, generator=torch.Generator().manual_seed(samples))
        soundfile.write(path, 0.1 * noise.numpy(), RATE)
    (folder / "noise" / "ANNOTATIONS").write_text("not audio")
    return folder


@pytest.fixture(scope="module")
def responses(tmp_path_factory):
    """One recorded impulse response: two channels, negative direct sound after 500 samples, louder than its echoes."""
    folder = tmp_path_factory.mktemp("rirs")
    response = torch.zeros(4000, 2)
    response[500, 0], response[900, 0], response[2500, 0] = -0.5, 0.4, 0.1
    response[700, 1] = 0.9
    soundfile.write(folder / "room.wav", response.numpy(), RATE)
    return folder


def everything(noises, **extra) -> DistortionConfig:
    return DistortionConfig.from_mapping(
        {
            "seed": 3,
            "reverberation": {"probability": 0.5},
            "noise": {"folder": str(noises), "probability": 0.5},
            "gaussian_noise": {"probability": 0.5},
            **extra,
        }
    )


def lag(reference: torch.Tensor, other: torch.Tensor) -> int:
    """Samples by which ``other`` is late, by cross-correlation."""
    size = 2 * reference.numel()
    correlation = torch.fft.irfft(torch.fft.rfft(other, size) * torch.fft.rfft(reference, size).conj(), size)
    peak = int(correlation.abs().argmax())
    return peak if peak < size // 2 else peak - size


def test_draws_depend_on_seed_epoch_and_utterance_only(noises):
    waves = {f"utterance-{i}": speech_like(8000, seed=i) for i in range(8)}
    first = Distorter(everything(noises))
    expected = {name: first(wave, epoch=1, utterance=name) for name, wave in waves.items()}

    second = Distorter(everything(noises))
    torch.manual_seed(99)
    for name in reversed(waves):
        second(waves[name], epoch=0, utterance=name)  # draws in between must not matter
        before = torch.get_rng_state()
        assert torch.equal(second(waves[name], epoch=1, utterance=name), expected[name])
        assert torch.equal(torch.get_rng_state(), before)

    same = torch.ones(8000)
    outputs = [first(same, epoch=e, utterance=u) for e in range(4) for u in ("a", "b")]
    changed = [output for output in outputs if not torch.equal(output, same)]
    assert len(changed) >= 4
    assert all(not torch.equal(a, b) for i, a in enumerate(changed) for b in changed[:i])
    other = Distorter(everything(noises, seed=4))
    assert any(not torch.equal(other(w, epoch=1, utterance=n), expected[n]) for n, w in waves.items())


def test_one_part_does_not_change_the_draws_of_another(noises):
    wave = speech_like(8000)
    always = {"gaussian_noise": {"probability": 1.0}}
    alone = Distorter(DistortionConfig.from_mapping({"seed": 3, **always}))(wave, epoch=0, utterance="a") - wave
    quiet = {"folder": str(noises), "probability": 1.0, "snr_db": [200, 200]}
    both = Distorter(DistortionConfig.from_mapping({"seed": 3, "noise": quiet, **always}))
    torch.testing.assert_close(both(wave, epoch=0, utterance="a") - wave, alone, atol=1e-6, rtol=0)


@dataclass(frozen=True, kw_only=True)
class Clipping(Distortion):
    """Cuts off what is louder than a limit."""

    limit: float = 0.05

    def build(self):
        return self._clip

    def _clip(self, waveform, generator):
        return waveform.clamp(-self.limit, self.limit)


@dataclass(frozen=True, kw_only=True)
class WithClipping(DistortionConfig):
    """What one more field of DistortionConfig makes of it."""

    clipping: Clipping = field(default_factory=Clipping)


def test_one_more_distortion_is_a_class_and_a_field(noises):
    """It comes last, since its field does, and leaves the draws of the others as they were."""
    before = everything(noises, reverberation={"probability": 0.05})
    config = WithClipping.from_mapping({**before.to_mapping(), "clipping": {"probability": 0.5, "limit": 0.02}})
    assert WithClipping.from_mapping(config.to_mapping()) == config
    assert list(config.active) == ["reverberation", "noise", "gaussian_noise", "clipping"]
    plain, more = Distorter(before), pickle.loads(pickle.dumps(Distorter(config)))
    clipped = 0
    for epoch in range(20):
        wave = plain(speech_like(800), epoch=epoch, utterance="a")
        other = more(speech_like(800), epoch=epoch, utterance="a")
        clipped += not torch.equal(wave, other)
        assert torch.equal(other, wave) or torch.equal(other, wave.clamp(-0.02, 0.02))
    assert 4 < clipped < 16
    with pytest.raises(UserError, match=r"unknown key 'distortion.clipping.limt'; .*limit"):
        WithClipping.from_mapping({"clipping": {"limt": 1}}, "distortion")


def test_probabilities_are_kept():
    config = DistortionConfig.from_mapping({"gaussian_noise": {"probability": 0.3}})
    distorter, wave = Distorter(config), torch.ones(400)
    hits = sum(distorter(wave, epoch=0, utterance=str(i)) is not wave for i in range(1000))
    assert 250 < hits < 350


@pytest.mark.parametrize("part", ["noise", "gaussian_noise"])
def test_signal_to_noise_ratio_over_the_utterance(noises, part):
    wave = speech_like(20000)
    settings = {"probability": 1.0, "snr_db": [7, 7]} | ({"folder": str(noises)} if part == "noise" else {})
    distorter = Distorter(DistortionConfig.from_mapping({part: settings}))
    for epoch in range(4):  # both the short, repeated recording and the long, cut one
        noise = distorter(wave, epoch=epoch, utterance="a") - wave
        ratio = 10 * torch.log10(wave.square().sum() / noise.square().sum())
        assert abs(ratio - 7) < 0.1
        assert noise.reshape(20, -1).abs().amax(dim=1).min() > 0  # to the very end


def test_snr_range_is_used(noises):
    wave = speech_like(8000)
    distorter = Distorter(DistortionConfig.from_mapping({"gaussian_noise": {"probability": 1.0, "snr_db": [0, 20]}}))
    noise = torch.stack([distorter(wave, epoch=e, utterance="a") - wave for e in range(60)])
    ratios = 10 * torch.log10(wave.square().sum() / noise.square().sum(dim=1))
    assert ratios.min() < 3
    assert ratios.max() > 17
    assert ((ratios > -0.1) & (ratios < 20.1)).all()


def test_recorded_response_keeps_alignment_length_and_power(responses):
    config = DistortionConfig.from_mapping({"reverberation": {"folder": str(responses), "probability": 1.0}})
    wave = speech_like(16000)
    wet = Distorter(config)(wave, epoch=0, utterance="a")
    assert wet.shape == wave.shape
    assert lag(wave, wet) == 0
    torch.testing.assert_close(wet.square().mean(), wave.square().mean())

    impulse = torch.zeros(8000)
    impulse[1000] = 1.0
    wet = Distorter(config)(impulse, epoch=0, utterance="a")
    peaks = (wet.abs() > 1e-3).nonzero().flatten().tolist()
    assert peaks == [1000, 1400, 3000]  # the first channel's direct sound and echoes, the delay of 500 gone
    torch.testing.assert_close(wet[peaks] / wet[1000], torch.tensor([1.0, -0.8, -0.2]), atol=1e-3, rtol=0)


def test_generated_responses_do_not_depend_on_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        several = [generated_impulse_response(keyed_generator(7)) for _ in range(6)]
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)
    torch.set_num_threads(1)
    try:
        one = generated_impulse_response(keyed_generator(7))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(response, one) for response in several)


def test_generated_responses_keep_alignment():
    """The strongest sample can be a reflection, a frame late; the direct sound decides."""
    late = 0
    for seed in range(15):
        response = generated_impulse_response(keyed_generator(seed))
        assert torch.isfinite(response).all()
        delay = direct_path(response)
        late = max(late, int(response.abs().argmax()) - delay)
        generator = keyed_generator(seed)
        _, source = integer(generator, 2**31), integer(generator, 2**31)
        distance = np.random.default_rng(source).uniform(0.2, 12.0)  # metres: the generator's first draw
        assert abs(delay - distance / 340 * RATE) < 4  # a quarter of a millisecond
    assert late > 50  # where the maximum would have put it


def test_direct_path_is_the_first_sound():
    response = torch.zeros(100)
    response[10], response[30], response[40] = 0.05, 0.3, -1.0
    assert direct_path(response) == 30


def test_silence_and_short_utterances_stay_finite(noises):
    config = everything(
        noises,
        reverberation={"probability": 1.0},
        noise={"folder": str(noises), "probability": 1.0},
        gaussian_noise={"probability": 1.0},
    )
    distorter = Distorter(config)
    assert torch.equal(distorter(torch.zeros(3000), epoch=0, utterance="a"), torch.zeros(3000))
    for wave in (speech_like(400), torch.full((1000,), 1e-20), 0.9 * torch.ones(5000)):
        distorted = distorter(wave, epoch=0, utterance="a")
        assert distorted.shape == wave.shape
        assert torch.isfinite(distorted).all()
    for silence in (torch.zeros(5000), torch.full((5000,), 1e-25)):  # the second one's power is 0 in float32
        assert torch.equal(add_noise(wave, silence, 5.0), wave)


def test_the_input_is_left_alone(noises):
    wave = speech_like(8000)
    copy = wave.clone()
    for epoch in range(6):
        Distorter(everything(noises))(wave, epoch=epoch, utterance="a")
    assert torch.equal(wave, copy)


def test_unreadable_noise_is_passed_over(tmp_path, noises, caplog):
    (tmp_path / "broken.wav").write_text("no audio")
    config = {"noise": {"folder": str(tmp_path), "probability": 1.0}}
    with pytest.raises(UserError, match=r"8 files in a row.*broken\.wav"):
        Distorter(DistortionConfig.from_mapping(config))(torch.ones(400), epoch=0, utterance="a")
    soundfile.write(tmp_path / "fine.wav", torch.randn(800).numpy() * 0.1, RATE)
    distorter = Distorter(DistortionConfig.from_mapping(config))
    with caplog.at_level(logging.WARNING):
        for epoch in range(6):
            assert not torch.equal(distorter(torch.ones(400), epoch=epoch, utterance="a"), torch.ones(400))


@pytest.mark.parametrize("part", ["noise", "reverberation"])
def test_folders_are_checked_at_once(tmp_path, part):
    for folder, message in ((tmp_path / "missing", "no such folder"), (tmp_path, "no audio file")):
        config = DistortionConfig.from_mapping({part: {"folder": str(folder), "probability": 1.0}})
        with pytest.raises(UserError, match=message):
            Distorter(config)
