"""Manifests of cuts, read as the loaders do: lines, cuts, crops, audio."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import soundfile
from helpers_models import speech_like
from lhotse import Recording

from fuzz.change import Change
from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.audio.manifests import read_entries
from s3prl_ekd.audio.utterances import draw_start
from s3prl_ekd.cuts.read import read_audio, read_cut
from s3prl_ekd.cuts.shar import TarReader
from s3prl_ekd.cuts.sources import resolve_sources
from s3prl_ekd.errors import UserError

ABOUT = "cut manifests, plain and gzipped: bytes flipped, cut short, values of a line replaced; every cut is read"


def prepare(good: Path) -> None:
    for number in range(3):
        path = good / f"{number}.wav"
        soundfile.write(path, speech_like(4000 + 900 * number, number).numpy(), 16000)
    cuts = [Recording.from_file(good / f"{number}.wav").to_cut() for number in range(3)]
    (good / "cuts.jsonl").write_text("".join(json.dumps(cut.to_dict()) + "\n" for cut in cuts))


def draw(good: Path, change: Change) -> Callable[[], object]:
    rng, text = change.rng, (good / "cuts.jsonl").read_text()
    if rng.random() < 0.6:
        lines = [json.loads(line) for line in text.splitlines()]
        at = rng.randrange(len(lines))
        lines[at] = change.mapping(lines[at])
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    else:
        data = change.data(text.encode())
    path = Path(rng.choice(("cuts.jsonl", "cuts.jsonl.gz")))
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
        data = change.data(data, header=12) if rng.random() < 0.3 else data
    path.write_bytes(data)
    return lambda: _read(str(path))


def _read(manifest: str) -> None:
    tars, good, problem = TarReader(None, 1.0), 0, None
    for source in resolve_sources([manifest]):
        for name in source.manifests:
            for entry in read_entries(name, 24000):
                try:
                    cut = read_cut(entry)
                    samples = round(16000 * cut.duration)
                    start = draw_start(samples, 24000, (0, 0, cut.id))
                    assert read_audio(cut, name, tars, start, min(samples, 24000)).isfinite().all()
                    good += 1
                except SourceError:
                    raise
                except UserError as error:  # a bad recording: the others are used
                    problem = error
    if not good and problem is not None:
        raise problem
