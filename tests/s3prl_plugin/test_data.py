"""The data of s3prl's run_pretrain: lists, folders, buckets, crops, workers, bad recordings."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from helpers_cuts import CLEAN, write
from helpers_models import speech_like

from s3prl_ekd.audio import bad_recordings
from s3prl_ekd.audio.read import load_audio
from s3prl_ekd.config.recipe import DistortionConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.pretrain.ekd_student.data import (
    PretrainDataConfig,
    PretrainDataset,
    PretrainLoader,
    read_utterances,
)

NOISY = DistortionConfig.from_mapping({"gaussian_noise": {"probability": 0.7}})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """23 recordings of 0.1 to 0.8 s, as a folder and as s3prl's len_for_bucket lists."""
    root = tmp_path_factory.mktemp("corpus")
    lines = {"a": [",file_path,length,label"], "b": [",file_path,length,label"]}
    for i in range(23):
        samples, part = 1600 + 521 * (i * 7 % 23), "ab"[i % 2]
        name = f"{part}/{i % 3}/{i}.flac"
        write(root / "speech" / name, speech_like(samples, seed=i))
        lines[part].append(f"{i},{name},{samples},HELLO")
    for part, rows in lines.items():
        (root / f"{part}.csv").write_text("\n".join(rows) + "\n")
    return root


def lists(corpus, **extra) -> PretrainDataConfig:
    return PretrainDataConfig.from_mapping(
        {"train_batch_size": 4, "num_workers": 0, "libri_root": str(corpus / "speech"), "file_path": str(corpus)}
        | {"sets": ["a", "b"], "max_timestep": 4000, "seed": 5}
        | extra
    )


def folder(path, **extra) -> PretrainDataConfig:
    return PretrainDataConfig.from_mapping({"train_batch_size": 4, "num_workers": 0, "audio_folder": str(path)} | extra)


def epochs(config, distortion=NOISY, count=2, position=0):
    loader = PretrainLoader(PretrainDataset(config, distortion), position)
    return [list(loader) for _ in range(count)]


def assert_same(a, b):
    assert [x.utterances for x in a] == [x.utterances for x in b]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.clean, y.clean)
        assert torch.equal(x.distorted, y.distorted)
        assert torch.equal(x.lengths, y.lengths)


# --- lists, folders, buckets ------------------------------------------------------------------------------------------


def test_lists_and_folder_name_the_same_recordings(corpus):
    by_list = read_utterances(lists(corpus))
    by_folder = read_utterances(folder(corpus / "speech"))
    assert sorted(u.name for u in by_list) == sorted(u.name for u in by_folder)
    assert {u.name: u.samples for u in by_list} == {u.name: u.samples for u in by_folder}


def test_an_epoch_has_every_recording_once_in_buckets_of_like_length(corpus):
    config = lists(corpus)
    dataset = PretrainDataset(config, CLEAN)
    assert len(dataset) == 6  # what s3prl's runner divides by
    lengths = [[utterance.samples for utterance in bucket] for bucket in dataset.buckets]
    assert [len(bucket) for bucket in lengths] == [4, 4, 4, 4, 4, 3]
    flat = [samples for bucket in lengths for samples in bucket]
    assert flat == sorted(flat, reverse=True)
    first, second = epochs(config)
    names = [[name for batch in epoch for name in batch.utterances] for epoch in (first, second)]
    assert sorted(names[0]) == sorted(names[1]) == sorted(u.name for u in read_utterances(config))
    assert names[0] != names[1]


def test_batches_are_padded_and_cropped(corpus):
    config = lists(corpus)
    for batch in epochs(config, CLEAN, count=1)[0]:
        assert batch.distorted is batch.clean
        assert batch.clean.dtype == torch.float32
        assert batch.lengths.dtype == torch.int64
        assert batch.clean.shape == (len(batch.utterances), batch.lengths.max())
        for row, samples, name in zip(batch.clean, batch.lengths.tolist(), batch.utterances, strict=True):
            whole = load_audio(corpus / "speech" / name)
            assert samples == min(len(whole), 4000)
            assert not row[samples:].any()
            starts = [s for s in range(len(whole) - samples + 1) if torch.equal(whole[s : s + samples], row[:samples])]
            assert len(starts) == 1
    uncropped = [b.lengths.max() for b in epochs(lists(corpus, max_timestep=0), CLEAN, count=1)[0]]
    assert max(uncropped) == max(u.samples for u in read_utterances(config))


def test_crops_move_between_epochs_and_distortion_meets_the_crop(corpus):
    first, second = ({n: (c, d) for b in e for n, c, d in zip(b.utterances, b.clean, b.distorted, strict=True)}
                     for e in epochs(lists(corpus, max_timestep=1600)))  # fmt: skip
    assert sum(not torch.equal(first[name][0], second[name][0]) for name in first) > 15
    changed = [name for name in first if not torch.equal(*first[name])]
    assert 8 < len(changed) < len(first)
    noise = first[changed[0]][1] - first[changed[0]][0]
    assert 0 < noise.square().mean() < first[changed[0]][0].square().mean()


