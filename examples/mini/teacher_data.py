"""What the tiny teachers learn from: speech in memory, frame features, cluster labels, crops and distortions.

Frame i of a wave covers samples [320 i, 320 i + 400): exactly what frame i of the conv stack sees.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio.functional as audio
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from tqdm import tqdm

from s3prl_ekd import FRAME_SHIFT, SAMPLE_RATE
from s3prl_ekd.audio.randomness import keyed_generator
from s3prl_ekd.audio.read import audio_files, load_audio

WINDOW = 400  # samples seen by one frame of a conv stack with kernels 10 3 3 3 3 2 2 and strides 5 2 2 2 2 2 2
MELS = 80
CEPSTRA = 13
_CHUNK_FRAMES = 500  # streams are analysed in pieces of 10 s


def speech_streams(folders: list[Path], seed: int) -> list[Tensor]:
    """The utterances of each folder of audio (a speaker's chapter) in random order, joined into one wave (S,).

    Short utterances can then be cropped at any length, and a crop holds one speaker. Each utterance is cut to whole
    frames, so that frames of the stream are frames of the utterances.
    """
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in (path for folder in folders for path in audio_files(folder)):
        by_folder[path.parent].append(path)
    streams = []
    for parent, paths in tqdm(sorted(by_folder.items()), desc="reading speech", unit="speaker", leave=False):
        order = torch.randperm(len(paths), generator=keyed_generator(seed, "order", parent.name)).tolist()
        waves = [load_audio(paths[i]) for i in order]
        streams.append(torch.cat([w[: len(w) // FRAME_SHIFT * FRAME_SHIFT] for w in waves]))
    return streams


def frame_count(samples: int) -> int:
    """Frames of a wave of ``samples`` samples."""
    return max(0, (samples - WINDOW) // FRAME_SHIFT + 1)


def log_mel(wave: Tensor, mels: int = MELS) -> Tensor:
    """Natural logarithm of mel filter bank energies of Hann windows, no normalisation: (S,) -> (F, mels)."""
    frames = wave.unfold(0, WINDOW, FRAME_SHIFT) * torch.hann_window(WINDOW)  # (F, 400)
    power = torch.fft.rfft(frames, n=512).abs().square()  # (F, 257)
    banks = audio.melscale_fbanks(257, 20.0, 7600.0, mels, SAMPLE_RATE)
    return (power @ banks + 1e-5).log()


def with_deltas(features: Tensor) -> Tensor:
    """Features with their first and second differences over time: (F, D) -> (F, 3 D)."""
    first = audio.compute_deltas(features.T).T
    return torch.cat([features, first, audio.compute_deltas(first.T).T], dim=1)


def mfcc(wave: Tensor) -> Tensor:
    """13 cepstral coefficients with first and second differences, no mean removed: (S,) -> (F, 39)."""
    return with_deltas(log_mel(wave, 40) @ audio.create_dct(CEPSTRA, 40, "ortho"))


def voice(wave: Tensor) -> Tensor:
    """How, not what: mean and deviation of the log-mel spectrum over a second around each frame, (S,) -> (F, 80).

    Clusters of these are speakers and manners of speaking, which cepstra of single frames hardly tell apart.
    """
    span = 51
    smooth = functools.partial(
        torch.nn.functional.avg_pool1d, kernel_size=span, stride=1, padding=span // 2, count_include_pad=False
    )
    mels = log_mel(wave, 40).T[None]  # (1, 40, F)
    mean = smooth(mels)
    deviation = (smooth(mels.square()) - mean.square()).clamp_min(0).sqrt()
    return torch.cat([mean, deviation], dim=1)[0].T


def spectrum(wave: Tensor) -> Tensor:
    """Log-mel energies without the loudness of the piece, which group norm takes out too: (S,) -> (F, 80)."""
    mels = log_mel(wave)
    return mels - mels.mean()


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {"mfcc": mfcc, "voice": voice, "spectrum": spectrum}
"""Frame features by name: a wave (S,) -> (F, D)."""


def chunked(stream: Tensor, features: Callable[[Tensor], Tensor], chunk_frames: int = _CHUNK_FRAMES) -> Tensor:
    """``features`` of a stream analysed in pieces that overlap by the window only: (S,) -> (F, D)."""
    pieces = []
    for start in range(0, frame_count(len(stream)), chunk_frames):
        begin = start * FRAME_SHIFT
        pieces.append(features(stream[begin : begin + (chunk_frames - 1) * FRAME_SHIFT + WINDOW]))
    return torch.cat(pieces)


def cluster(features: list[Tensor], clusters: int, seed: int) -> list[Tensor]:
    """Labels of the frames of each stream, by k-means over all of them: [(F, D)] -> [(F,) int16].

    Each dimension is brought to unit variance over the whole corpus, never per utterance: that would take the speaker
    out.
    """
    everything = torch.cat(features).float()
    scale = everything.std(0).clamp_min(1e-5)
    centre = everything.mean(0)
    picked = torch.randperm(len(everything), generator=keyed_generator(seed, "k-means"))[:60_000]
    kmeans = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, max_iter=30, random_state=seed)
    kmeans.fit(((everything[picked] - centre) / scale).numpy())
    return [torch.from_numpy(kmeans.predict(((f.float() - centre) / scale).numpy()).astype(np.int16)) for f in features]


@dataclass(frozen=True)
class Crops:
    """A batch of equally long pieces of speech with their labels."""

    waves: Tensor  # (B, S)
    labels: list[Tensor]  # per codebook (B, F)


def draw_crops(
    streams: list[Tensor], labels: list[list[Tensor]], frames: int, count: int, rng: torch.Generator
) -> Crops:
    """``count`` random crops of ``frames`` frames. ``labels``: per codebook, per stream, (F,)."""
    room = torch.tensor([max(0, frame_count(len(stream)) - frames) for stream in streams], dtype=torch.float)
    waves: list[Tensor] = []
    picked: list[list[Tensor]] = [[] for _ in labels]
    for i in torch.multinomial(room, count, replacement=True, generator=rng).tolist():
        start = int(torch.randint(int(room[i]), (), generator=rng))
        waves.append(streams[i][start * FRAME_SHIFT : (start + frames - 1) * FRAME_SHIFT + WINDOW])
        for codebook, chosen in zip(labels, picked, strict=True):
            chosen.append(codebook[i][start : start + frames])
    return Crops(torch.stack(waves), [torch.stack(chosen).long() for chosen in picked])


def uniform(low: float, high: float, count: int, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=rng)


def mix_utterances(waves: Tensor, rng: torch.Generator) -> Tensor:
    """WavLM's utterance mixing (arXiv 2110.13900, algorithm 1): another voice over at most half of a crop, +-5 dB.

    The labels stay those of the main voice, which therefore has to be told from the other. (B, S) -> (B, S).
    """
    batch, samples = waves.shape
    other = waves.roll(1, dims=0)
    length = (uniform(0.1, 0.5, batch, rng) * samples).long()[:, None]
    start = (torch.rand(batch, 1, generator=rng) * (samples - length)).long()
    time = torch.arange(samples)
    inside = (time >= start) & (time < start + length)
    energy = waves.square().mean(1) / other.square().mean(1).clamp_min(1e-8) / 10 ** (uniform(-5, 5, batch, rng) / 10)
    return waves + other * inside * energy.sqrt()[:, None]
