"""The names in data.cuts: what they stand for, how their manifests are read and mixed."""

from __future__ import annotations

import gzip
import json
import logging
import os
import random

import pytest
from helpers_cuts import CLEAN, config, names, stream

from s3prl_ekd.audio.manifests import read_entries
from s3prl_ekd.cuts.sources import mix_sources, resolve_sources
from s3prl_ekd.errors import UserError


def test_sources_are_mixed_and_shards_shuffled(corpus):
    sources = resolve_sources([str(corpus / "shar"), str(corpus / "more.jsonl.gz")])

    def order(rng):
        return [json.loads(entry.line)["id"] for entry in mix_sources(sources, None, rng)]

    plain, shuffled = order(None), order(random.Random(0))
    assert sorted(plain) == sorted(shuffled)
    for found in (plain, shuffled):
        places = [place for place, name in enumerate(found) if name.startswith("more")]
        assert places[0] < 25
        assert places[-1] > 35
    shards = [[name for name in found if not name.startswith("more")] for found in (plain, shuffled)]
    assert shards[0] != shards[1]
    first = {json.loads(entry.line)["id"] for entry in read_entries(sources[0].manifests[0], None)}
    assert set(shards[0][:10]) == first


def test_sources_that_cannot_be_used(corpus, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "cuts.json").write_text("[]")
    os.mkfifo(tmp_path / "fifo.jsonl")
    for name, message in (
        ("absent.jsonl.gz", "no file .*absent.jsonl.gz; `s3prl-ekd data`"),
        ("folder", "holds or matches no manifest of cuts"),
        ("*.jsonl.gz", "holds or matches no manifest of cuts"),
        ("cuts.json", "no manifest that can be read lazily"),
        ("fifo.jsonl", "no regular file"),
        ("shar/recording.000000.tar", "the manifest of .*recording.000000.tar"),
    ):
        with pytest.raises(UserError, match=message):
            stream(tmp_path / name)
    with pytest.raises(UserError, match=r"speech\.jsonl\.gz is named twice"):
        stream(corpus / "speech.jsonl.gz", corpus / "*.jsonl.gz")
    (tmp_path / "link.jsonl.gz").symlink_to(corpus / "speech.jsonl.gz")
    for same in (f"{corpus}/../{corpus.name}/speech.jsonl.gz", tmp_path / "link.jsonl.gz"):
        with pytest.raises(UserError, match=r"is named twice"):
            stream(corpus / "speech.jsonl.gz", same)
    with pytest.raises(UserError, match="stands for more than 1000000 manifests"):
        stream(tmp_path / "cuts.{0..99999999999}.jsonl.gz")
    (tmp_path / "linked").symlink_to(corpus)
    with pytest.raises(UserError, match=r"linked/speech\.jsonl\.gz, also as .*/speech\.jsonl\.gz, is named twice"):
        stream(corpus / "*.jsonl.gz", tmp_path / "linked" / "sp*.jsonl.gz")
    with pytest.raises(UserError, match=r"data\.batch_seconds: 5\.0 s hold no utterance of max_crop_samples 250000"):
        config("a", max_crop_samples=250_000)


def test_manifests_that_were_edited_or_are_empty(corpus, tmp_path, caplog):
    with gzip.open(corpus / "more.jsonl.gz", "rt") as lines:
        rows = list(lines)
    edited = tmp_path / "edited.jsonl"
    edited.write_text("\ufeff" + "\n \n".join(rows).replace("\n", "\r\n") + "\r\n\r\n", encoding="utf-8", newline="")
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(rows))
    expected = names(stream(plain, distortion=CLEAN).loader(0))
    assert names(stream(edited, distortion=CLEAN).loader(0)) == expected
    assert not caplog.messages

    (tmp_path / "zero.jsonl.gz").touch()
    with gzip.open(tmp_path / "nothing.jsonl.gz", "wt") as file:
        file.write("\n")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    empty = ["zero.jsonl.gz", "nothing.jsonl.gz", "blank.jsonl"]
    for name in empty:
        with caplog.at_level(logging.WARNING):
            assert sorted(names(stream(plain, tmp_path / name, distortion=CLEAN).loader(0))) == sorted(expected)
        assert caplog.messages == [f"data.cuts: {tmp_path / name} is empty, no utterance in it"]
        caplog.clear()
        with pytest.raises(UserError, match=f"{name}: no utterance of at least a frame"):
            stream(tmp_path / name).loader(0)
        caplog.clear()

    list(stream(plain, "pipe:true", distortion=CLEAN).loader(0))
    assert "pipe:true: empty, no utterance in it" in caplog.messages

    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps(json.loads(row) | {"duration": 0.01}) + "\n" for row in rows))
    list(stream(plain, short, distortion=CLEAN).loader(0))
    assert any(f"{short}: all 9 utterances are shorter than a frame" in message for message in caplog.messages)
