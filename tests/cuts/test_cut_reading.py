"""Cuts from lines of a manifest, and their audio: plain ones, forged ones, several channels."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from helpers_cuts import CLEAN, RATE, manifest, names, stream, write
from helpers_models import speech_like

from s3prl_ekd.audio.manifests import read_entries
from s3prl_ekd.errors import UserError


def _changed(corpus, path, change):
    with gzip.open(corpus / "more.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    change(rows[2])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_lines_that_are_no_plain_cuts_stop_the_run(corpus, tmp_path, workers):
    speed = {"name": "Speed", "kwargs": {"factor": 1.1}}
    for number, (change, message) in enumerate(
        (
            (lambda row: row.pop("duration"), "line 3 has no duration"),
            (lambda row: row.update(type="PaddingCut"), "not a cut: {"),
            (lambda row: row.pop("recording"), "where plain cuts with a recording are expected"),
            (lambda row: row["recording"].update(transforms=[speed]), "asks for Speed, which is not done here"),
            (lambda row: row["recording"]["sources"][0].update(type="command"), "of type 'command' are not read"),
            (
                lambda row: row["recording"]["sources"][0].update(type="url", source="pipe:true"),
                "manifests run no commands",
            ),
            (lambda row: row["recording"]["sources"][0].update(type="shar"), "must be named cuts"),
        )
    ):
        if workers and number:
            continue
        broken = _changed(corpus, tmp_path / f"{number}.jsonl", change)
        with pytest.raises(UserError, match=message) as caught:
            list(stream(broken, num_workers=workers).loader(0))
        assert "\n" not in str(caught.value)
    (tmp_path / "torn.jsonl").write_text('{"duration": 1.0}\n{"dur')
    with pytest.raises(UserError, match="cannot be read after line 1"):
        list(stream(tmp_path / "torn.jsonl").loader(0))


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(id=7),
        lambda row: row.update(start=float("nan")),
        lambda row: row.update(start=-1.0),
        lambda row: row.update(start="0"),
        lambda row: row.update(duration=1e12),
        lambda row: row.update(channel=None),
        lambda row: row["recording"].update(sources=None),
        lambda row: row["recording"]["sources"][0].update(source=None),
        lambda row: row["recording"]["sources"][0].update(channels=0),
    ],
)
def test_forged_cuts_stop_the_run_in_one_line(corpus, tmp_path, change):
    forged = _changed(corpus, tmp_path / "forged.jsonl", change)
    with pytest.raises(UserError, match=r"forged\.jsonl: ") as caught:
        list(stream(forged, distortion=CLEAN).loader(0))
    assert "\n" not in str(caught.value)


def test_channels_rates_and_parts_of_recordings(tmp_path):
    left, right = speech_like(24000, 1), speech_like(24000, 2)
    write(tmp_path / "audio" / "stereo.wav", torch.stack([left, right], dim=1), subtype="FLOAT")
    write(tmp_path / "audio" / "slow.wav", speech_like(12000, 3), rate=8000)
    cuts = manifest(tmp_path / "audio", tmp_path / "all.jsonl.gz")
    (batch,) = stream(cuts, distortion=CLEAN, max_crop_samples=None).loader(0)
    rows = dict(zip(batch.utterances, batch.clean, strict=True))
    assert batch.lengths.tolist() == [24000, 24000]
    assert torch.allclose(rows["stereo.wav"], (left + right) / 2, atol=1e-7)

    row = next(json.loads(e.line) for e in read_entries(cuts, None) if "stereo" in e.line)
    part = row | {"id": "part", "start": 0.25, "duration": 0.5, "type": "MonoCut", "channel": 1}
    (tmp_path / "part.jsonl").write_text(json.dumps(part) + "\n" + json.dumps(row["recording"]) + "\n")
    (batch,) = stream(tmp_path / "part.jsonl", num_buckets=1, distortion=CLEAN, max_crop_samples=None).loader(0)
    index = batch.utterances.index("part")
    assert torch.equal(batch.clean[index, : batch.lengths[index]], right[4000:12000])
    assert sorted(batch.utterances) == ["part", "stereo.wav"]  # a recording is a cut of all of it


def test_channels_in_files_of_different_length(tmp_path):
    """A few samples are how recorders differ; more is a bad recording, not the end of the run."""
    sources = []
    for channel, samples in enumerate((8000, 7900)):
        path = write(tmp_path / f"{channel}.wav", speech_like(samples, channel), subtype="FLOAT")
        sources.append({"type": "file", "channels": [channel], "source": str(path)})
    recording = {"id": "two", "sources": sources, "sampling_rate": RATE, "num_samples": 8000, "duration": 0.5}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(recording | {"channel_ids": [0, 1]}) + "\n")
    (batch,) = stream(tmp_path / "cuts.jsonl", distortion=CLEAN).loader(0)
    expected = (speech_like(8000, 0)[:7900] + speech_like(7900, 1)) / 2
    torch.testing.assert_close(batch.clean[0], expected)
    write(tmp_path / "1.wav", speech_like(5000, 1))
    torn = stream(tmp_path / "cuts.jsonl", distortion=CLEAN, bad=tmp_path / "bad.tsv")
    assert names(torn.loader(0)) == []
    assert "two: ends 3000 samples before the manifest says" in (tmp_path / "bad.tsv").read_text()
