"""s3prl's downstream runner, made to say in one line what is wrong with the upstream it loads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from s3prl_ekd import SAMPLE_RATE
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.s3prl_compat.patches import replaced
from s3prl_ekd.s3prl_compat.upstream_names import with_file
from s3prl_ekd.s3prl_hub import NAMES
from s3prl_ekd.teachers.from_s3prl import file_problem, is_download, unsafe_loads_named


@contextlib.contextmanager
def checked_upstream() -> Iterator[None]:
    """While it lasts, the runner checks what it loads for ``-u``, and that ``-s`` names some of its features.

    Raises:
        UserError: a download that failed, a file of another kind, features that the upstream does not have.
    """
    from s3prl.downstream.runner import Runner

    load, select = Runner._get_upstream, Runner._get_featurizer

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
        name, device = runner.args.upstream_feature_selection, runner.args.device
        if name != "hidden_states" and runner.args.upstream in NAMES:  # s3prl takes it for a name that it does not find
            upstream = getattr(runner.upstream.model, "module", runner.upstream.model)
            with torch.no_grad():
                features = upstream.eval()([torch.zeros(SAMPLE_RATE, device=device)])
            if name not in features:
                raise UserError(f"-s {name}: {runner.args.upstream} has no such features; {nearest(name, features)}")
        return select(runner)

    with replaced(Runner, _get_upstream=load_checked, _get_featurizer=select_checked):
        yield


def _not_fetched(args: Any, error: BaseException) -> str:
    import s3prl.hub

    local = with_file(args.upstream, s3prl.hub.options())
    hint = f"; with a copy of it: -u {local} -k FILE" if local else ""
    what = args.upstream_ckpt or f"the weights of {args.upstream}"
    return (
        f"-u {args.upstream}: {what} could not be fetched ({type(error).__name__}): no network, or the address is"
        f" gone{hint}"
    )
