"""Checks what a checkpoint names where s3prl's own commands go on from it, in a plugged environment or checkout."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_plugin.runners import trust
from s3prl_ekd.s3prl_plugin.runners.checkpoints import check_unchanged, read_states
from s3prl_ekd.s3prl_plugin.runners.options import DOWNSTREAM, PRETRAIN, Syntax
from s3prl_ekd.s3prl_plugin.runners.trust import Settings

_off = False


@contextlib.contextmanager
def checked_already() -> Iterator[None]:
    """While it lasts, :func:`guard` does nothing: the wrappers have checked, and know more of the command line."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


def guard(module: ModuleType, check: Callable[[Any, Settings], None]) -> None:
    """Have ``module.Runner`` call ``check(args, config)`` before it begins with a checkpoint."""
    runner = vars(module)["Runner"]
    original = runner.__init__

    @functools.wraps(original)
    def checked(self: Any, args: Any, config: Settings) -> None:
        if not _off and getattr(args, "past_exp", None):
            check(args, config)
        original(self, args, config)

    runner.__init__ = checked


def check_downstream(args: Any, config: Settings) -> None:
    """For :func:`guard`: s3prl's ``run_downstream`` as started with ``sys.argv``, which ignores ``-k`` there."""
    options = DOWNSTREAM.parse(sys.argv[1:])
    with _switch_is_of(DOWNSTREAM):
        trust.check_downstream(args.init_ckpt, vars(args), config, options)
    check_unchanged(options, DOWNSTREAM, vars(args), also=("upstream_ckpt", "upstream_model_config"))


def check_pretraining(args: Any, config: Settings) -> None:
    """For :func:`guard`: s3prl's ``run_pretrain.py`` as started with ``sys.argv``."""
    options, states = PRETRAIN.parse(sys.argv[1:]), read_states(args.init_ckpt)
    with _switch_is_of(PRETRAIN):
        trust.check_pretraining(args.init_ckpt, vars(args), states, config, options)
    check_unchanged(options, PRETRAIN, vars(args))


def check_teachers(recipe: Settings) -> None:
    """The teachers alone, for the expert in a checkout's ``pretrain/``, which learns nothing else in time."""
    options = PRETRAIN.parse(sys.argv[1:])
    with _switch_is_of(PRETRAIN):
        trust.check_teachers(options.get("past_exp") or "(the newest checkpoint)", recipe, options)


@contextlib.contextmanager
def _switch_is_of(syntax: Syntax) -> Iterator[None]:
    """Add to a message whose option ``--trust-checkpoint`` is: s3prl's own command does not know it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}, an option of {syntax.prog}") from error
