"""Reading lists and folders, the same for every reader."""

from __future__ import annotations

import logging

import pytest

from s3prl_ekd.errors import UserError
from s3prl_ekd.files import files_below, read_lines

TEXT = "1 HELLO WORLD\n\n2 CAFÉ AU LAIT"


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "\n", "\n \n\t\n"])
def test_lines_are_the_same_however_they_were_saved(tmp_path, bom, end, last):
    path = tmp_path / "list.txt"
    path.write_bytes(bom + (TEXT + last).replace("\n", end).encode())
    assert read_lines(path) == [(1, "1 HELLO WORLD"), (3, "2 CAFÉ AU LAIT")]


def test_only_line_ends_end_a_line(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a\u2028b\x85c\x0cd\n", encoding="utf-8")
    assert read_lines(path) == [(1, "a\u2028b\x85c\x0cd")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.replace("\n", "\r\n").encode("latin-1"), r"list\.txt, line 3: not UTF-8 \(byte 0xC9, Latin-1 perhaps\)"),
        (TEXT.encode("utf-16"), r"list\.txt: not a text file in UTF-8 \(UTF-16, or no text at all\); give a list"),
        (b"fLaC\0\0\0", r"list\.txt: not a text file in UTF-8"),
        (None, r"list\.txt: No such file or directory; give a list"),
    ],
    ids=["latin-1", "utf-16", "audio", "missing"],
)
def test_no_other_encoding_is_guessed(tmp_path, data, message):
    if data is not None:
        (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_lines(tmp_path / "list.txt", hint="give a list")
    assert "\n" not in str(caught.value)


def test_folders_without_what_systems_leave_in_them(tmp_path, caplog):
    for name in ("b/1/x.flac", "b/1/._x.flac", "b/.DS_Store", ".trash/y.flac", "a.FLAC", "a.txt", "c.trans.txt"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "z.flac").touch()
    (tmp_path / "corpus" / "link").symlink_to(elsewhere)
    (tmp_path / "corpus" / "b" / "back").symlink_to(tmp_path / "corpus")
    with caplog.at_level(logging.WARNING):
        found = files_below(tmp_path / "corpus", [".flac"])
    assert [path.relative_to(tmp_path / "corpus").as_posix() for path in found] == [
        "a.FLAC",
        "b/1/x.flac",
        "link/z.flac",
    ]
    assert not caplog.messages
    assert [path.name for path in files_below(tmp_path / "corpus", [".trans.txt"])] == ["c.trans.txt"]
    files_below(tmp_path / "none", [".flac"])
    assert ["No such file" in message for message in caplog.messages] == [True]
