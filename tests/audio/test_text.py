"""Transcripts, lexicons and lists of lengths: whoever reads them reads the same."""

from __future__ import annotations

import logging

import pytest
import soundfile
from helpers_models import speech_like

from s3prl_ekd import assets
from s3prl_ekd.audio.text import read_lengths, read_lexicon, read_transcripts, write_lengths
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_compat import patches, task_patches
from s3prl_ekd.s3prl_compat.ctc_corpus.libriphone import LibriPhoneDataset
from s3prl_ekd.s3prl_compat.ctc_corpus.librispeech import LibriDataset
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data import PretrainDataConfig, read_utterances
from s3prl_ekd.tasks import lexicon, read_speech

TRANSCRIPT = "1-2-0000 CAT SUN\n1-2-0001 SUN\n"
LEXICON = "SUN\tS AH1 N\nCAT  K AE1 T\nSUN\tS AH0 N\n"
LENGTHS = ",file_path,length,label\n0,train/1/2/1-2-0000.flac,9000,\n1,train/1/2/1-2-0001.flac,8000,\n"

SAVED = {
    "plain": lambda text: text.encode(),
    "no last newline": lambda text: text.rstrip("\n").encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "BOM": lambda text: text.encode("utf-8-sig"),
    "blank lines": lambda text: ("\n" + text.replace("\n", "\n \n\t\n")).encode(),
    "BOM, CRLF and a blank line": lambda text: (text + "\n").replace("\n", "\r\n").encode("utf-8-sig"),
}
"""The same text as editors of several systems write it."""


@pytest.fixture
def corpus(tmp_path):
    """Two utterances in LibriSpeech's layout, with what macOS leaves beside them."""
    chapter = tmp_path / "train" / "1" / "2"
    chapter.mkdir(parents=True)
    for number, samples in enumerate((9000, 8000)):
        soundfile.write(chapter / f"1-2-000{number}.flac", speech_like(samples, number).numpy(), 16000)
        (chapter / f"._1-2-000{number}.flac").write_bytes(b"\0\5\x16\7")
    (chapter / "1-2.trans.txt").write_text(TRANSCRIPT)
    (chapter / "._1-2.trans.txt").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / "lexicon.txt").write_text(LEXICON)
    (tmp_path / "train.csv").write_text(LENGTHS)
    return tmp_path


def _tokenizer(kind, name):
    patches.apply()
    from s3prl.downstream.ctc.text import load_text_encoder

    return load_text_encoder(kind, str(assets.folder(f"vocab/{name}.txt")))


@pytest.mark.parametrize("saved", SAVED)
def test_everyone_reads_the_same_transcripts(corpus, saved):
    (corpus / "train/1/2/1-2.trans.txt").write_bytes(SAVED[saved](TRANSCRIPT))
    expected = [("1-2-0000", ["CAT", "SUN"]), ("1-2-0001", ["SUN"])]
    assert list(read_transcripts(corpus / "train/1/2/1-2.trans.txt")) == expected
    assert read_speech.words(corpus, ["train"]) == {"CAT", "SUN"}
    characters = _tokenizer("character", "character")
    data = LibriDataset(["train"], characters, 1, path=str(corpus))
    assert [(path.stem, characters.decode(labels)) for path, labels in (data[0], data[1])] == [
        ("1-2-0000", "CAT SUN"), ("1-2-0001", "SUN"),
    ]  # fmt: skip


@pytest.mark.parametrize("saved", SAVED)
def test_s3prl_s_asr_reads_them_too(corpus, saved):
    patches.apply()
    from s3prl.downstream.asr.dataset import SequenceDataset
    from s3prl.downstream.asr.dictionary import Dictionary

    task_patches.apply()
    (corpus / "train/1/2/1-2.trans.txt").write_bytes(SAVED[saved](TRANSCRIPT))
    dictionary = Dictionary.load(str(assets.folder("vocab/char.dict")))
    data = SequenceDataset("train", 2, dictionary, str(corpus), str(corpus), train=["train"])
    assert {name: dictionary.string(labels) for name, labels in data.Y.items()} == {
        "1-2-0000": "C A T | S U N |", "1-2-0001": "S U N |",
    }  # fmt: skip


