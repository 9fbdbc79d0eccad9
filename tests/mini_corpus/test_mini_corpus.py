"""The synthetic mini corpus: rebuilt bit for bit, real speech, labels that fit it, layouts that s3prl reads."""

from __future__ import annotations

import collections
import csv
import json
import logging
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from s3prl_ekd import assets, cli
from s3prl_ekd.arpabet import MispronouncedError, pronounce, to_arpabet
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.config.recipe import DistortionConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.espeak import Espeak
from s3prl_ekd.mini_corpus import plan
from s3prl_ekd.mini_corpus.build import add_speech_commands, build
from s3prl_ekd.mini_corpus.config import MiniCorpusConfig
from s3prl_ekd.mini_corpus.recording import Studio, make_lexicon
from s3prl_ekd.mini_corpus.sentences import Pool, pool, vocabulary
from s3prl_ekd.tasks import TASKS
from s3prl_ekd.tasks.corpora import Split, mini_corpora

SPLITS = ("distil-train", "train-clean", "dev-clean", "test-clean", "test-noisy", "hidden-clean", "hidden-noisy")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """The tiny mini corpus, by the command."""
    out = tmp_path_factory.mktemp("mini") / "corpus"
    assert cli.main(["mini-corpus", str(out), "--size", "tiny"]) == 0
    return out


@pytest.fixture(scope="module")
def espeak():
    with Espeak() as espeak:
        yield espeak


def read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000
    assert samples.ndim == 1
    return samples


def transcripts(corpus: Path, split: str) -> dict[str, str]:
    lines = [
        line
        for path in sorted((corpus / "LibriSpeech" / split).rglob("*.trans.txt"))
        for line in path.read_text().splitlines()
    ]
    return dict(line.split(" ", 1) for line in lines)


def alignments(corpus: Path, split: str) -> dict[str, list[tuple[str, int, int]]]:
    table = {}
    for line in (corpus / "alignments" / f"{split}.tsv").read_text().splitlines():
        name, labels = line.split("\t")
        fields = [label.split() for label in labels.split("; ")]
        table[name] = [(phone, int(start), int(end)) for phone, start, end in fields]
    return table


def lexicon(corpus: Path) -> dict[str, list[str]]:
    lines = (corpus / "lexicon.txt").read_text().splitlines()
    return {word: phones.split() for word, phones in (line.split("\t") for line in lines)}


# -------------------------------------------------------------------------------------------------- building


def test_rebuild_is_bit_identical_whatever_the_number_of_processes(corpus, tmp_path):
    again = build(tmp_path / "again", MiniCorpusConfig.tiny(), jobs=2)
    add_speech_commands(again, MiniCorpusConfig.tiny(), jobs=2)
    names = {path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file()}
    assert names == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert [name for name in sorted(names) if (corpus / name).read_bytes() != (again / name).read_bytes()] == []


def test_speech_does_not_depend_on_what_was_said_before(espeak):
    def say(text: str) -> np.ndarray:
        return espeak.speak(text, variant="breath 3 3\nroughness 3\nflutter 8", words_per_minute=150, seed=1).samples

    first = say("the red boat")
    assert not np.array_equal(first, say("the blue boat"))
    assert np.array_equal(first, say("the red boat"))


def test_same_corpus_is_kept(corpus, caplog):
    before = (corpus / "corpus.json").stat().st_mtime_ns, (corpus / "lexicon.txt").stat().st_ino
    with caplog.at_level(logging.INFO):
        build(corpus, MiniCorpusConfig.tiny())
    assert [record for record in caplog.records if "kept" in record.message]
    assert before == ((corpus / "corpus.json").stat().st_mtime_ns, (corpus / "lexicon.txt").stat().st_ino)


def test_another_seed_needs_force(corpus):
    with pytest.raises(UserError, match="--force"):
        build(corpus, MiniCorpusConfig.tiny(seed=1))


