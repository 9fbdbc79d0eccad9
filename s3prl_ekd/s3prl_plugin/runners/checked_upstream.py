"""s3prl's downstream runner, made to say in one line what is wrong with the upstream it loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.s3prl_plugin import hub
from s3prl_ekd.teachers.from_s3prl import file_problem, is_download, takes_file, unsafe_loads_named


@contextlib.contextmanager
def checked_upstream() -> Iterator[None]:
    """While it lasts, the runner checks what it loads for ``-u``, what ``-s`` and ``-l`` take of it, and whether the
    weights of ``-e`` or ``-i`` were trained on such an upstream.

    Raises:
        UserError: a download that failed, a file of another kind, features or a layer that the upstream does not have,
            weights of other sizes.
    """
    from s3prl.downstream.runner import Runner

    load, select, fill = Runner._get_upstream, Runner._get_featurizer, Runner._load_weight

    def load_checked(runner: Any) -> Any:
        files: list[object] = []
        try:
            with unsafe_loads_named(f"-u {runner.args.upstream}") as files:
                return load(runner)
        except UserError as error:
            if runner.args.past_exp and not Path(runner.args.upstream_ckpt or ".").exists():
                raise UserError(f"{error}; if the upstream has been moved, say by -k where it is now") from error
            raise
        except Exception as error:
            if is_download(error):
                raise UserError(_not_fetched(runner.args, error)) from error
            problem = file_problem(error, files, runner.args.upstream)
            if problem is not None:
                raise UserError(f"-u {runner.args.upstream} cannot be loaded ({problem})") from error
            raise

    def select_checked(runner: Any) -> Any:
        _check_selection(runner.args, getattr(runner.upstream.model, "module", runner.upstream.model))
        return select(runner)

    def fill_checked(runner: Any, model: Any, name: str) -> None:
        try:
            fill(runner, model, name)
        except RuntimeError as error:
            if not isinstance(model, torch.nn.Module):  # an optimizer's or schedule's state
                raise
            args = runner.args
            upstream = f"-u {args.upstream}" + (f" -k {args.upstream_ckpt}" if args.upstream_ckpt else "")
            raise UserError(
                f"{args.init_ckpt}: its {name.lower()} does not fit {upstream} and this configuration; give those that"
                " it was trained with"
            ) from error

    Runner._get_upstream, Runner._get_featurizer, Runner._load_weight = load_checked, select_checked, fill_checked
    try:
        yield
    finally:
        Runner._get_upstream, Runner._get_featurizer, Runner._load_weight = load, select, fill


def _not_fetched(args: Any, error: BaseException) -> str:
    import s3prl.hub

    local = takes_file(args.upstream, s3prl.hub.options())
    hint = f"; with a copy of it: -u {local} -k FILE" if local else ""
    what = args.upstream_ckpt or f"the weights of {args.upstream}"
    return (
        f"-u {args.upstream}: {what} could not be fetched ({type(error).__name__}): no network, or the address is"
        f" gone{hint}"
    )


def _check_selection(args: Any, upstream: torch.nn.Module) -> None:
    """s3prl takes ``hidden_states`` for a name it does not find, and fails on a layer that is not there."""
    name, layer = args.upstream_feature_selection, args.upstream_layer_selection
    if name == "hidden_states" and layer is None:
        return
    with torch.no_grad():
        features = upstream.eval()([torch.zeros(SAMPLE_RATE, device=args.device)])
    if name not in features and args.upstream in hub.NAMES:
        raise UserError(f"-s {name}: {args.upstream} has no such features; {nearest(name, features)}")
    layers = features.get(name, features.get("hidden_states"))
    if layer is not None and isinstance(layers, list | tuple) and not -len(layers) <= layer < len(layers):
        raise UserError(f"-l {layer}: {args.upstream} has the layers 0 to {len(layers) - 1} in {name}")
