"""The training data of s3prl's run_pretrain: buckets of utterances of like length, read, cropped and distorted.

Everything random is keyed on (seed, epoch, utterance), and the sampler hands the epoch to the workers with the index of
the batch, so that a run can be repeated with any number of workers and continued at any batch.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from s3prl_ekd import MIN_SAMPLES
from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.audio.batch import Batch, Loaded, empty_batch
from s3prl_ekd.audio.distortion import Distorter
from s3prl_ekd.audio.distortions import DistortionConfig
from s3prl_ekd.audio.randomness import keyed_generator
from s3prl_ekd.audio.read import audio_files, audio_length, load_audio
from s3prl_ekd.audio.text import read_lengths
from s3prl_ekd.audio.utterances import Utterance, UtteranceReader
from s3prl_ekd.audio.workers import make_loader, patient
from s3prl_ekd.config.base import Config, Range, Seconds, Seed, Size, Workers
from s3prl_ekd.errors import UserError

logger = logging.getLogger(__name__)

_BATCHES_IN_A_ROW = 10  # of nothing but bad recordings


@dataclass(frozen=True, kw_only=True)
class PretrainDataConfig(Config):
    """``pretrain_expert.datarc`` of a config_runner.yaml; the first six keys are s3prl's own.

    The recordings are either those of s3prl's ``len_for_bucket`` lists (``libri_root``, ``file_path``, ``sets``) or all
    below ``audio_folder``.
    """

    train_batch_size: Size
    """Utterances of a batch B."""
    num_workers: Workers = 4
    """Processes that read and distort; 0: the training process does it itself."""
    max_timestep: Annotated[int, Range(at_most=10**12)] | None = 250_000
    """Longer utterances are cropped to this many samples, elsewhere in every epoch; null, 0 or less: never."""
    libri_root: str | None = None
    """Folder that the lists' ``file_path`` column is relative to."""
    file_path: str | None = None
    """Folder of the lists, ``<set>.csv`` with columns file_path and length (samples)."""
    sets: tuple[str, ...] | None = None
    """Names of the lists to read."""
    audio_folder: str | None = None
    """Instead of lists: a folder whose audio files, however deeply nested, are all used."""
    timeout_seconds: Seconds = 1800.0
    """How long the run waits for one batch before it gives up; a worker that ends is noticed at once."""
    seed: Seed = 0
    """Determines the order of batches and the crops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_crop_samples is not None and self.max_crop_samples < MIN_SAMPLES:
            raise UserError(
                f"max_timestep: a frame needs {MIN_SAMPLES} samples, found {self.max_crop_samples}; null: no crops"
            )
        lists = {name: getattr(self, name) for name in ("libri_root", "file_path", "sets")}
        missing = [name for name, value in lists.items() if not value]
        if self.audio_folder is not None and len(missing) < len(lists):
            raise UserError(f"give either audio_folder or {', '.join(lists)}, not both")
        if self.audio_folder is None and missing:
            raise UserError(f"no recordings: {', '.join(missing)} missing; give {', '.join(lists)}, or audio_folder")

    @property
    def max_crop_samples(self) -> int | None:
        """Samples that an utterance keeps at most, or None; ``max_timestep`` is s3prl's name for it."""
        return self.max_timestep if self.max_timestep is not None and self.max_timestep > 0 else None


def read_utterances(config: PretrainDataConfig) -> list[Utterance]:
    """The recordings that ``config`` names, those shorter than a frame left out with a warning.

    A name is the path relative to the corpus, so that no random draw depends on where that is.

    Raises:
        UserError: a list or folder is missing or unusable, or nothing is left.
    """
    found = _scan(Path(config.audio_folder)) if config.audio_folder is not None else _read_lists(config)
    kept = [utterance for utterance in found if utterance.samples >= MIN_SAMPLES]
    short = [utterance.name for utterance in found if utterance.samples < MIN_SAMPLES]
    if short:
        logger.warning(
            "%d of %d recordings are shorter than a frame (%d samples) and left out, the first: %s",
            len(short), len(found), MIN_SAMPLES, short[0],
        )  # fmt: skip
    if not kept:
        raise UserError(f"{config.audio_folder or config.file_path}: no recording of at least {MIN_SAMPLES} samples")
    logger.info("%d recordings, %.1f h", len(kept), sum(utterance.samples for utterance in kept) / 16000 / 3600)
    return kept


def _read(path: Path, start: int, longest: int | None) -> tuple[Tensor, None]:
    waveform = load_audio(path, start=start, samples=longest)
    if waveform.numel() < MIN_SAMPLES:
        raise UserError(f"{path}: has {start + waveform.numel()} samples, the list says more")
    return waveform, None


