"""CITATION.cff, CHANGELOG.md and the third-party notices say what the package says; tests keep their own order."""

from __future__ import annotations

import ast
import configparser
import datetime
import re

import yaml
from helpers_models import ROOT, TESTS
from helpers_order import LONGEST

from s3prl_ekd import __version__

# Keys that CFF 1.2.0 asks for, at the top and in each reference.
CFF_REQUIRED = {"cff-version", "message", "title", "authors"}
REFERENCE_REQUIRED = {"type", "title", "authors"}
CFF_TYPES = {"software": ("software", "dataset"), "reference": ("article", "conference-paper", "software", "report")}


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_the_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= CFF_REQUIRED
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] in CFF_TYPES["software"]
    assert citation["version"] == __version__
    assert citation["license"] == setup()["metadata"]["license"]
    paper = citation["preferred-citation"]
    assert paper["doi"] == "10.48550/arXiv.2302.12757"
    for reference in (paper, *citation["references"]):
        assert reference.keys() >= REFERENCE_REQUIRED
        assert reference["type"] in CFF_TYPES["reference"]
        assert isinstance(reference["year"], int)
        for author in reference["authors"]:
            assert author.keys() == {"family-names", "given-names"}
        assert reference["url"].startswith("https://arxiv.org/abs/")


def test_the_changelog_has_this_version_and_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *releases = re.findall(r"^## \[(.+)$", text, flags=re.MULTILINE)
    assert first == "Unreleased]"
    versions = [re.fullmatch(r"(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})", line).groups() for line in releases]
    assert versions[0][0] == __version__
    days = [datetime.date.fromisoformat(day) for _, day in versions]
    assert days == sorted(days, reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= kinds


def test_notices_name_what_is_distributed_and_required():
    text = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
    settings = setup()
    required = settings["options"]["install_requires"]
    for extra in ("mini", "lexicon", "plots"):
        required += settings["options.extras_require"][extra]
    for name in re.findall(r"^([A-Za-z][\w-]*)", required, flags=re.MULTILINE):
        assert re.search(rf"\b{name}\b", text), name
    for place in (ROOT / "s3prl_ekd/assets").iterdir():
        assert f"`s3prl_ekd/assets/{place.name}/`" in text, place
    for name in (ROOT / "s3prl_ekd/assets/vocab").iterdir():
        assert f"`{name.name}`" in text, name
    for name in settings["metadata"]["license_files"].split():
        assert (ROOT / name).is_file(), name


def test_nothing_is_imported_from_a_test_file():
    """What two files of tests share is in a helper."""
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").rpartition(".")[2].startswith("test_"), path


def test_the_longest_files_are_there():
    for name in LONGEST:
        assert (TESTS / name).is_file(), name
