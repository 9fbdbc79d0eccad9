"""Every shell command of docs/ is run as it stands, on small corpora in the real layouts."""

from __future__ import annotations

import re

import pytest
from helpers_documents import ROOT, blocks, run_commands

# Files of tests of their own, so that they run side by side; `make fuzz` takes ten minutes, test_fuzz.py runs a part.
ELSEWHERE = {"your_corpora.md", "reliability.md"}
DOCUMENTS = [
    path.name
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.name not in ELSEWHERE and blocks(path.read_text(encoding="utf-8"), "bash")
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands(name, tmp_path):
    run_commands(f"docs/{name}", tmp_path)


def test_nothing_is_left_open():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")):
        assert not re.search(r"@[A-Z_]+@|TODO|TBD", path.read_text(encoding="utf-8")), path
