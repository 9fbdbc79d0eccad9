"""Speak the planned recordings into files and keep what is already there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.audio.acoustics import generated_impulse_response
from s3prl_ekd.audio.randomness import keyed_generator
from s3prl_ekd.errors import UserError
from s3prl_ekd.espeak import Espeak
from s3prl_ekd.files import atomic_path
from s3prl_ekd.mini_corpus import layouts, plan, sounds, speech_commands
from s3prl_ekd.mini_corpus.config import MiniCorpusConfig
from s3prl_ekd.mini_corpus.layouts import Spoken
from s3prl_ekd.mini_corpus.recording import Lexicon, Recording, Studio, make_lexicon
from s3prl_ekd.mini_corpus.sentences import vocabulary
from s3prl_ekd.processes import die_with_parent

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever the same settings would give another corpus."""

_MANIFEST = "corpus.json"
_KIND = "s3prl-ekd mini corpus"
_BABBLERS = 6
_Item = TypeVar("_Item")


class OtherCorpusError(UserError):
    """The folder holds a mini corpus with other settings, or an incomplete one."""


def build(out: str | Path, config: MiniCorpusConfig, *, jobs: int = 1, force: bool = False) -> Path:
    """Write the mini corpus to ``out``, or keep the one that is there if it is the same.

    Args:
        out: folder to write; it appears only when it is complete.
        config: seed and sizes.
        jobs: processes that speak; the result does not depend on it.
        force: replace a mini corpus with other settings (never anything else).

    Raises:
        UserError: ``out`` holds something else, or espeak-ng is missing.
    """
    out = Path(out)
    if not _is_kept(out, config, force=force):
        with _writing(out.resolve()) as (espeak, root):
            _write(root, config, espeak, jobs)
    return out


def add_speech_commands(out: str | Path, config: MiniCorpusConfig, *, jobs: int = 1) -> None:
    """Add :mod:`~s3prl_ekd.mini_corpus.speech_commands` to the mini corpus in ``out``, unless it is there already.

    It came after :data:`FORMAT` 1: an older corpus gets it too, and stays what it is otherwise. The arguments are those
    that the corpus was built with (:func:`build`).

    Raises:
        UserError: ``out`` cannot be written, or espeak-ng is missing.
    """
    folder = Path(out).resolve() / speech_commands.FOLDER
    if folder.exists():
        return
    recordings = list(speech_commands.recordings(config))
    with _writing(folder) as (espeak, root):
        root.mkdir()
        studio = Studio(espeak, make_lexicon(espeak, speech_commands.WORDS))
        spoken = _progress(_speak_all(root, recordings, studio, jobs), len(recordings), speech_commands.FOLDER)
        minutes = sum(one.samples for one in spoken) / SAMPLE_RATE / 60
        for path, wave in speech_commands.noises(config):
            _write_audio(root / path, wave)
    logger.info("%s: %.0f minutes of speech in %d files", folder, minutes, len(recordings))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[tuple[Espeak, Path]]:
    """espeak and what becomes ``folder`` at the end of the block, which computes the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads may differ in the last bit
    try:
        with Espeak() as espeak, atomic_path(folder) as root:
            yield espeak, root
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        torch.set_num_threads(threads)


def _is_kept(out: Path, config: MiniCorpusConfig, *, force: bool) -> bool:
    """Whether ``out`` already holds this corpus."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        manifest = json.loads((out / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise UserError(f"{out} holds something else than a mini corpus; give a folder that does not exist yet")
    if force:
        return False
    if (manifest.get("format"), manifest.get("settings")) != (FORMAT, asdict(config)):
        raise OtherCorpusError(
            f"{out} is a mini corpus with other settings; add --force to replace it, or give another folder"
        )
    added = out / speech_commands.FOLDER
    files = sum(1 for path in out.rglob("*") if path.is_file() and not path.is_relative_to(added))
    if files < manifest["files"]:  # more may be there: manifests that its user has made
        raise OtherCorpusError(f"{out} has {files} files instead of {manifest['files']}; add --force to write it again")
    logger.info("%s is this mini corpus already, kept", out)
    return True


def _speak(studio: Studio, root: Path, recording: Recording) -> Spoken:
    wave, labels = studio.record(recording)
    _write_audio(root / recording.path, wave)
    return Spoken(recording=recording, samples=len(wave), labels=labels)


_speak_in_process: Callable[[Recording], Spoken]
"""Set where a process of the pool starts."""


def _start_process(root: Path, lexicon: Lexicon) -> None:
    global _speak_in_process
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its processes
    torch.set_num_threads(1)
    _speak_in_process = partial(_speak, Studio(Espeak(), lexicon), root)


def _speak_one(recording: Recording) -> Spoken:
    return _speak_in_process(recording)


def _speak_all(root: Path, recordings: list[Recording], studio: Studio, jobs: int) -> Iterator[Spoken]:
    """Speak all recordings, here or in ``jobs`` processes; yields them in their order."""
    if jobs == 1:
        yield from map(partial(_speak, studio, root), recordings)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _start_process, (root, studio.lexicon)) as pool:
        yield from pool.map(_speak_one, recordings, chunksize=16)


