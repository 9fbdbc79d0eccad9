"""Small corpora of synthetic sound in the layouts that the real ones are distributed in.

LibriSpeech and its lexicon (OpenSLR 12 and 11), VoxCeleb1, IEMOCAP, Speech Commands and MUSAN (OpenSLR 17), each a
second or two long an utterance. Equal arguments give equal bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import soundfile
from helpers_models import speech_like

RATE = 16000
WORDS = {
    "A": ("AH0", "EY1"),
    "CAT": ("K AE1 T",),
    "DOG": ("D AO1 G",),
    "HOUSE": ("HH AW1 S",),
    "READ": ("R EH1 D", "R IY1 D"),
    "RIVER": ("R IH1 V ER0",),
    "SUN": ("S AH1 N",),
    "THE": ("DH AH0", "DH IY0"),
}
"""Words of the transcripts and their pronunciations."""
LIBRISPEECH = {"train-clean-100": 2, "train-clean-360": 1, "train-other-500": 1, "dev-clean": 1, "test-clean": 1}
"""Splits of LibriSpeech and how many speakers each gets."""
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
"""Words that keyword spotting tells from others."""
EMOTIONS = ("neu", "hap", "exc", "ang", "sad", "fru", "xxx")
"""Emotions of IEMOCAP's turns, SUPERB's four classes (excited speech counts as happy) and two that it leaves out."""


def librispeech(root: Path, splits: Mapping[str, int] = LIBRISPEECH, utterances: int = 4) -> Path:
    """``root/SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NNNN.flac`` with ``SPEAKER-CHAPTER.trans.txt``.

    Args:
        root: the folder ``LibriSpeech``, which is made.
        splits: split -> number of speakers.
        utterances: of each speaker, from 0.9 s on, each a little longer than the one before.

    Returns:
        ``root``.
    """
    speakers = [split for split, count in splits.items() for _ in range(count)]
    for number, split in enumerate(speakers):
        speaker, chapter = str(19 + 7 * number), str(100 + number)
        folder = root / split / speaker / chapter
        folder.mkdir(parents=True)
        lines = []
        for index in range(utterances):
            name = f"{speaker}-{chapter}-{index:04d}"
            _write(folder / f"{name}.flac", 14400 + 800 * index + 320 * number)
            lines.append(f"{name} {' '.join(_sentence(number + index))}\n")
        _text(folder / f"{speaker}-{chapter}.trans.txt", "".join(lines))
    listing = "".join(f"{19 + 7 * number} | F | {split} | 0.1 | A Name\n" for number, split in enumerate(speakers))
    _text(root / "SPEAKERS.TXT", f"; ID |SEX| SUBSET | MINUTES | NAME\n{listing}")
    _text(root / "README.TXT", "LibriSpeech\n")
    return root


def lexicon(path: Path) -> Path:
    """OpenSLR 11's ``librispeech-lexicon.txt``: a word, a tab and phonemes; more lines for more pronunciations."""
    _text(path, "".join(f"{word}\t{phonemes}\n" for word, found in WORDS.items() for phonemes in found))
    return path


def voxceleb1(root: Path, speakers: int = 3, videos: int = 3) -> Path:
    """``root/{dev,test}/wav/idNNNNN/VIDEO/NNNNN.wav`` and, beside them, ``root/iden_split.txt``.

    Args:
        root: the folder that is made.
        speakers: of whom the last one's files are below ``test``, where VoxCeleb1 keeps its verification speakers.
        videos: of each speaker, two files each; the last but one is for development, the last one for testing.

    Returns:
        ``root``.
    """
    lines = []
    for number in range(speakers):
        for video in range(videos):
            for index in range(2):
                name = f"id{10001 + number}/0aVdEo{number}_{video}x/{index + 1:05d}.wav"
                part = "test" if number == speakers - 1 else "dev"
                _write(root / part / "wav" / name, 16000 + 1600 * video)
                kind = {videos - 2: 2, videos - 1: 3}.get(video, 1)
                lines.append(f"{kind} {name}\n")
    _text(root / "iden_split.txt", "".join(lines))
    return root


