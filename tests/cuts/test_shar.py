"""Shar folders and tars: the same audio as the files give, whole or damaged."""

from __future__ import annotations

import contextlib
import pickle
import random
import tarfile

import pytest
import torch
from helpers_cuts import assert_same, names, stream

from s3prl_ekd.audio.bad_recordings import SourceError
from s3prl_ekd.audio.batch import Loaded
from s3prl_ekd.cuts.shar import TarReader
from s3prl_ekd.errors import UserError


def test_shar_folder_tars_and_patterns_give_what_the_files_give(corpus, tmp_path):
    def by_name(*cuts, **extra):
        batches = list(stream(*cuts, **extra).loader(0))
        rows = ((b, i) for b in batches for i in range(len(b.utterances)))
        return {b.utterances[i]: (b.clean[i, : b.lengths[i]], b.distorted[i, : b.lengths[i]]) for b, i in rows}

    shar = corpus / "shar"
    assert len(list(shar.glob("recording.*.tar"))) == 7
    files = by_name(corpus / "speech.jsonl.gz")
    everything = by_name(shar)
    assert everything.keys() == files.keys()
    assert all(torch.equal(a, b) for name in files for a, b in zip(files[name], everything[name], strict=True))
    part = by_name(shar / "cuts.{000000..000001}.jsonl.gz", shar / "recording.000006.tar")
    assert len(part) == 10 + 10 + 1
    assert by_name(shar / "cuts.*.jsonl.gz").keys() == files.keys()

    one = stream(shar)
    epoch = list(one.loader(1))
    assert isinstance(pickle.loads(pickle.dumps(one.reader))[1, []], Loaded)  # where workers are not forked
    assert_same(list(stream(shar, num_workers=1).loader(1, 4)), epoch[4:])
    assert [b.utterances for b in one.loader(0)] != [b.utterances for b in epoch]

    # What a command prints: tars are copied to the cache, whose oldest go when it is full.
    piped = by_name(f"pipe:cat {shar}/cuts.{{000000..000002}}.jsonl.gz", shar_cache=str(tmp_path), shar_cache_gb=0.0)
    assert len(piped) == 30
    assert all(torch.equal(files[name][1], piped[name][1]) for name in piped)
    assert len(list(tmp_path.glob("*.tar"))) == 1


def test_a_tar_that_lost_its_end_or_all(corpus, tmp_path, caplog):
    for number in ("000000", "000001"):
        for name in (f"cuts.{number}.jsonl.gz", f"recording.{number}.tar"):
            (tmp_path / name).write_bytes((corpus / "shar" / name).read_bytes())
    torn = tmp_path / "recording.000001.tar"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    broken = stream(tmp_path, bad=tmp_path / "bad.tsv")
    heard = names(broken.loader(0))
    assert 10 < len(heard) < 20
    assert len(heard) + broken.bad_recordings.bad == 20
    assert "recording.000001.tar" in (tmp_path / "bad.tsv").read_text()
    torn.unlink()
    with pytest.raises(UserError, match=r"recording\.000001\.tar: No such file.*needs this tar"):
        list(stream(tmp_path).loader(0))


def test_damaged_headers_of_a_tar_take_no_memory(corpus, tmp_path):
    """Every recording of it is heard or bad; or the tar as a whole is named."""
    cuts, tar = tmp_path / "cuts.000000.jsonl.gz", tmp_path / "recording.000000.tar"
    cuts.write_bytes((corpus / "shar" / cuts.name).read_bytes())
    whole = (corpus / "shar" / tar.name).read_bytes()
    places = random.Random(0)
    for number in range(40):
        damaged = bytearray(whole)
        damaged[places.choice((0, 1, 100, 124, 126, 135, 148, 156, 257, places.randrange(512)))] ^= 1 << number % 8
        tar.write_bytes(damaged)
        damaged_stream = stream(tmp_path)
        with contextlib.suppress(SourceError):
            assert len(names(damaged_stream.loader(0))) + damaged_stream.bad_recordings.bad == 10
    # A member of 8 GB, with a checksum that fits.
    member = tarfile.TarInfo(name="0/0.flac")
    member.size = 8 << 30
    tar.write_bytes(member.tobuf() + bytes(512))
    reader = TarReader(None, 1)
    with pytest.raises(UserError, match="truncated within 0/0"):
        reader.read(str(tar), "0/0")
