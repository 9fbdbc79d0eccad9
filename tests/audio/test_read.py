"""Recordings in every container: read whole, or refused in one line; damaged and lying headers, rates, memory."""

from __future__ import annotations

import contextlib
import io
import logging
import random
import struct

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from helpers_cuts import RATE, write
from helpers_models import speech_like

from s3prl_ekd.audio import read as audio
from s3prl_ekd.audio.read import audio_files, audio_length, load_audio, read_channels, read_header
from s3prl_ekd.errors import UserError

WAVE = speech_like(8000)
KINDS = [
    ("WAV", "PCM_16"), ("WAV", "GSM610"), ("WAV", "IMA_ADPCM"), ("WAV", "ULAW"), ("WAV", "DOUBLE"), ("WAVEX", "PCM_24"),
    ("W64", "PCM_16"), ("RF64", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16"), ("CAF", "PCM_16"), ("NIST", "PCM_16"),
    ("VOC", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def encoded(container="WAV", subtype="PCM_16", wave=WAVE, rate=16000, **options) -> bytearray:
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", rate, 1, subtype, format=container, **options) as file:
        file.write(wave.numpy())
    return bytearray(data.getvalue())


def refusal(path) -> str:
    """The one line that both ways of reading a file answer with."""
    with pytest.raises(UserError) as caught:
        load_audio(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(UserError):
        read_channels(path.read_bytes(), "x")
    return str(caught.value)


# --- whole, or refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("container", "subtype"), KINDS)
def test_every_container_is_read_whole_and_in_part(tmp_path, container, subtype):
    path = tmp_path / "recording"
    path.write_bytes(encoded(container, subtype))
    whole = load_audio(path)
    assert 8000 <= len(whole) == audio_length(path) < 8800  # blocks of some codecs are filled up
    assert torch.nn.functional.cosine_similarity(whole[:8000], WAVE, dim=0) > 0.94
    torch.testing.assert_close(load_audio(path, start=3000, samples=2500), whole[3000:5500], atol=1e-6, rtol=0)
    assert torch.equal(read_channels(path.read_bytes(), "x")[0], whole)


@pytest.mark.parametrize(("container", "subtype"), KINDS)
def test_a_truncated_file_is_noticed_wherever_it_was_cut(tmp_path, container, subtype):
    data = encoded(container, subtype)
    path = tmp_path / "recording"
    places = random.Random(0)
    for size in [0, 1, 40, 600, len(data) // 2] + [places.randrange(len(data) - 2) for _ in range(6)]:
        path.write_bytes(data[:size])
        refusal(path)


@pytest.mark.parametrize(("container", "subtype"), KINDS)
def test_no_flipped_bit_of_a_header_does_more_than_spoil_its_recording(tmp_path, container, subtype, capfd):
    data = encoded(container, subtype)
    path = tmp_path / "recording"
    places = random.Random(1)
    for _ in range(12):
        damaged = bytearray(data)
        damaged[places.randrange(100)] ^= 1 << places.randrange(8)
        path.write_bytes(damaged)
        for read in (load_audio, audio_length, lambda path: read_channels(path.read_bytes(), "x", start=10)):
            with contextlib.suppress(UserError):
                read(path)
    assert "Traceback" not in capfd.readouterr().err


# --- headers that lie -------------------------------------------------------------------------------------------------


def with_bytes(data: bytearray, at: int, new: bytes) -> bytes:
    data[at : at + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize(
    ("container", "field", "value", "message"),
    [
        ("WAV", b"data", struct.pack("<I", 0), "counts 0 bytes of audio, but 16000 more follow"),
        ("WAV", b"data", struct.pack("<I", 8000), "counts 8000 bytes of audio, but 8000 more follow"),
        ("WAV", b"data", struct.pack("<I", 20000), "truncated (16000 of 20000 bytes of audio)"),
        ("AIFF", b"SSND", struct.pack(">I", 8008), "truncated (4000 of 8000 samples)"),
        ("AIFF", b"SSND", struct.pack(">I", 20008), "truncated (16008 of 20008 bytes of audio)"),
        ("AU", None, struct.pack(">I", 8000), "counts 8000 bytes of audio, but 8000 more follow"),
    ],
)
def test_a_size_that_does_not_fit_the_file_is_named(tmp_path, container, field, value, message):
    data = encoded(container, wave=WAVE + 0.2)  # no sample of it looks like the name of a chunk
    path = tmp_path / "recording"
    path.write_bytes(with_bytes(data, data.find(field) + 4 if field else 8, value))
    assert message in refusal(path)


@pytest.mark.parametrize(
    ("container", "field", "value"),
    [
        ("WAV", b"data", b"\xff" * 4),
        ("WAV", b"data", struct.pack("<I", 0x7FFF_F000)),  # sox
        ("AIFF", b"SSND", struct.pack(">I", 0x7F00_0008)),  # sox
        ("AU", None, b"\xff" * 4),
        ("W64", b"riff", b"\xff" * 8),
    ],
)
def test_a_file_written_to_a_pipe_is_whole(tmp_path, container, field, value):
    """Its header cannot know the size."""
    data = encoded(container)
    offset = {"W64": 16}.get(container, 4)
    path = tmp_path / "recording"
    path.write_bytes(with_bytes(data, data.find(field) + offset if field else 8, value))
    assert len(load_audio(path)) == audio_length(path) == 8000


def test_behind_the_audio_may_be_something_else(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded() + b"LIST" + struct.pack("<I", 4) + b"INFO" + b"\1\2\3\4\5")
    assert len(load_audio(path)) == 8000


@pytest.mark.parametrize(("samples", "message"), [(0, "does not say how long it is"), (2**36 - 1, "how long it is")])
def test_a_flac_of_unknown_or_absurd_length(tmp_path, samples, message):
    data = encoded("FLAC")
    data[21] = data[21] & 0xF0 | samples >> 32
    path = tmp_path / "a.flac"
    path.write_bytes(with_bytes(data, 22, struct.pack(">I", samples & 0xFFFF_FFFF)))
    assert message in refusal(path)
    with pytest.raises(UserError, match=message):
        audio_length(path)


def test_memory_is_not_taken_for_what_a_header_promises(tmp_path, monkeypatch):
    data = encoded("FLAC")
    path = tmp_path / "a.flac"
    path.write_bytes(with_bytes(data, 22, struct.pack(">I", 2**31)))
    taken, empty = [], np.empty
    monkeypatch.setattr(
        np, "empty", lambda shape, *rest, **options: taken.append(shape) or empty(shape, *rest, **options)
    )
    assert "truncated or damaged" in refusal(path)
    assert max(np.prod(shape) for shape in taken) <= 2**26


# --- MP3 --------------------------------------------------------------------------------------------------------------


def mp3(mode: str, *, header: bool) -> bytes:
    """Silence, then speech: of frames that differ much in size unless the bit rate is constant."""
    wave = torch.cat([torch.zeros(16000), *[3 * WAVE] * 2])
    data = bytes(encoded("MP3", "MPEG_LAYER_III", wave, bitrate_mode=mode, compression_level=0.5))
    start, mark = 0, max(data.find(b"Xing"), data.find(b"Info"))
    return data if header else data[data.find(data[start : start + 2], mark) :]


def test_mp3_is_read_whole_or_refused(tmp_path):
    path = tmp_path / "a.mp3"
    for mode, header in (("VARIABLE", True), ("CONSTANT", True), ("CONSTANT", False)):
        path.write_bytes(mp3(mode, header=header))
        assert 32000 <= len(load_audio(path)) == audio_length(path) < 34000, (mode, header)
    path.write_bytes(b"ID3\3\0\0\0\0\2\0" + bytes(256) + mp3("VARIABLE", header=True) + b"TAG" + bytes(125))
    assert len(load_audio(path)) == 32000
    path.write_bytes(mp3("VARIABLE", header=False))
    assert "varying bit rate without a length header" in refusal(path)
    with pytest.raises(UserError, match=r"ffmpeg -i IN\.mp3 -c copy OUT\.mp3"):
        audio_length(path)
    path.write_bytes(2 * mp3("VARIABLE", header=True))
    assert "more follow" in refusal(path)
    path.write_bytes(mp3("VARIABLE", header=True)[:-3000])
    assert "truncated" in refusal(path)


# --- rates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000])
def test_ordinary_rates_are_torchaudio_s(tmp_path, rate):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(subtype="FLOAT", rate=rate))
    assert torch.equal(load_audio(path), torchaudio.functional.resample(WAVE, rate, 16000))


@pytest.mark.parametrize("rate", [4001, 8012, 15999, 16001, 16004, 22255, 44056, 44101, 96001, 767_999])
def test_odd_rates_take_little_memory_and_are_as_exact(tmp_path, rate, monkeypatch):
    monkeypatch.setattr(torchaudio.functional, "resample", None)  # its filter would take up to gigabytes
    time = torch.arange(rate, dtype=torch.float64) / rate
    path = tmp_path / "a.wav"
    for seconds in (1, 0.3):
        tone = 0.5 * torch.sin(2 * torch.pi * 440 * time[: int(seconds * rate)])
        path.write_bytes(encoded(subtype="FLOAT", wave=tone, rate=rate))
        wave = load_audio(path)
        assert len(wave) == audio_length(path) == -(-len(tone) * 16000 // rate)
        expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(len(wave), dtype=torch.float64) / 16000).float()
        torch.testing.assert_close(wave[300:-300], expected[300:-300], atol=1e-4, rtol=0)
    part = load_audio(path, start=1000, samples=2000)
    assert part.shape == (2000,)
    # It starts on a sample of the file, less than one before what was asked for.
    torch.testing.assert_close(part[300:-300], wave[1300:2700], atol=0.5 * 2 * np.pi * 440 / rate, rtol=0)


def test_odd_rates_of_several_channels(tmp_path):
    time = torch.arange(16001) / 16001
    channels = torch.stack([torch.sin(2 * torch.pi * 300 * time), torch.cos(2 * torch.pi * 500 * time)])
    soundfile.write(tmp_path / "a.wav", channels.T.numpy(), 16001, "FLOAT")
    read = audio.read_channels(tmp_path / "a.wav")
    time = torch.arange(16000) / 16000
    expected = torch.stack([torch.sin(2 * torch.pi * 300 * time), torch.cos(2 * torch.pi * 500 * time)])
    torch.testing.assert_close(read[:, 300:-300], expected[:, 300:-300], atol=1e-3, rtol=0)


@pytest.mark.parametrize("rate", [1, 100, 3999, 768_001, 2**31 - 1])
def test_absurd_rates_are_refused(tmp_path, rate):
    path = tmp_path / "a.wav"
    path.write_bytes(with_bytes(encoded(), 24, struct.pack("<I", rate)))
    assert f"at {rate} Hz, which is no rate of speech" in refusal(path)
    with pytest.raises(UserError, match="no rate of speech"):
        read_header(path)


# --- whatever is raised -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("codec\nfailed"), ValueError("bad"), OSError(5, "I/O")])
@pytest.mark.parametrize("place", ["__init__", "seek", "read"])
def test_whatever_a_codec_raises_spoils_one_recording(tmp_path, error, place, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded())

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(soundfile.SoundFile, place, fail)
    assert f"cannot be read ({type(error).__name__}" in refusal(path)


def test_memory_for_resampling_spoils_one_recording(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    path = tmp_path / "a.wav"
    path.write_bytes(encoded(rate=8000))
    monkeypatch.setattr(torchaudio.functional, "resample", fail)
    assert "can't allocate memory" in refusal(path)


def test_our_own_mistakes_are_no_bad_recordings(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded())
    monkeypatch.setattr(audio, "_RATES", None)
    with pytest.raises(TypeError):
        load_audio(path)


# --- what is not read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.m4a", b"\0\0\0\x20ftypM4A " + bytes(99), "MPEG-4 audio (.m4a), which is not read; convert it"),
        ("a.wav", b"\0\0\0\x20ftypM4A " + bytes(99), "MPEG-4 audio (.m4a), which is not read; convert it"),
        ("a.wma", b"\x30\x26\xb2\x75" + bytes(99), "Windows Media audio"),
        ("a.spx", b"Speex" + bytes(99), ".spx files are not read; convert it"),
        ("a.flac", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("a.flac", b"<!DOCTYPE html><html>", "a web page"),
        ("._a.flac", b"\0\5\x16\7\0\2\0\0Mac OS X", "macOS"),
        ("a.raw", bytes(99), "cannot be read (TypeError"),
    ],
    ids=["m4a", "m4a as wav", "wma", "speex", "git-lfs", "html", "macos", "raw"],
)
def test_other_files_are_named_as_what_they_are(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_audio(tmp_path / name)
    assert message in str(caught.value)


def test_recordings_that_are_not_read_are_found_unless_converted(tmp_path):
    for name in ("a.wav", "b/c.m4a", "b/d.m4a", "b/d.flac", "b/._e.wav", "f.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert [path.relative_to(tmp_path).as_posix() for path in audio_files(tmp_path)] == ["a.wav", "b/c.m4a", "b/d.flac"]
    (tmp_path / "a.wav").unlink()
    (tmp_path / "b" / "d.flac").unlink()
    with pytest.raises(UserError, match=r"recordings are in no format that is read, such as c\.m4a; convert it"):
        audio_files(tmp_path)


def test_reading_a_part(tmp_path):
    wave = 0.5 * speech_like(5000)
    path = write(tmp_path / "a.wav", wave, subtype="FLOAT")
    assert torch.equal(load_audio(path), wave)
    assert torch.equal(load_audio(path, start=1200, samples=700), wave[1200:1900])
    assert torch.equal(load_audio(path, start=4900, samples=700), wave[4900:])
    assert audio_length(path) == 5000


def test_rate_and_channels_are_mended_and_said_once(tmp_path, caplog):
    audio._said.clear()
    time = torch.arange(44100) / 44100
    stereo = torch.stack([torch.sin(2 * torch.pi * 440 * time), torch.zeros(44100)], dim=1) * 0.5
    paths = [write(tmp_path / f"{i}.wav", stereo, 44100) for i in range(2)]
    with caplog.at_level(logging.WARNING):
        waves = [load_audio(path) for path in paths]
    expected = 0.25 * torch.sin(2 * torch.pi * 440 * torch.arange(RATE) / RATE)
    torch.testing.assert_close(waves[0][200:-200], expected[200:-200], atol=2e-3, rtol=0)
    assert waves[0].shape == (16000,)
    assert audio_length(paths[0]) == 16000
    part = load_audio(paths[0], start=4000, samples=3000)
    torch.testing.assert_close(part[200:-200], waves[0][4200:6800], atol=2e-3, rtol=0)
    assert [("averaged" in m, "resampled" in m) for m in caplog.messages] == [(False, True), (True, False)]
    assert str(paths[0]) in caplog.messages[0]


def _broken_files(folder):
    wave = speech_like(8000)
    nan = wave.clone()
    nan[100] = torch.nan
    for suffix in ("wav", "flac"):
        whole = write(folder / f"whole.{suffix}", wave).read_bytes()
        (folder / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    write(folder / "nothing.wav", wave[:0])
    write(folder / "nan.wav", nan, subtype="FLOAT")
    (folder / "text.wav").write_text("not audio " * 100)
    (folder / "zero.wav").touch()
    (folder / "folder.wav").mkdir()
    return folder


def test_bad_files_are_named(tmp_path):
    folder = _broken_files(tmp_path)
    for name, message in (
        ("cut.wav", "truncated"),
        ("cut.flac", "truncated"),
        ("nothing.wav", "is empty"),
        ("nan.wav", "NaN"),
        ("text.wav", "not a readable audio file"),
        ("zero.wav", "empty file"),
        ("missing.wav", "no such file"),
        ("folder.wav", "no such file"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_audio(folder / name)
        assert str(folder / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="ends before sample 9000"):
        load_audio(folder / "whole.wav", start=9000)


def test_a_wav_written_to_a_pipe_is_whole(tmp_path):
    """Its header cannot know the size."""
    data = bytearray(write(tmp_path / "a.wav", speech_like(1000)).read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(data)
    assert load_audio(tmp_path / "a.wav").shape == (1000,)


def test_audio_files_are_found_anywhere_below(tmp_path):
    for name in ("b/c/x.FLAC", "a.wav", "b/y.ogg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "b" / "x.trans.txt").touch()
    (tmp_path / ".hidden.wav").touch()
    found = [path.relative_to(tmp_path).as_posix() for path in audio_files(tmp_path)]
    assert found == ["a.wav", "b/c/x.FLAC", "b/y.ogg"]