def iemocap(root: Path, turns: int = 2) -> Path:
    """``root/SessionN/{sentences/wav/DIALOG/TURN.wav, dialog/EmoEvaluation/DIALOG.txt}`` for five sessions.

    Args:
        root: the folder ``IEMOCAP_full_release``, which is made.
        turns: of each of :data:`EMOTIONS` in each session.

    Returns:
        ``root``.
    """
    for session in range(1, 6):
        dialog = f"Ses{session:02d}F_impro01"
        folder = root / f"Session{session}"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n", "\n"]
        for index, emotion in enumerate(EMOTIONS * turns):
            turn = f"{dialog}_{'FM'[index % 2]}{index:03d}"
            _write(folder / "sentences" / "wav" / dialog / f"{turn}.wav", 12800 + 1600 * (index % 4))
            lines += [
                f"[{index:.4f} - {index + 0.9:.4f}]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]\n",
                "C-E2:\tNeutral;\t()\n",
                "C-E3:\tNeutral; Happiness;\t()\n",
                "A-E3:\tval 3; act 2; dom  2;\t()\n",
                "\n",
            ]
        _text(folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt", "".join(lines))
        _write(folder / "dialog" / "wav" / f"{dialog}.wav", 16000)
        _text(folder / "dialog" / "transcriptions" / f"{dialog}.txt", f"{dialog}_F000 [000.0000-000.9000]: A CAT\n")
    _text(root / "README.txt", "IEMOCAP\n")
    return root


def speech_commands(root: Path, speakers: int = 4) -> Path:
    """``root/speech_commands_v0.01/WORD/NAME_nohash_0.wav`` and ``root/speech_commands_test_set_v0.01/CLASS/``.

    Args:
        root: holds the two folders, which are made.
        speakers: by their names, the first one is for development and the others are for training.

    Returns:
        ``root``.
    """
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    for word in (*KEYWORDS, "bed", "wow"):
        for number in range(speakers):
            _write(train / word / f"{zlib.crc32(str(number).encode()):08x}_nohash_0.wav", 11200 + 400 * number)
    for word in (*KEYWORDS, "_unknown_", "_silence_"):
        _write(test / word / "0a7c2a8d_nohash_0.wav", 16000)
    _write(train / "_background_noise_" / "white_noise.wav", 32000)
    _text(train / "_background_noise_" / "README.md", "noise\n")
    for name in ("validation_list.txt", "testing_list.txt", "README.md", "LICENSE"):
        _text(train / name, "")
    return root


def musan(root: Path, recordings: int = 1) -> Path:
    """``root/{noise,music,speech}/COLLECTION/KIND-COLLECTION-NNNN.wav`` with their lists, ``recordings`` of each."""
    for kind, collections in {
        "noise": ("free-sound", "sound-bible"), "music": ("fma", "hd-classical"), "speech": ("librivox", "us-gov"),
    }.items():  # fmt: skip
        for collection in collections:
            for index in range(recordings):
                _write(root / kind / collection / f"{kind}-{collection}-{index:04d}.wav", 48000)
            _text(root / kind / collection / "LICENSE", "public domain\n")
            _text(root / kind / collection / "ANNOTATIONS", "")
    _text(root / "README", "MUSAN\n")
    return root


def _sentence(number: int) -> list[str]:
    """Three or four words; all words come up in a few sentences."""
    words = sorted(WORDS)
    return [words[(3 * number + step * (1 + number % 3)) % len(words)] for step in range(3 + number % 2)]


def _write(path: Path, samples: int) -> None:
    """16 bits, mono, 16 kHz; what is heard depends on the name alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, speech_like(samples, seed=zlib.crc32(path.name.encode())).numpy(), RATE, subtype="PCM_16")


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
