"""Names in a recipe that stand for code: where the code is, as ``module:name``. It is imported when it is used.

Recipes are read without torch, so their tables cannot hold the code itself.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from s3prl_ekd.config.base import Config, OneOf


def load_part(address: str) -> Any:
    """What stands at ``module:name``."""
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)


class Parts(dict[str, str]):
    """The names that a key may have as its value, each with the address of what it stands for."""

    def problem(self, value: str) -> str | None:
        """See :class:`s3prl_ekd.config.base.Rule`."""
        return OneOf(*self).problem(value)

    def load(self, name: str) -> Any:
        """What ``name`` stands for."""
        return load_part(self[name])


def keys_with_parts(section: type[Config]) -> dict[str, str]:
    """The keys of a section that stand for code themselves, as their fields' ``metadata={"part": "module:name"}``."""
    return {item.name: item.metadata["part"] for item in dataclasses.fields(section) if "part" in item.metadata}
