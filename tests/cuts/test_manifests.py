"""``s3prl-ekd data`` on corpora as they lie about: what systems leave in them, files that cannot be read, odd lists."""

from __future__ import annotations

import errno
import gzip
import json
import logging

import helpers_corpora
import pytest
import soundfile
from helpers_cuts import CLEAN, names, stream
from helpers_cuts import write as write_wave
from helpers_models import speech_like
from lhotse.recipes.librispeech import prepare_librispeech
from lhotse.recipes.musan import prepare_musan
from lhotse.recipes.rir_noise import prepare_rir_noise

from s3prl_ekd import cli
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.read import audio_files
from s3prl_ekd.config.recipe import DistortionConfig
from s3prl_ekd.cuts import manifests
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data import PretrainDataConfig, read_utterances

LIBRISPEECH = ("dev-clean/84/1/84-1-0000.flac", "dev-clean/84/1/84-1-0001.flac", "dev-clean/85/2/85-2-0000.flac")
MUSAN = ("noise/free/noise-1.wav", "noise/free/noise-2.wav", "music/fma/music-1.wav", "speech/us/speech-1.wav")
RIRS = (
    "pointsource_noises/a.wav", "real_rirs_isotropic_noises/air_rir_1.wav", "real_rirs_isotropic_noises/air_noise.wav",
    "simulated_rirs/smallroom/Room001/1.wav", "simulated_rirs/mediumroom/Room001/1.wav",
    "simulated_rirs/largeroom/Room001/1.wav",
)  # fmt: skip


def write(path, number=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech_like(4000 + 100 * number, number).numpy(), options.pop("rate", 16000), **options)


@pytest.fixture
def corpora(tmp_path):
    """The layouts of LibriSpeech, MUSAN and RIRS_NOISES."""
    for root, files in (("LibriSpeech", LIBRISPEECH), ("musan", MUSAN), ("RIRS_NOISES", RIRS)):
        for number, name in enumerate(files):
            write(tmp_path / root / name, number)
    for name in ("84/1/84-1", "85/2/85-2"):
        utterances = [path.split("/")[-1].removesuffix(".flac") for path in LIBRISPEECH if f"/{name}-" in path]
        path = tmp_path / "LibriSpeech" / "dev-clean" / f"{name}.trans.txt"
        path.write_text("".join(f"{utterance} HELLO\n" for utterance in utterances))
    (tmp_path / "musan/music/fma/ANNOTATIONS").write_text("music-1 pop Y someone\n")
    return tmp_path