def test_damaged_corpus_is_replaced_only_by_force(tmp_path, monkeypatch):
    manifest = {"kind": "s3prl-ekd mini corpus", "format": 1, "settings": asdict(MiniCorpusConfig.tiny()), "files": 9}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "corpus.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="1 files instead of 9"):
        build(tmp_path / "out", MiniCorpusConfig.tiny())
    monkeypatch.setattr("s3prl_ekd.mini_corpus.build._write", lambda root, *_: (root.mkdir(), (root / "new").touch()))
    build(tmp_path / "out", MiniCorpusConfig.tiny(), force=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_a_corpus_of_before_a_part_was_added_is_the_same_and_gets_it(tiny_corpus, tmp_path, caplog):
    old = shutil.copytree(tiny_corpus, tmp_path / "old")
    description = (old / "corpus.json").read_bytes()
    asked = (mini_corpora(old), frozenset(Split), TASKS["ks"].template("mini"), tmp_path)
    with pytest.raises(UserError, match=rf"SpeechCommands/.*; make it with: s3prl-ekd mini-corpus {old}"):
        TASKS["ks"].experiments(*asked)
    add_speech_commands(old, MiniCorpusConfig.tiny())
    assert (old / "corpus.json").read_bytes() == description
    assert build(old, MiniCorpusConfig.tiny()) == old
    (experiment,) = TASKS["ks"].experiments(*asked)
    assert [test.name for test in experiment.tests] == ["test", "hidden"]
    (old / "lexicon.txt").unlink()  # the files of the part do not stand for missing ones
    with pytest.raises(UserError, match="files instead of"):
        build(old, MiniCorpusConfig.tiny())


@pytest.mark.parametrize("force", [False, True])
def test_something_else_is_never_replaced(tmp_path, force):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(UserError, match="something else"):
        build(tmp_path, MiniCorpusConfig.tiny(), force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    record, calls = Studio.record, []

    def interrupted(self, recording):
        calls.append(recording)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return record(self, recording)

    monkeypatch.setattr(Studio, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", MiniCorpusConfig.tiny())
    assert list(tmp_path.iterdir()) == []


def test_missing_espeak_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert cli.main(["mini-corpus", str(tmp_path / "out")]) == 2
    assert "pip install 's3prl-ekd[mini]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_said_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        build(tmp_path / "file" / "out", MiniCorpusConfig.tiny())


# --------------------------------------------------------------------------------------------------- content


def test_default_plan_shares_neither_speakers_nor_sentences():
    config = MiniCorpusConfig()
    parts = [*plan.libri_parts(config), *plan.sid_parts(config), *plan.er_parts(config)]
    speakers = collections.Counter(
        speaker for part in parts for speaker in {recording.speaker for recording in part.recordings}
    )
    assert set(speakers.values()) == {1}
    assert len(speakers) == 48 + 24 + 6 + 8 + 8 + 2 * 20 + 8 + 2 * 4

    sentences = {part.name: {recording.text for recording in part.recordings} for part in parts}
    trained = [name for name in sentences if "train" in name or name == "VoxCeleb1"]
    hidden = [name for name in sentences if "hidden" in name]
    judged = [name for name in sentences if name not in trained and name not in hidden]
    assert (len(trained), len(judged), len(hidden)) == (4, 3, 3)
    for one, other in ((trained, judged), (trained, hidden), (judged, hidden)):
        assert not set().union(*(sentences[n] for n in one)) & set().union(*(sentences[n] for n in other))
    assert {word for texts in sentences.values() for text in texts for word in text.split()} == set(vocabulary())


def test_pools_have_their_shares():
    counts = collections.Counter(pool(f"sentence {number}") for number in range(4000))
    assert counts[Pool.TRAIN] / 4000 == pytest.approx(0.7, abs=0.05)
    assert all(0.05 < counts[one] / 4000 < 0.15 for one in (Pool.DEV, Pool.TEST, Pool.HIDDEN))


def test_every_recording_is_speech(corpus):
    for path in sorted(
        path
        for path in corpus.rglob("*")
        if path.suffix in (".wav", ".flac") and not {"rirs", "SpeechCommands"} & {*path.parts}
    ):
        assert soundfile.info(path).subtype == "PCM_16"
        samples = read(path)
        assert 0.02 < np.abs(samples).max() < 0.96, path
        assert abs(samples.mean()) < 0.01, path
        if "noise" not in path.parent.name:
            frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
            decibel = 10 * np.log10(np.square(frames).mean(axis=1))
            assert decibel.min() > -75, path  # no digital silence, which log spectra cannot take
            assert decibel.max() > -30, path
            assert 1.0 < len(samples) / 16000 < 4.5, path


def test_noise_and_rooms_for_distorted_training(corpus):
    config = DistortionConfig.from_mapping(
        {
            "noise": {"folder": str(corpus / "noise"), "probability": 1.0},
            "reverberation": {"folder": str(corpus / "rirs"), "probability": 1.0},
        }
    )
    assert {path.stem.split("-")[0] for path in (corpus / "noise").iterdir()} == {"babble", "pink", "hum"}
    assert {path.stem.split("-")[0] for path in (corpus / "noise-hidden").iterdir()} == {"tones", "wind"}
    assert all(np.abs(read(path)).max() > 0.9 for path in (corpus / "rirs").iterdir())  # all 16 bits are used
    clean = torch.from_numpy(read(next((corpus / "LibriSpeech" / "distil-train").rglob("*.flac"))))
    distorted = Distorter(config)(clean, epoch=0, utterance="x")
    assert distorted.shape == clean.shape
    assert not torch.allclose(distorted, clean, atol=0.01)


def test_emotions_are_said_differently(corpus):
    lengths, levels = collections.defaultdict(list), collections.defaultdict(list)
    for split in ("train", "test"):
        table = json.loads((corpus / "IEMOCAP/meta_data/Session1" / f"{split}_meta_data.json").read_text())
        for row in table["meta_data"]:
            samples = read(corpus / "IEMOCAP" / row["path"])
            lengths[row["label"]].append(len(samples))
            levels[row["label"]].append(10 * np.log10(np.square(samples).mean()))
    assert np.mean(lengths["sad"]) > np.mean(lengths["ang"])
    assert np.mean(levels["ang"]) > np.mean(levels["sad"]) + 3
    assert min(levels["ang"]) < max(levels["sad"]) + 6  # takes scatter: loudness alone does not tell


def test_every_word_has_phones_of_the_vocabulary(corpus):
    phones = set(assets.folder("vocab/phoneme.txt").read_text().split())
    table = lexicon(corpus)
    assert sorted(table) == sorted(word.upper() for word in vocabulary())
    assert {phone for word in table.values() for phone in word} <= phones
    assert table["TELEVISION"] == ["T", "EH1", "L", "IH0", "V", "IH2", "ZH", "AH0", "N"]


@pytest.mark.parametrize(
    ("mnemonic", "phones"),
    [("'O@", ("AO1", "R")), (",aI", ("AY2",)), ("tS", ("CH",)), ("'aI3", ("AY1", "ER0")), (";", ())],
)
def test_phones(mnemonic, phones):
    assert to_arpabet(mnemonic) == phones


def test_a_word_outside_the_vocabulary(espeak):
    assert pronounce(espeak, "fire") == ("F", "AY1", "ER0")


def test_another_espeak_is_said_in_one_line(espeak):
    lexicon = make_lexicon(espeak, vocabulary())
    recording = plan.babble_recordings(MiniCorpusConfig.tiny())[0]
    wrong = dict.fromkeys(lexicon, ("B", "AH1"))
    with pytest.raises(MispronouncedError, match=r"needs version 1\.52"):
        Studio(espeak, wrong).record(recording)


# --------------------------------------------------------------------------------------- LibriSpeech: PR and ASR


@pytest.mark.parametrize("split", SPLITS)
def test_libri_tables_agree_with_the_audio(corpus, split):
    texts, labels, words = transcripts(corpus, split), alignments(corpus, split), lexicon(corpus)
    files = {path.stem: path for path in (corpus / "LibriSpeech" / split).rglob("*.flac")}
    with open(corpus / "len_for_bucket" / f"{split}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(texts) == set(labels) == set(files) == {Path(row["file_path"]).stem for row in rows}
    assert [row[""] for row in rows] == [str(index) for index in range(len(files))]
    for row in rows:
        assert soundfile.info(corpus / "LibriSpeech" / row["file_path"]).frames == int(row["length"])
    for name, path in files.items():
        speaker, chapter, _ = name.split("-")
        assert path.parts[-3:-1] == (speaker, chapter)
        assert labels[name][0][1] == 0
        assert labels[name][-1][2] == soundfile.info(path).frames
        assert all(a[2] == b[1] for a, b in zip(labels[name], labels[name][1:], strict=False))
        spoken = [phone for phone, _, _ in labels[name] if phone != "SIL"]
        assert spoken == [phone for word in texts[name].split() for phone in words[word]]


def test_labels_lie_where_the_sounds_are(corpus):
    """Vowels are loud, silence is not, S hisses: 40 ms off and this fails."""
    level, hiss = collections.defaultdict(list), collections.defaultdict(list)
    for path in (corpus / "LibriSpeech" / "distil-train").rglob("*.flac"):
        samples = read(path)
        for phone, start, end in alignments(corpus, "distil-train")[path.stem]:
            kind = "vowel" if phone[-1].isdigit() else phone
            piece = samples[start:end]
            if len(piece) < 320:
                continue
            spectrum = np.square(np.abs(np.fft.rfft(piece * np.hanning(len(piece)))))
            level[kind].append(10 * np.log10(np.square(piece).mean()))
            hiss[kind].append(spectrum[len(spectrum) // 2 :].sum() / spectrum.sum())
    assert np.max(level["SIL"]) < -60
    assert np.percentile(level["vowel"], 10) > -45
    assert np.percentile(hiss["S"], 25) > 0.5
    assert np.percentile(hiss["vowel"], 90) < 0.25


@pytest.mark.parametrize(("clean", "noisy"), [("test-clean", "test-noisy"), ("hidden-clean", "hidden-noisy")])
def test_noisy_speech_is_the_clean_one_distorted_in_place(corpus, clean, noisy):
    assert transcripts(corpus, clean) == transcripts(corpus, noisy)
    assert alignments(corpus, clean) == alignments(corpus, noisy)
    for path in (corpus / "LibriSpeech" / clean).rglob("*.flac"):
        one, other = read(path), read(Path(str(path).replace(f"/{clean}/", f"/{noisy}/")))
        assert len(one) == len(other)
        spectra = np.fft.rfft(other, 2 * len(one)) * np.fft.rfft(one, 2 * len(one)).conj()
        # Half whitened, so that the direct sound stands out against the pitch periods and a room's reflections.
        lag = np.abs(np.fft.irfft(spectra / np.sqrt(np.abs(spectra) + 1e-12))).argmax()
        assert min(lag, 2 * len(one) - lag) <= 160, path  # half a frame
        similarity = np.abs(np.fft.irfft(spectra)).max() / np.linalg.norm(one) / np.linalg.norm(other)
        assert 0.1 < similarity < 0.999, path


# ----------------------------------------------------------------------------------------- s3prl's own readers


@pytest.fixture(scope="module")
def s3prl_tasks():
    """s3prl's task packages, patched to import."""
    from s3prl_ekd.s3prl_compat import patches, task_patches

    patches.apply()
    task_patches.apply()
    return pytest.importorskip("s3prl.downstream")


@pytest.mark.parametrize("root", ["VoxCeleb1", "VoxCeleb1-hidden"])
def test_sid_as_s3prl_reads_it(corpus, root, s3prl_tasks, tmp_path, monkeypatch):
    from s3prl.downstream.voxceleb1 import dataset

    monkeypatch.setattr(dataset, "CACHE_PATH", str(tmp_path))
    config = MiniCorpusConfig.tiny()
    folder = corpus / root
    names = {}
    for split, count in (("train", config.sid_train), ("dev", config.sid_dev), ("test", config.sid_test)):
        data = dataset.SpeakerClassifiDataset(split, folder, folder / "iden_split.txt", 8000)
        assert collections.Counter(data.label) == dict.fromkeys(range(config.sid_speakers), count)
        names[split] = {Path(path).relative_to(folder) for path in data.dataset}
        wave, label, _ = data[0]
        assert wave.shape == (8000,)
        assert label == 0
    assert not names["train"] & names["test"]
    assert not {path.parent for path in names["train"]} & {path.parent for path in names["test"]}  # other videos


@pytest.mark.parametrize("root", ["IEMOCAP", "IEMOCAP-hidden"])
def test_er_as_s3prl_reads_it(corpus, root, s3prl_tasks):
    from s3prl.downstream.emotion.dataset import IEMOCAPDataset

    speakers = {}
    for split in ("train", "test"):
        data = IEMOCAPDataset(corpus / root, corpus / root / "meta_data" / "Session1" / f"{split}_meta_data.json")
        assert data.class_dict == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
        counts = collections.Counter(data[index][1] for index in range(len(data)))
        assert len(counts) == 4
        assert len(set(counts.values())) == 1
        speakers[split] = {row["speaker"] for row in data.meta_data}
        stems = [data[index][2] for index in range(len(data))]
        assert len(set(stems)) == len(stems)  # s3prl names its predictions by them
    assert not speakers["train"] & speakers["test"]


@pytest.mark.parametrize("test_set", ["speech_commands_test_set_v0.01", "hidden"])
def test_ks_as_s3prl_reads_it(corpus, s3prl_tasks, test_set):
    from s3prl.downstream.speech_commands import dataset, expert

    config, root = MiniCorpusConfig.tiny(), corpus / "SpeechCommands/speech_commands_v0.01"
    sets = expert.split_dataset(root)
    speakers = [{path.name.split("_")[0] for _, path in files} for files in sets]
    assert [len(names) for names in speakers] == [config.train_clean.speakers, config.dev_clean.speakers]
    assert not speakers[0] & speakers[1]
    assert sets[0] == sorted(sets[0])
    train = dataset.SpeechCommandsDataset(sets[0], speech_commands_root=root)
    assert {name for name, _ in train.data} == {*dataset.CLASSES}
    wave, label, name = train[0]
    word, file = name.split("-", 1)
    assert dataset.CLASSES[label] in (word, "_unknown_")
    assert wave == pytest.approx(read(root / word / file) * 10 ** (-3 / 20))
    assert 0.4 < len(wave) / 16000 < 1.5
    silence, label, _ = train[len(train) - 1]
    assert (len(silence), dataset.CLASSES[label]) == (16000, "_silence_")
    test = dataset.SpeechCommandsTestingDataset(speech_commands_test_root=corpus / "SpeechCommands" / test_set)
    counts = collections.Counter(name for name, _ in test.data)
    assert counts == dict.fromkeys(dataset.CLASSES, 2 * config.test_clean.speakers)
    assert not {path.name.split("_")[0] for _, path in test.data} & (speakers[0] | speakers[1])


def test_asr_as_s3prl_reads_it(corpus, s3prl_tasks):
    from s3prl.downstream.asr.dataset import SequenceDataset
    from s3prl.downstream.asr.dictionary import Dictionary

    dictionary = Dictionary.load(str(assets.folder("vocab/char.dict")))
    for split in SPLITS:
        data = SequenceDataset("x", 1, dictionary, corpus / "LibriSpeech", corpus / "len_for_bucket", x=[split])
        assert len(data) == len(transcripts(corpus, split))
        waves, labels, names = data[0]
        text = dictionary.string(labels[0]).replace(" ", "").replace("|", " ").strip()
        assert text == transcripts(corpus, split)[names[0]]
        assert len(waves[0]) > 16000


def test_pr_as_the_ctc_task_reads_it(corpus, s3prl_tasks):
    from s3prl.downstream.ctc.text import load_text_encoder

    from s3prl_ekd.s3prl_compat.ctc_corpus.libriphone import LibriPhoneDataset

    tokenizer = load_text_encoder("word", str(assets.folder("vocab/phoneme.txt")))
    words = lexicon(corpus)
    for split in SPLITS:
        data = LibriPhoneDataset([split], tokenizer, 1, str(corpus / "LibriSpeech"), [str(corpus / "lexicon.txt")])
        texts = transcripts(corpus, split)
        assert len(data) == len(texts)
        path, labels = data[0]
        expected = [phone for word in texts[Path(path).stem].split() for phone in words[word]]
        assert tokenizer.decode(labels).split() == expected
