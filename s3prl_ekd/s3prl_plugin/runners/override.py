"""What s3prl's ``-o`` says, found out before s3prl reads it: ``config.runner.total_steps=9,,args.seed=1``."""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import io
from collections.abc import Mapping
from typing import Any

from s3prl_ekd.errors import UserError


def in_python(text: str) -> str:
    """``text`` with values as YAML writes them turned into Python's, which is what s3prl reads them as.

    Without it, ``null`` would become the string 'null', and ``[dev, test]`` one string.
    """
    return ",,".join(_with_python_value(part) for part in text.split(",,"))


def _with_python_value(part: str) -> str:
    key, equals, value = part.partition("=")
    value = value.strip()
    # What of YAML is not Python: these words, and lists and mappings with them or with bare words inside.
    is_yaml = value.lower() in {"null", "~", "true", "false"} or value.startswith(("[", "{"))
    if _literal(value) is not _NONE or not is_yaml:
        return part
    import yaml

    try:
        python = repr(yaml.safe_load(value))
    except yaml.YAMLError:
        return part
    return part if _literal(python) is _NONE else f"{key}{equals}{python}"


_NONE = object()


def _literal(text: str) -> Any:
    """The value that ``text`` writes in Python, or :data:`_NONE`."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return _NONE


def arguments(text: str | None) -> dict[str, Any]:
    """The options that ``text`` sets (``args.KEY=VALUE``), without a look into s3prl; a value that is no literal stays
    a string."""
    found = {}
    for part in (text or "").split(",,"):
        key, _, value = (word.strip() for word in part.partition("="))
        if key.startswith("args."):
            literal = _literal(value)
            found[key.removeprefix("args.")] = value if literal is _NONE else literal
    return found


def applied(text: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``config`` as s3prl will have it.

    Raises:
        UserError: ``text`` cannot be taken apart.
    """
    result = copy.deepcopy(dict(config))
    if text is None or text.lower() == "none":
        return result
    from s3prl.utility.helper import override

    try:
        if not all(part.strip().startswith(("args.", "config.")) for part in text.split(",,")):
            raise ValueError("neither args. nor config.")
        with contextlib.redirect_stderr(io.StringIO()):  # it will say again what it sets
            override(text, argparse.Namespace(), result)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"-o {text}: expected args.KEY=VALUE or config.KEY=VALUE with one '=', several joined by two commas"
        ) from error
    return result