def spoil(corpora):
    """What a copy through macOS and a torn transfer leave: three files more, one recording less."""
    for root, name in (("LibriSpeech", LIBRISPEECH[1]), ("musan", MUSAN[1]), ("RIRS_NOISES", RIRS[0])):
        path = corpora / root / name
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0")
        path.with_name(".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        if root != "RIRS_NOISES":
            path.write_bytes(
                path.read_bytes()[: 2000 if path.suffix == ".wav" else 30]
            )  # a FLAC's header is not enough
    listing = corpora / "LibriSpeech/dev-clean/84/1/84-1.trans.txt"
    listing.write_bytes("\ufeff84-1-0000 CAF".encode() + b"\xc9\r\n\r\n84-1-0001\r\n")
    (corpora / "musan/music/fma/ANNOTATIONS").write_bytes(b"music-1 \xff")


def cuts(path) -> list[dict]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


PREPARE = {
    "librispeech": (
        "LibriSpeech", lambda folder, part: prepare_librispeech(folder, dataset_parts=[part]), ["dev-clean"],
    ),
    "musan": ("musan", lambda folder, part: prepare_musan(folder, parts=[part]), ["music", "noise", "speech"]),
    "rirs": (
        "RIRS_NOISES", lambda folder, part: prepare_rir_noise(folder, parts=[part]),
        ["point_noise", "iso_noise", "real_rir", "sim_rir"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("corpus", PREPARE)
def test_a_good_corpus_has_the_recordings_of_lhotse_s_recipe(corpora, corpus):
    folder, prepare, parts = PREPARE[corpus]
    written = manifests.write_corpus(manifests.CORPORA[corpus], corpora, corpora / "out")
    assert sorted(one.path.name for one in written) == sorted(f"{corpus}_cuts_{part}.jsonl.gz" for part in parts)
    for part in parts:
        ours = {cut["id"]: cut for cut in cuts(corpora / "out" / f"{corpus}_cuts_{part}.jsonl.gz")}
        theirs = {
            recording.id: json.loads(json.dumps(recording.to_cut().to_dict()))
            for recording in prepare(corpora / folder, part)[part]["recordings"]
        }
        assert ours == theirs


def test_bad_files_of_a_corpus_are_listed_and_the_others_written(corpora, capsys):
    spoil(corpora)
    for corpus in PREPARE:
        assert cli.main(["data", corpus, str(corpora), str(corpora / "out")]) == 0
    lines = dict(line.split("/out/")[1].split(": ") for line in capsys.readouterr().out.splitlines())
    assert lines["librispeech_cuts_dev-clean.jsonl.gz"] == "2 cuts, 0.00 h, 1 bad recordings left out"
    assert lines["musan_cuts_noise.jsonl.gz"] == "1 cuts, 0.00 h, 1 bad recordings left out"
    assert lines["musan_cuts_music.jsonl.gz"] == "1 cuts, 0.00 h"
    assert lines["rirs_cuts_point_noise.jsonl.gz"] == "1 cuts, 0.00 h"
    listed = (corpora / "out/librispeech_cuts_dev-clean.bad_recordings.tsv").read_text()
    assert listed.splitlines()[1].startswith(
        f"84-1-0001\t{corpora / 'LibriSpeech' / LIBRISPEECH[1]}: not a readable audio file"
    )


def test_the_same_name_twice_in_a_part_is_a_path(corpora):
    write(corpora / "musan/noise/other/noise-1.wav", 5)
    manifests.write_corpus(manifests.CORPORA["musan"], corpora, corpora / "out", ["noise"])
    assert sorted(cut["id"] for cut in cuts(corpora / "out/musan_cuts_noise.jsonl.gz")) == [
        "noise-2", "noise/free/noise-1.wav", "noise/other/noise-1.wav",
    ]  # fmt: skip


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """A folder with recordings in formats that are read, and others."""
    for number, name in enumerate(("a.wav", "b/c.flac", "b/d.w64", "b/e.mp3", "b/f.ogg", "b/g.aiff")):
        write(tmp_path / "mixed" / name, number)
    write(tmp_path / "mixed" / "gsm.wav", 7, subtype="GSM610")
    for name in ("h.m4a", "b/i.m4a"):
        (tmp_path / "mixed" / name).write_bytes(b"\0\0\0\x20ftypM4A ")
    (tmp_path / "mixed" / "b" / "c.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")  # converted already
    (tmp_path / "mixed" / "._a.wav").touch()
    return tmp_path / "mixed"


READ = ["a.wav", "b/c.flac", "b/d.w64", "b/e.mp3", "b/f.ogg", "b/g.aiff", "gsm.wav"]


def test_a_folder_s_recordings_are_written_or_listed(mixed, tmp_path, capsys):
    assert cli.main(["data", "folder", str(mixed), str(tmp_path / "out.jsonl.gz")]) == 0
    assert "7 cuts, 0.00 h, 2 bad recordings left out" in capsys.readouterr().out
    assert sorted(cut["id"] for cut in cuts(tmp_path / "out.jsonl.gz")) == READ
    _, *listed = (tmp_path / "out.bad_recordings.tsv").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == ["b/i.m4a", "h.m4a"]
    assert all("MPEG-4 audio (.m4a), which is not read; convert it" in line for line in listed)


def test_pretraining_and_distortion_use_what_is_read_and_name_the_rest(mixed, caplog):
    with caplog.at_level(logging.WARNING):
        found = read_utterances(PretrainDataConfig(train_batch_size=2, audio_folder=str(mixed)))
    assert sorted(utterance.name for utterance in found) == READ
    assert sum(message.startswith("skipped: ") and "MPEG-4" in message for message in caplog.messages) == 2
    caplog.clear()
    for part in ("noise", "reverberation"):
        with caplog.at_level(logging.WARNING):
            config = DistortionConfig.from_mapping({part: {"probability": 1.0, "folder": str(mixed)}})
            (distortion,) = config.active.values()
            found = distortion.build().args[0]
        assert [path.relative_to(mixed).as_posix() for path in found] == READ
        assert f"{mixed}: 2 of 9 recordings are in a format that is not read" in caplog.text
        caplog.clear()
    wave = speech_like(16000, 9)
    distorter = Distorter(DistortionConfig.from_mapping({"noise": {"probability": 1.0, "folder": str(mixed)}}))
    assert len({float(distorter(wave, epoch=epoch, utterance="x").sum()) for epoch in range(8)}) > 3
    assert not [message for message in caplog.messages if "skipped" in message]


def test_nothing_usable_says_why(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.wav").write_bytes(b"")
    assert cli.main(["data", "folder", str(tmp_path / "a"), str(tmp_path / "out.jsonl.gz")]) == 2
    assert "not one usable recording, nothing written" in (said := capsys.readouterr().err)
    assert "x.wav: not a readable audio file (empty file)" in said
    assert not (tmp_path / "out.jsonl.gz").exists()


# --- fairseq's lists --------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path):
    """30 recordings, and the lines of their list."""
    for number in range(30):
        write(tmp_path / "audio" / f"{number}.wav", number)
    return tmp_path, [f"{number}.wav\t{4000 + 100 * number}" for number in range(30)]


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_a_tsv_list_however_it_was_saved(listed, start, end):
    folder, lines = listed
    text = start + end.join([str(folder / "audio"), *lines[:-1], lines[-1] + ".0", ""])
    (folder / "train.tsv").write_text(text, encoding="utf-8", newline="")
    recordings = list(manifests.tsv_recordings(folder / "train.tsv"))
    assert sorted((r.id, r.num_samples) for r in recordings) == sorted((f"{n}.wav", 4000 + 100 * n) for n in range(30))
    assert recordings[0].sources[0].source == str(folder / "audio" / recordings[0].id)


def test_a_tsv_list_with_a_few_broken_files(listed, tmp_path, capsys):
    folder, lines = listed
    tsv = folder / "train.tsv"
    tsv.write_text("\n".join([str(folder / "audio"), *lines]))
    first = manifests.shuffled(range(30))[3]  # among those whose headers are looked at
    (folder / "audio" / f"{first}.wav").write_bytes(b"")
    assert cli.main(["data", "tsv", str(tsv), str(tmp_path / "out.jsonl.gz")]) == 0
    assert "29 cuts, 0.00 h, 1 bad recordings left out" in capsys.readouterr().out
    for text, message in (
        ("\n".join([str(folder), *lines]), "train.tsv: 20 files were tried, none can be used; the last one: "),
        ("\n\n", "train.tsv: empty; expected a root folder"),
        (f"{folder}\n\n0.wav,4000", "train.tsv, line 3: expected a root folder, then lines of path<tab>number"),
        (f"{folder}\n0.wav\t4000.5", "train.tsv, line 2: expected a root folder"),
    ):
        tsv.write_text(text)
        assert cli.main(["data", "tsv", str(tsv), str(tmp_path / "wrong.jsonl.gz")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong.jsonl.gz").exists()


# --- Shar -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_no_bad_recording(tmp_path, monkeypatch):
    write(tmp_path / "audio" / "a.wav")
    manifests.write_manifest(tmp_path / "cuts.jsonl.gz", manifests.folder_recordings(tmp_path / "audio"))

    def full(self, cut):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifests.SharWriter, "write", full)
    with pytest.raises(UserError, match="shar: No space left on device"):
        manifests.write_shar([str(tmp_path / "cuts.jsonl.gz")], tmp_path / "shar")
    assert not (tmp_path / "shar").exists()


def test_lists_for_run_pretrain(tmp_path, capsys):
    """What the command writes is what run_pretrain reads, path and samples."""
    corpus = helpers_corpora.librispeech(tmp_path / "LibriSpeech", {"train-clean-100": 2, "dev-clean": 1})
    assert cli.main(["data", "lengths", "--parts", "train-clean-100", str(tmp_path), str(tmp_path / "lists")]) == 0
    assert "train-clean-100.csv: 8 recordings" in capsys.readouterr().out
    assert not (tmp_path / "lists/dev-clean.csv").exists()
    names = {"libri_root": str(corpus), "file_path": str(tmp_path / "lists"), "sets": ("train-clean-100",)}
    utterances = read_utterances(PretrainDataConfig(train_batch_size=2, **names))
    assert [one.samples for one in utterances] == [soundfile.info(corpus / one.name).frames for one in utterances]
    assert sorted(corpus / one.name for one in utterances) == sorted((corpus / "train-clean-100").rglob("*.flac"))
    assert cli.main(["data", "lengths", str(corpus), str(tmp_path / "lists"), "--parts", "train-other-500"]) == 2
    assert "no train-other-500 in it; found dev-clean, train-clean-100" in capsys.readouterr().err


def heard(path):
    return sorted(names(stream(path, distortion=CLEAN, max_crop_samples=None).loader(0)))


def test_command_folder_and_tsv(corpus, tmp_path, capsys, caplog):
    (tmp_path / "speech").mkdir()
    for i in range(4):
        write_wave(tmp_path / "speech" / f"{i}.wav", speech_like(8000 + i, i))
    (tmp_path / "speech" / "junk.wav").write_text("no audio")
    out = tmp_path / "out" / "speech.jsonl.gz"
    assert cli.main(["data", "folder", str(tmp_path / "speech"), str(out)]) == 0
    assert "speech.jsonl.gz: 4 cuts, 0.00 h, 1 bad recordings left out" in capsys.readouterr().out
    assert "junk.wav\t" in (tmp_path / "out" / "speech.bad_recordings.tsv").read_text()
    assert heard(out) == [f"{i}.wav" for i in range(4)]
    before = out.read_bytes()
    cli.main(["data", "folder", str(tmp_path / "speech"), str(out)])
    assert out.read_bytes() == before

    tsv = tmp_path / "train.tsv"
    tsv.write_text(f"{tmp_path}/speech\n" + "".join(f"{i}.wav\t{8000 + i}\n" for i in range(4)))
    assert cli.main(["data", "tsv", str(tsv), str(tmp_path / "tsv.jsonl.gz")]) == 0
    assert heard(tmp_path / "tsv.jsonl.gz") == [f"{i}.wav" for i in range(4)]

    capsys.readouterr()
    for text, message in (
        (f"{tmp_path}/speech\n0.wav\t7000\n", "says 7000 samples (at 16000 Hz) of 0.wav, the file has 8000"),
        (f"{tmp_path}/speech\n0.wav 7000\n", "expected a root folder, then lines of path<tab>number"),
        ("", "expected a root folder"),
    ):
        tsv.write_text(text)
        assert cli.main(["data", "tsv", str(tsv), str(tmp_path / "wrong.jsonl.gz")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong.jsonl.gz").exists()
    assert cli.main(["data", "folder", str(tmp_path), str(tmp_path / "cuts.json")]) == 2
    assert "ends in .jsonl.gz" in capsys.readouterr().err


def test_command_corpora_of_lhotse(tmp_path, capsys):
    for part, speaker in (("dev-clean", 84), ("own-part", 7)):
        chapter = tmp_path / "LibriSpeech" / part / str(speaker) / "1"
        for i in range(2):
            write_wave(chapter / f"{speaker}-1-000{i}.flac", speech_like(6000, i))
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(f"{speaker}-1-000{i} HELLO\n" for i in range(2)))
    for part in ("noise", "music"):
        write_wave(tmp_path / "musan" / part / "free" / f"{part}-1.wav", speech_like(9000, 5))
    (tmp_path / "musan" / "music" / "free" / "ANNOTATIONS").write_text("music-1 pop Y someone\n")
    rirs = tmp_path / "RIRS_NOISES"
    write_wave(rirs / "real_rirs_isotropic_noises" / "air_type1_rir_1.wav", speech_like(4000, 6))
    write_wave(rirs / "simulated_rirs" / "smallroom" / "Room001" / "a.wav", speech_like(4000, 7))

    out = tmp_path / "out"
    assert cli.main(["data", "librispeech", str(tmp_path), str(out)]) == 0
    assert cli.main(["data", "musan", str(tmp_path / "musan"), str(out), "--parts", "noise"]) == 0
    assert cli.main(["data", "rirs", str(rirs), str(out), "--parts", "real_rir", "sim_rir"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "librispeech_cuts_dev-clean.jsonl.gz", "librispeech_cuts_own-part.jsonl.gz", "musan_cuts_noise.jsonl.gz",
        "rirs_cuts_real_rir.jsonl.gz", "rirs_cuts_sim_rir.jsonl.gz",
    ]  # fmt: skip
    assert "librispeech_cuts_own-part.jsonl.gz: 2 cuts" in capsys.readouterr().out
    assert heard(out / "librispeech_cuts_dev-clean.jsonl.gz") == ["84-1-0000", "84-1-0001"]
    assert audio_files(out / "musan_cuts_noise.jsonl.gz") == [tmp_path / "musan/noise/free/noise-1.wav"]

    shar = tmp_path / "shar"
    assert cli.main(["data", "shar", str(out / "librispeech_cuts_*.jsonl.gz"), str(shar), "--shard-size", "3"]) == 0
    assert heard(shar) == ["7-1-0000", "7-1-0001", "84-1-0000", "84-1-0001"]

    capsys.readouterr()
    for arguments, message in (
        (["librispeech", str(tmp_path), str(out), "--parts", "train"], "no train in it; found dev-clean, own-part"),
        (["musan", str(rirs), str(out)], "no part of musan in it"),
        (["rirs", str(tmp_path / "nowhere"), str(out)], "no such folder"),
        (["shar", str(out / "musan_cuts_noise.jsonl.gz"), str(shar)], "exists already"),
    ):
        assert cli.main(["data", *arguments]) == 2
        assert message in capsys.readouterr().err