@pytest.mark.parametrize("saved", SAVED)
def test_everyone_reads_the_same_lexicon(corpus, saved):
    path = corpus / "lexicon.txt"
    path.write_bytes(SAVED[saved](LEXICON))
    expected = {"SUN": ("S", "AH1", "N"), "CAT": ("K", "AE1", "T")}
    assert read_lexicon(path, lexicon.phonemes()) == read_lexicon([path]) == expected
    phones = _tokenizer("word", "phoneme")
    data = LibriPhoneDataset(["train"], phones, 1, path=str(corpus), lexicon=str(path))
    assert [phones.decode(labels) for _, labels in (data[0], data[1])] == ["K AE1 T S AH1 N", "S AH1 N"]
    lexicon.write_lexicon(corpus / "out.txt", ["SUN", "CAT"], [path], fallback=False)
    assert (corpus / "out.txt").read_text() == "CAT\tK AE1 T\nSUN\tS AH1 N\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CAT\n", "line 1: 'CAT' has no phonemes"),
        ("A\tAH0\n\nCAT\tK AE1 Q\n", "line 3: 'Q' is not one of the 71"),
        ("A\tAH0\n\nCAT\tK AE T\n", r"1 of 2 vowels have no mark of stress \(line 3: 'AE'\); take one that marks it"),
    ],
)
def test_malformed_lexicon(tmp_path, text, message):
    (tmp_path / "lexicon.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_lexicon(tmp_path / "lexicon.txt", lexicon.phonemes())


def test_a_vowel_here_and_there_may_lack_its_stress(tmp_path, caplog):
    """As in lexicons that people have edited; the rest of the line stays, and what was assumed is said."""
    (tmp_path / "lexicon.txt").write_text("A\tAH0\n" * 9 + "HERE\tHH IH AH0\n")
    assert read_lexicon(tmp_path / "lexicon.txt", lexicon.phonemes())["HERE"] == ("HH", "IH0", "AH0")
    assert (
        "1 of 11 vowels have no mark of stress and are taken for unstressed, the first in line 10: 'IH'" in caplog.text
    )


def pretrain(corpus, *sets):
    config = {"train_batch_size": 2, "libri_root": str(corpus), "file_path": str(corpus), "sets": list(sets)}
    return PretrainDataConfig.from_mapping(config)


@pytest.mark.parametrize("saved", SAVED)
def test_everyone_reads_the_same_lengths(corpus, saved):
    (corpus / "train.csv").write_bytes(SAVED[saved](LENGTHS.replace("9000", "9000.0")))
    expected = [("train/1/2/1-2-0000.flac", 9000), ("train/1/2/1-2-0001.flac", 8000)]
    assert read_lengths(corpus / "train.csv") == expected
    assert [(utterance.name, utterance.samples) for utterance in read_utterances(pretrain(corpus, "train"))] == expected
    assert read_speech.lengths_folder(corpus, ["train"], corpus, corpus / "made") == corpus
    write_lengths(corpus, "train", corpus / "again.csv")
    assert read_lengths(corpus / "again.csv") == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LENGTHS.replace(",", ";"), "separated by semicolons; save it with commas"),
        (LENGTHS.replace(",", "\t"), "separated by tabs; save it with commas"),
        (LENGTHS.partition("\n")[2], "expected the columns file_path and length"),
        (LENGTHS.replace("8000", "8000.5"), r"line 3: .*'8000\.5' is no number of samples"),
        (LENGTHS.replace("8000", "nan"), "line 3: .*'nan' is no number of samples"),
        ("x" * 200_000 + LENGTHS, r"no CSV \(field larger than field limit"),
        (LENGTHS.replace("8000", "1e30"), "line 3: .*'1e30' is no number of samples"),
        (LENGTHS.replace("8000", "inf"), "line 3: .*'inf' is no number of samples"),
        (LENGTHS.replace("9000", ""), "line 2: expected a file_path and its length"),
        (LENGTHS.replace(",8000,", "\n"), "line 3: expected a file_path and its length"),
        (LENGTHS + "2," + 200_000 * "x", "no CSV .field larger than field limit"),
        (LENGTHS.replace("train", "træin").encode("latin-1"), "line 2: not UTF-8"),
    ],
    ids=[
        "semicolons",
        "tabs",
        "no header",
        "half",
        "nan",
        "no csv",
        "absurd",
        "inf",
        "no length",
        "short",
        "long",
        "latin-1",
    ],
)
def test_lists_of_lengths_that_cannot_be_used(corpus, data, message):
    (corpus / "train.csv").write_bytes(data if isinstance(data, bytes) else data.encode())
    for read in (
        lambda: read_utterances(pretrain(corpus, "train")),
        lambda: read_speech.lengths_folder(corpus, ["train"], corpus, corpus / "made"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert str(corpus / "train.csv") in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n", ",file_path,length,label\n"])
def test_an_empty_list_beside_a_good_one_is_named(corpus, text, caplog):
    (corpus / "none.csv").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert len(read_utterances(pretrain(corpus, "train", "none"))) == 2
    assert caplog.messages == [f"{corpus / 'none.csv'}: empty, no recording in it"]
    with pytest.raises(UserError, match="no recording of at least 400 samples"):
        read_utterances(pretrain(corpus, "none"))
    with pytest.raises(UserError, match=r"none\.csv: empty; leave --len-for-bucket out"):
        read_speech.lengths_folder(corpus, ["train", "none"], corpus, corpus / "made")
