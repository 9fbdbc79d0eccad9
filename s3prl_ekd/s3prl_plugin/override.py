"""What s3prl's ``-o`` says, found out before s3prl reads it: ``config.runner.total_steps=9,,args.seed=1``."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
from collections.abc import Mapping
from typing import Any

from s3prl_ekd.errors import UserError


def applied(text: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``config`` as s3prl will have it.

    Raises:
        UserError: ``text`` cannot be taken apart.
    """
    config = copy.deepcopy(dict(config))
    _override(text, argparse.Namespace(), config)
    return config


def alone(text: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options (``args.``) and the part of the configuration (``config.``) that ``text`` sets.

    Raises:
        UserError: ``text`` cannot be taken apart.
    """
    args, config = argparse.Namespace(), {}
    _override(text, args, config)
    return vars(args), config


def _override(text: str | None, args: argparse.Namespace, config: dict[str, Any]) -> None:
    if text is None or text.lower() == "none":
        return
    from s3prl.utility.helper import override

    try:
        if not all(part.strip().startswith(("args.", "config.")) for part in text.split(",,")):
            raise ValueError("neither args. nor config.")
        with contextlib.redirect_stderr(io.StringIO()):  # it will say again what it sets
            override(text, args, config)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"-o {text}: expected args.KEY=VALUE or config.KEY=VALUE with one '=', several joined by two commas"
        ) from error