def _scan(folder: Path) -> list[Utterance]:
    found, bad_recordings = [], BadRecordings()
    for path in tqdm(audio_files(folder), desc="lengths of recordings", unit="file", delay=2):
        name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()
        bad = []
        try:
            found.append(Utterance(name, audio_length(path), partial(_read, path)))
        except UserError as error:
            bad = [(name, str(error))]
        bad_recordings.note(1, bad)
    return found


def _read_lists(config: PretrainDataConfig) -> list[Utterance]:
    assert config.libri_root is not None  # these three: see PretrainDataConfig.__post_init__
    assert config.file_path is not None
    assert config.sets is not None
    root, found = Path(config.libri_root), list[tuple[str, int]]()
    if not root.is_dir():
        raise UserError(f"libri_root: no folder {root}")
    for name in config.sets:
        path = Path(config.file_path, f"{name}.csv")
        rows = read_lengths(path)
        if not rows:
            logger.warning("%s: empty, no recording in it", path)
        found += rows
    if found and not any((root / file).is_file() for file, _ in found[:_BATCHES_IN_A_ROW]):
        raise UserError(f"{root / found[0][0]}: no such file; libri_root does not fit the lists' file_path column")
    return [Utterance(file, samples, partial(_read, root / file)) for file, samples in found]


class PretrainDataset(Dataset[Loaded | UserError]):
    """Batches by ``(epoch, index)``; its length is the number of batches, from which s3prl's runner counts epochs."""

    def __init__(self, config: PretrainDataConfig, distortion: DistortionConfig) -> None:
        self.config = config
        size, utterances = config.train_batch_size, read_utterances(config)
        utterances.sort(key=lambda utterance: (-utterance.samples, utterance.name))  # as s3prl's WaveDataset
        self.buckets = [utterances[start : start + size] for start in range(0, len(utterances), size)]
        self.reader = UtteranceReader(Distorter(distortion), seed=config.seed, longest=config.max_crop_samples)

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, key: tuple[int, int]) -> Loaded | UserError:
        """Batch ``index`` as epoch ``epoch`` hears it, or the next one that has a readable recording.

        Where several batches in a row have none, an empty one. A UserError is returned, see
        :func:`~s3prl_ekd.audio.workers.patient`.
        """
        epoch, index = key
        loaded = Loaded(empty_batch(), 0, ())
        try:
            for step in range(_BATCHES_IN_A_ROW):
                found = self.reader.read(epoch, self.buckets[(index + step) % len(self.buckets)])
                loaded = Loaded(found.batch, loaded.read + found.read, loaded.bad + found.bad)
                if found.batch.utterances:
                    break
        except UserError as error:
            return error
        return loaded


def draw_order(batches: int, seed: int, position: int) -> Iterator[tuple[int, int]]:
    """Epoch after epoch of ``(epoch, index)``, each in an order keyed on (seed, epoch).

    ``position`` batches, counted over all epochs, are left out, so the first epoch may start midway.
    """
    first, start = divmod(position, batches)
    for epoch in itertools.count(first):
        order = torch.randperm(batches, generator=keyed_generator(seed, epoch, "order"))
        yield from ((epoch, index) for index in order[start:].tolist())
        start = 0


class PretrainLoader:
    """Iterates epochs of :class:`~s3prl_ekd.audio.batch.Batch`: a pass gives the rest of an epoch, the next pass the
    next one. Workers start once and read ahead across epochs.

    Attributes:
        dataset: of which s3prl's runner asks the length.
        bad_recordings: counts of recordings read and skipped.

    Raises:
        UserError: while iterating, when too many recordings are bad or the workers do not go on.
    """

    def __init__(self, dataset: PretrainDataset, position: int = 0) -> None:
        """``position``: batches consumed before, over all epochs (a resumed run)."""
        self.dataset = dataset
        self.bad_recordings = BadRecordings()
        self._position = position
        self._items: Iterator[Loaded] | None = None

    def __len__(self) -> int:
        """Batches of the next pass."""
        return len(self.dataset) - self._position % len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        if self._items is None or not self.dataset.config.num_workers:
            self._items = patient(self._loader(), self.dataset.config.timeout_seconds)
        if self._position % len(self.dataset) == 0:
            self.bad_recordings.begin_pass()
        for _ in range(len(self)):
            item = next(self._items)
            self._position += 1
            self.bad_recordings.note(item.read, item.bad)
            if not item.batch.utterances:
                raise UserError(
                    f"{_BATCHES_IN_A_ROW} batches in a row hold no usable recording; see the warnings above"
                )
            yield item.batch

    def _loader(self) -> DataLoader[Loaded | UserError]:
        config = self.dataset.config
        order = draw_order(len(self.dataset), config.seed, self._position)
        return make_loader(self.dataset, sampler=order, workers=config.num_workers)