def test_workers_do_not_change_anything(corpus):
    alone = epochs(lists(corpus))
    for epoch, other in zip(alone, epochs(lists(corpus, num_workers=2)), strict=True):
        assert_same(epoch, other)
    clean = epochs(lists(corpus, num_workers=1), CLEAN, count=1)[0]
    assert all(batch.distorted is batch.clean for batch in clean)  # so that it is moved to a GPU once
    again = epochs(lists(corpus, seed=6), count=1)[0]
    assert [b.utterances for b in again] != [b.utterances for b in alone[0]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("position", [4, 6])
def test_continues_at_any_batch(corpus, workers, position):
    config = lists(corpus, num_workers=workers)
    straight = [batch for epoch in epochs(lists(corpus), count=3) for batch in epoch]
    resumed = [batch for epoch in epochs(config, count=2, position=position) for batch in epoch]
    assert_same(resumed, straight[position:][: len(resumed)])
    assert len(resumed) == (8 if position == 4 else 12)


# --- bad recordings ---------------------------------------------------------------------------------------------------


def test_bad_recordings_are_skipped_with_a_warning(tmp_path, caplog):
    for i in range(6):
        write(tmp_path / f"{i}.flac", speech_like(4000 + i, seed=i))
    (tmp_path / "text.wav").write_text("not audio")
    data = (tmp_path / "0.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    write(tmp_path / "short.wav", torch.zeros(399))
    with caplog.at_level(logging.WARNING):
        first, _ = epochs(folder(tmp_path, train_batch_size=4), CLEAN)
    assert sorted(name for batch in first for name in batch.utterances) == [f"{i}.flac" for i in range(6)]
    for part in ("text.wav", "cut.flac", "shorter than a frame"):
        assert sum(part in message for message in caplog.messages) == 1, part  # and not again in the second epoch


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_bad_recordings_gives_way_to_another(tmp_path, workers):
    for i in range(4):
        write(tmp_path / f"{i}.flac", speech_like(4000 - i, seed=i))
    for name in ("0.flac", "1.flac"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
    config = folder(tmp_path, train_batch_size=2, num_workers=workers)
    assert [batch.utterances for batch in epochs(config, CLEAN, count=1)[0]] == [("2.flac", "3.flac")] * 2
    for name in ("2.flac", "3.flac"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:2000])
    with pytest.raises(UserError, match=r"^10 batches in a row hold no usable recording"):
        epochs(config, CLEAN, count=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_recordings_stop_the_run(corpus, tmp_path, monkeypatch, workers):
    """All workers' together, each recording once however many epochs there are."""
    speech = shutil.copytree(corpus / "speech", tmp_path / "speech")
    config = folder(speech, train_batch_size=1, num_workers=workers)
    loader = PretrainLoader(PretrainDataset(config, CLEAN))
    paths = [speech / bucket[0].name for bucket in loader.dataset.buckets]
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    monkeypatch.setattr(bad_recordings, "JUDGED_FROM", 25)
    for _ in range(3):
        assert len(list(loader)) == len(paths) == 23
    assert (loader.bad_recordings.read, loader.bad_recordings.bad) == (72, 3)  # another takes its place, as it comes
    monkeypatch.setattr(bad_recordings, "JUDGED_FROM", 24)
    with pytest.raises(UserError, match=r"^1 of 24 recordings read cannot be used"):
        list(loader)


def test_a_worker_that_dies_is_noticed(corpus):
    before = set(multiprocessing.active_children())
    batches = iter(PretrainLoader(PretrainDataset(folder(corpus / "speech", train_batch_size=1, num_workers=1), CLEAN)))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a process that reads has ended.*--shm-size"):
        list(batches)


# --- configuration ----------------------------------------------------------------------------------------------------


def test_wrong_configurations_are_explained(corpus, tmp_path):
    for extra, message in (
        ({"train_batchsize": 4}, r"unknown key 'train_batchsize'.*did you mean 'train_batch_size'"),
        ({"sets": "a"}, "sets: expected a list"),
        ({"train_batch_size": 0}, "train_batch_size: expected at least 1"),
        ({"audio_folder": "x"}, "either audio_folder or"),
        ({"sets": None}, "sets missing"),
    ):
        with pytest.raises(UserError, match=message):
            lists(corpus, **extra)
    (tmp_path / "bad.csv").write_text("path,length\na,b\n")
    (tmp_path / "empty.csv").write_text(",file_path,length,label\n")
    for extra, message in (
        ({"sets": ["c"]}, r"c\.csv: No such file"),
        ({"libri_root": str(tmp_path / "no")}, "libri_root: no folder"),
        ({"libri_root": str(tmp_path)}, "libri_root does not fit"),
        ({"file_path": str(tmp_path), "sets": ["bad"]}, r"bad\.csv: expected the columns file_path and length"),
        ({"file_path": str(tmp_path), "sets": ["empty"]}, "no recording of at least 400 samples"),
    ):
        with pytest.raises(UserError, match=message):
            read_utterances(lists(corpus, **extra))
    with pytest.raises(UserError, match="no such folder"):
        read_utterances(folder(tmp_path / "none"))
