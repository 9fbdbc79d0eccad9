"""``python -m s3prl_ekd.run_downstream``: s3prl's unmodified ``run_downstream.py`` on today's packages, with our hub.

The options are s3prl's. Before it starts, what it would answer with a traceback is checked and said in one line.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_plugin import hub, stock, task_patches
from s3prl_ekd.s3prl_plugin.options import Options, Syntax

_log = logging.getLogger(__name__)

PROG = "python -m s3prl_ekd.run_downstream"
SYNTAX = Syntax(
    prog=PROG,
    values={
        "mode": "-m",
        "evaluate_split": "-t",
        "override": "-o",
        "backend": "",
        "local_rank": "--local-rank",  # as python -m torch.distributed.launch spells it
        "past_exp": "-e",
        "init_ckpt": "-i",
        "config": "-c",
        "downstream": "-d",
        "downstream_variant": "-v",
        "hub": "",
        "upstream": "-u",
        "upstream_ckpt": "-k",
        "upstream_model_config": "-g",
        "upstream_feature_selection": "-s",
        "upstream_layer_selection": "-l",
        "upstream_model_name": "",
        "upstream_revision": "",
        "expname": "-n",
        "expdir": "-p",
        "hf_hub_org": "",
        "push_to_hf_hub": "",
        "seed": "",
        "device": "",
        "cache_dir": "",
    },
    flags={
        "help": "-h",
        "upstream_refresh": "-r",
        "upstream_trainable": "-f",
        "upstream_feature_normalize": "",
        "auto_resume": "-a",
        "verbose": "",
        "disable_cudnn": "",
    },
)


def run(argv: Sequence[str]) -> None:
    """Run s3prl's downstream runner with these options, in this process; may be called repeatedly.

    Raises:
        UserError: bad input.
        SystemExit: from argparse, for a malformed command line.
    """
    options = SYNTAX.parse(argv)
    if "help" in options:
        hub.register()
        stock.run_module("s3prl.run_downstream", options.argv())
        return
    _resolve_resume(options)
    if "past_exp" not in options:
        _check_new_experiment(options)
    _check_checkpoint(options)
    hub.register()  # from here on torch and s3prl are loaded, which takes seconds
    task_patches.apply()
    _check_upstream(options)
    _choose_device(options)
    folder = None if "past_exp" in options else _experiment_folder(options)
    with stock.forget_new_folder(folder):
        stock.run_module("s3prl.run_downstream", options.argv())


def main(argv: Sequence[str] | None = None) -> int:
    """:func:`run` as a command."""
    return stock.main(run, PROG, argv)


def _experiment_folder(options: Options) -> Path:
    return Path(options.get("expdir") or f"result/downstream/{options.get('expname')}")


def _resolve_resume(options: Options) -> None:
    """Name the checkpoint that ``-a`` or ``-e`` goes on from."""
    if options.given.pop("auto_resume", False) and any(_experiment_folder(options).glob("states-*.ckpt")):
        options.given["past_exp"] = str(_experiment_folder(options))
    if "past_exp" in options:
        options.given["past_exp"] = stock.newest_checkpoint(options.get("past_exp"), "-e")
        stock.warn_if_unpickled(options.get("past_exp"))


def _check_new_experiment(options: Options) -> None:
    task = options.get("downstream")
    if task is None:
        raise UserError("-d is missing: name the downstream task, such as ctc, voxceleb1, emotion or asr")
    if importlib.util.find_spec("s3prl.downstream") and not importlib.util.find_spec(f"s3prl.downstream.{task}"):
        folders = Path(importlib.util.find_spec("s3prl.downstream").submodule_search_locations[0])
        raise UserError(f"-d {task}: s3prl has no such task; {nearest(task, _tasks(folders))}")
    if "config" not in options and not Path(f"downstream/{task}/config.yaml").is_file():
        raise UserError(
            f"-c is missing: s3prl's wheel brings no configuration for -d {task}; give -c FILE.yaml"
            " (s3prl-ekd's own are under recipes/)"
        )
    for name, option in (("config", "-c"), ("upstream_model_config", "-g")):
        if name in options:
            options.given[name] = stock.input_file(options.get(name), option)
    if "config" in options:
        config = read_yaml(options.get("config"))
        for key in ("runner", "downstream_expert", *(["optimizer"] if options.get("mode") == "train" else [])):
            if key not in config:
                raise UserError(f"-c {options.get('config')}: has no section {key!r}; is it for a downstream task?")


def _tasks(folder: Path) -> list[str]:
    return [path.parent.name for path in folder.glob("*/expert.py")]


def _check_checkpoint(options: Options) -> None:
    path = options.get("init_ckpt")
    if path is None or "past_exp" in options:
        return
    if not Path(path).is_file():
        raise UserError(f"-i {path}: no such file (working folder: {Path.cwd()})")
    stock.warn_if_unpickled(path)


def _check_upstream(options: Options) -> None:
    name, checkpoint = options.get("upstream"), options.get("upstream_ckpt")
    if "past_exp" in options or options.overrides("upstream") or options.overrides("upstream_ckpt"):
        return
    if options.get("hub") == "huggingface":
        _log.warning("--hub huggingface runs the code (expert.py) of the repository %s: use only one you trust", name)
        return
    import s3prl.hub

    if name is None:
        raise UserError("-u is missing: name the upstream, such as ekd_student")
    if name not in s3prl.hub.options():
        raise UserError(f"-u {name}: s3prl has no such upstream; {_hint(name, s3prl.hub.options())}")
    if name == "ekd_student" and checkpoint is None:
        raise UserError(
            "-u ekd_student needs -k: a student folder, a states-*.ckpt of run_pretrain or a hub id"
            " (-u ekd_student_mini needs none)"
        )
    if name.endswith(("_local", "_custom")) and checkpoint is not None:
        if "://" not in checkpoint and not Path(checkpoint).exists():
            raise UserError(f"-k {checkpoint}: no such file (working folder: {Path.cwd()})")
        stock.warn_if_unpickled(checkpoint)


def _hint(name: str, valid: list[str]) -> str:
    hint, _, _ = nearest(name, valid).partition("valid:")  # the whole list is some 300 names
    return hint.strip() or "see python -m s3prl_ekd.run_downstream -h for the names"


def _choose_device(options: Options) -> None:
    """The CPU where there is no GPU; under torchrun this process's GPU."""
    rank = options.get("local_rank") or os.environ.get("LOCAL_RANK")
    if stock.default_device() == "cuda":
        if rank is not None:
            options.given["local_rank"] = rank
    elif options.get("local_rank") is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("s3prl trains with several processes on GPUs only, and torch sees none: start one process")
    if "device" in options:
        stock.check_device(options.get("device"))
    else:
        options.given["device"] = stock.default_device()
