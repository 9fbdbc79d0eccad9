"""Every shell command of docs/ is run as it stands, on small corpora in the real layouts."""

from __future__ import annotations

import re

import pytest
from helpers_documents import ROOT, Checkout, blocks, real_corpora

DOCUMENTS = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if blocks(path.read_text(), "bash")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands(name, tmp_path):
    checkout = Checkout(tmp_path)
    real_corpora(checkout)
    for block in blocks((ROOT / "docs" / name).read_text(encoding="utf-8"), "bash"):
        done = checkout.run(block)
        assert done.returncode == 0, f"docs/{name}, line {block.line}:\n{block.text}\n{done.stderr[-3000:]}"


def test_nothing_is_left_open():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")):
        assert not re.search(r"@[A-Z_]+@|TODO|TBD", path.read_text(encoding="utf-8")), path
