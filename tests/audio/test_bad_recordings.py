"""When too many recordings are bad, and the list that all processes share."""

from __future__ import annotations

import fcntl
import multiprocessing

import pytest

from s3prl_ekd.audio.bad_recordings import BadRecordings
from s3prl_ekd.errors import UserError


def test_too_many_bad_recordings_stop_the_run(tmp_path):
    bad = BadRecordings(tmp_path / "bad.tsv")
    for number in range(199):  # before 200, anything goes
        bad.note(1, [(f"a{number}", f"a{number}: no good")] if number < 3 else [])
    with pytest.raises(UserError, match=r"3 of 200 recordings read cannot be used \(listed in .*bad.tsv\)"):
        bad.note(1, [])
    fine = BadRecordings()
    fine.note(300, [("a", "a"), ("b", "b"), ("c", "c")])  # 1 %
    with pytest.raises(UserError, match=r"4 of 301 .*; the last one: d: torn"):
        fine.note(1, [("d", "d: torn")])


def lose(recordings, count):
    for number in range(0, count, 32):
        recordings.note(32, [(f"{number + i}", "no such file") for i in range(32)])


def test_storage_that_goes_is_noticed_however_long_it_was_there():
    for good in (0, 2000, 6_400_000):
        recordings = BadRecordings()
        recordings.note(good, [])
        with pytest.raises(UserError, match=r"recordings read cannot be used"):
            lose(recordings, 7 * 32)


def test_a_bad_recording_of_a_small_corpus_counts_once(tmp_path):
    """Whatever the number of epochs; and a resumed run knows it already."""
    for _ in range(2):
        recordings = BadRecordings(tmp_path / "bad.tsv")
        for _ in range(100):
            recordings.begin_pass()
            recordings.note(60, [("gone", "no such file")])
        assert (recordings.read, recordings.bad) == (6000, 100)
        assert recordings.counts == (60, 1, 1000, 0, 17)
    with pytest.raises(UserError, match=r"1\d\d of the last 1000 recordings read cannot .*; see whether their storage"):
        lose(recordings, 128)


def test_a_pass_goes_on_from_the_one_before():
    """Two bad ones at the beginning of the second pass are no share of anything yet."""
    recordings = BadRecordings()
    recordings.note(1000, [(f"{i}", "bad") for i in range(8)])
    recordings.begin_pass()
    recordings.note(250, [(f"{i}", "bad") for i in range(4)])
    assert recordings.counts[:2] == (1000, 4 + 8 * 0.75)
    with pytest.raises(UserError, match="11 of 1000 recordings read"):
        recordings.note(0, [("new", "new: bad")])


def test_a_pass_that_an_earlier_process_has_begun():
    """What it found to be good counts with what is read now: 80 of 4960 are more than 1 %, of 9960 they are not."""
    recordings = BadRecordings()
    recordings.skip(5000)
    recordings.begin_pass()
    recordings.note(4960, [(f"{i}", "bad") for i in range(80)])
    assert recordings.counts[:2] == (9960, 80)
    recordings.begin_pass()
    assert recordings.counts[0] == 9960


def _append(path, rank):
    bad = BadRecordings(path)
    for number in range(40):
        bad.note(500, [(f"shared{number}", "x" * 300), (f"own{rank}-{number}", f"line\tof {rank}\n" + "y" * 300)])


def test_ranks_write_one_list(tmp_path):
    path = tmp_path / "bad.tsv"
    context = multiprocessing.get_context("fork")
    with path.open("ab") as file:  # another rank at work: it is waited for, and what it lists is not listed again
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting = context.Process(target=_append, args=(path, 9))
        waiting.start()
        waiting.join(0.7)
        assert waiting.is_alive()
        file.write(b"utterance\tproblem\nshared0\t" + b"z" * 300 + b"\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_UN)  # closing does not release it: the forked process has the same open file
    waiting.join(60)
    assert waiting.exitcode == 0
    processes = [context.Process(target=_append, args=(path, rank)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert rows[0] == ["utterance", "problem"]
    assert all(len(row) == 2 and len(row[1]) >= 300 for row in rows[1:])
    assert len(rows) - 1 == len({row[0] for row in rows[1:]}) == 40 + 5 * 40