def _write_audio(path: Path, wave: Tensor) -> None:
    """Write ``wave`` (S,) as 16-bit mono; the format follows from the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (wave * 32767).round().clamp(-32768, 32767).to(torch.int16).numpy()
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


def _progress(items: Iterable[_Item], total: int, what: str) -> tqdm[_Item]:
    return tqdm(items, total=total, desc=f"mini corpus: {what}", unit="file", delay=1, dynamic_ncols=True)


def _write(root: Path, config: MiniCorpusConfig, espeak: Espeak, jobs: int) -> None:
    studio = Studio(espeak, make_lexicon(espeak, vocabulary()))
    libri, sid, er = plan.libri_parts(config), plan.sid_parts(config), plan.er_parts(config)
    parts = [*libri, *sid, *er]
    recordings = [recording for part in parts for recording in part.recordings]
    root.mkdir()
    spoken = _speak_all(root, recordings, studio, jobs)
    by_path = {one.recording.path: one for one in _progress(spoken, len(recordings), "speech")}
    sets = {part.name: [by_path[recording.path] for recording in part.recordings] for part in parts}
    _write_noise(root, config, studio)
    noisy_sets = (libri[-2], "test-noisy", sounds.PUBLIC), (libri[-1], "hidden-noisy", sounds.HIDDEN)
    for part, noisy, distortions in noisy_sets:
        sets[noisy] = list(_distort(root, sets[part.name], part.name, noisy, distortions, config.seed))

    layouts.write_lexicon(root, studio.lexicon)
    for split in (*(part.name for part in libri), "test-noisy", "hidden-noisy"):
        layouts.write_librispeech(root, split, sets[split])
    for part in sid:
        layouts.write_voxceleb(root, part)
    layouts.write_iemocap(root, *er)
    counts: dict[str, dict[str, Any]] = {
        name: {
            "speakers": len({one.recording.speaker for one in part}),
            "utterances": len(part),
            "seconds": round(sum(one.samples for one in part) / SAMPLE_RATE, 1),
        }
        for name, part in sets.items()
    }
    description = {
        "kind": _KIND,
        "format": FORMAT,
        "seed": config.seed,
        "settings": asdict(config),
        "espeak_ng": espeak.version(),
        "sample_rate": SAMPLE_RATE,
        "words": len(studio.lexicon),
        "parts": counts,
        "audio_sha256": _audio_hash(root),
        "files": 1 + sum(1 for path in root.rglob("*") if path.is_file()),
    }
    (root / _MANIFEST).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    minutes = sum(part["seconds"] for part in counts.values()) / 60
    logger.info("%.0f minutes of speech in %d files", minutes, description["files"])


def _distort(
    root: Path, part: list[Spoken], clean: str, noisy: str, distortions: tuple[sounds.Distortion, ...], seed: int
) -> Iterator[Spoken]:
    """Write ``part`` once more, distorted."""
    waves = [torch.from_numpy(soundfile.read(root / one.recording.path, dtype="float32")[0]) for one in part]
    for index, one in enumerate(_progress(part, len(part), noisy)):
        rng = keyed_generator(seed, noisy, index)
        speaker = one.recording.speaker
        others = [wave for wave, other in zip(waves, part, strict=True) if other.recording.speaker != speaker]
        chosen = torch.randperm(len(others), generator=rng)[:_BABBLERS].tolist()
        wave = distortions[index % len(distortions)](waves[index], [others[i] for i in chosen], rng)
        recording = replace(one.recording, path=one.recording.path.replace(f"/{clean}/", f"/{noisy}/"))
        _write_audio(root / recording.path, sounds.unclipped(wave))
        yield replace(one, recording=recording)


def _write_noise(root: Path, config: MiniCorpusConfig, studio: Studio) -> None:
    """Noise and impulse responses for training on distorted speech; the test sets hear other ones."""
    samples = config.noise_seconds * SAMPLE_RATE
    voices = [studio.record(recording)[0] for recording in plan.babble_recordings(config)]
    for number in range(1, 4):
        rng = keyed_generator(config.seed, "babble", number)
        chosen = torch.randperm(len(voices), generator=rng)[:_BABBLERS].tolist()
        babble = sounds.babble([voices[index] for index in chosen], samples, rng)
        _write_audio(root / "noise" / f"babble-{number}.wav", sounds.at_level(babble, -25))
        response = generated_impulse_response(keyed_generator(config.seed, "room", number))
        _write_audio(root / "rirs" / f"room-{number}.wav", sounds.at_peak(response))
        for folder, noises in (("noise", sounds.NOISES), ("noise-hidden", sounds.HIDDEN_NOISES)):
            for name, noise in noises.items():
                wave = noise(samples, keyed_generator(config.seed, name, number))
                _write_audio(root / folder / f"{name}-{number}.wav", sounds.at_level(wave, -25))


def _audio_hash(root: Path) -> str:
    """SHA-256 over the samples of all audio, in the order of the paths."""
    total = hashlib.sha256()
    files = sorted(path for path in root.rglob("*") if path.suffix in (".wav", ".flac"))
    for path in _progress(files, len(files), "checksum"):
        total.update(np.ascontiguousarray(soundfile.read(path, dtype="int16")[0]).tobytes())
    return total.hexdigest()
