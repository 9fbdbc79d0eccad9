"""One file per kind of input; see :class:`fuzz.law.Kind`."""

from __future__ import annotations

import importlib

NAMES = (
    "yaml_files", "recipes", "overrides", "commands", "manifests", "lists", "audio", "students", "checkpoints",
    "caches", "other_projects",
)  # fmt: skip


def load(name: str):
    """The kind of a name."""
    return importlib.import_module(f"fuzz.kinds.{name}")
