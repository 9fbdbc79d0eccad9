"""Every shell command of README.md and docs/ is run as it stands, on small corpora in the real layouts."""

from __future__ import annotations

import re

import pytest
from helpers_documents import ROOT, Checkout, blocks, fill

ELSEWHERE = {"docs/reliability.md"}  # `make fuzz` takes ten minutes: tests/test_fuzz.py runs a part of it
DOCUMENTS = [
    name
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if (name := path.relative_to(ROOT).as_posix()) not in ELSEWHERE
    if blocks(path.read_text(encoding="utf-8"), "bash")
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands(name, tmp_path):
    checkout = Checkout(tmp_path)
    text = (ROOT / name).read_text(encoding="utf-8")
    fill(checkout, mini_corpus="s3prl-ekd mini-corpus" not in text)
    for block in blocks(text, "bash"):
        done = checkout.run(block)
        assert done.returncode == 0, f"{name}, line {block.line}:\n{block.text}\n{done.stderr[-3000:]}"


def test_nothing_is_left_open():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")):
        assert not re.search(r"@[A-Z_]+@|TODO|TBD", path.read_text(encoding="utf-8")), path
