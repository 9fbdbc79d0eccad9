"""``python -m s3prl_ekd.run_downstream``: s3prl's unmodified ``run_downstream.py`` on today's packages, with our hub.

The options are s3prl's. Before it starts, what it would answer with a traceback is checked and said in one line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd import recipe_files, s3prl_hub
from s3prl_ekd.devices import default_device
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_compat import task_patches, upstream_names
from s3prl_ekd.s3prl_plugin.runners import checkpoints, downstream_config, override, trust
from s3prl_ekd.s3prl_plugin.runners.guard import checked_already
from s3prl_ekd.s3prl_plugin.runners.optimizer_config import check_training
from s3prl_ekd.s3prl_plugin.runners.options import DOWNSTREAM, Options
from s3prl_ekd.s3prl_plugin.runners.stock_process import as_command, forget_new_folder, run_module

_log = logging.getLogger(__name__)

_NOT_DOWNSTREAM = "not a checkpoint of run_downstream"


def run(argv: Sequence[str]) -> None:
    """Run s3prl's downstream runner with these options, in this process; may be called repeatedly.

    Raises:
        UserError: bad input.
        SystemExit: after ``--help``.
    """
    options = DOWNSTREAM.parse(argv)
    if "help" in options:
        s3prl_hub.register()
        DOWNSTREAM.show_help(lambda: run_module("s3prl.run_downstream", options.argv()))
        return
    DOWNSTREAM.check(options)
    if "mode" not in options:
        raise UserError("-m is missing: train or evaluate")
    checkpoints.resolve_resume(options, _experiment_folder(options))
    if "past_exp" in options:
        new_folder, changes = None, _check_checkpoint_to_go_on_from(options)
    else:
        new_folder, changes = _check_new_experiment(options), {}
    s3prl_hub.register()  # from here on torch and s3prl are loaded, which takes seconds
    task_patches.apply()
    if new_folder is None:
        _check_resumed_configuration(options)
    else:
        _check_checkpoint(options)
        _check_new_configuration(options)
    _choose_device(options)
    from s3prl_ekd.s3prl_compat.speech_files import read_as_speech
    from s3prl_ekd.s3prl_plugin.runners.checked_upstream import checked_upstream

    with (
        checked_already(),
        checkpoints.changed_args(options.get("past_exp"), changes),
        forget_new_folder(new_folder),
        checked_upstream(),
        read_as_speech(),
    ):
        run_module("s3prl.run_downstream", options.argv())


def main(argv: Sequence[str] | None = None) -> int:
    """:func:`run` as a command."""
    return as_command(run, DOWNSTREAM.prog, argv)


def _experiment_folder(options: Options) -> Path | None:
    """The folder that the options name; None if they name neither a folder nor an experiment."""
    folder = override.arguments(options.get("override")).get("expdir") or options.get("expdir")
    if not folder and "expname" in options:
        folder = f"result/downstream/{options['expname']}"
    return Path(str(folder)) if folder else None


# What a run that goes on takes from the command line where that says it: s3prl takes it from the checkpoint. (It takes
# -m, -t, -o, --backend, --local_rank and --device from the command line by itself.)
_OF_THIS_CALL = (
    *("upstream_ckpt", "upstream_model_config", "upstream_refresh", "expname", "cache_dir", "verbose"),
    *("disable_cudnn", "push_to_hf_hub", "hf_hub_org"),
)


def _check_checkpoint_to_go_on_from(options: Options) -> dict[str, Any]:
    """Check ``-e`` without running anything of it.

    Returns:
        What to change in the options that the checkpoint has. The run goes on in its folder, wherever that is now, and
        uploads nothing without being told again.
    """
    path = options["past_exp"]
    states = checkpoints.read_states(path)
    if "Downstream" not in states:
        raise UserError(
            f"-e {path}: {_NOT_DOWNSTREAM}, but of run_pretrain; its student is judged by -m train -u ekd_student -k"
            f" {path} and a task (-d, -c)"
        )
    stored, config = vars(states["Args"]), states.get("Config")
    texts = [stored.get("upstream"), stored.get("downstream")]
    if not isinstance(config, Mapping) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"-e {path}: a damaged checkpoint (no configuration, upstream or task in it)")
    checkpoints.check_unchanged(options, DOWNSTREAM, stored)
    if "upstream_model_config" in options:
        options["upstream_model_config"] = recipe_files.find(options["upstream_model_config"], "-g")
    folder = _experiment_folder(options) or Path(path).parent
    changes: dict[str, Any] = {"expdir": str(folder), "push_to_hf_hub": False}
    changes |= {name: options.get(name) for name in _OF_THIS_CALL if name in options}
    if changes.get("upstream_ckpt", stored.get("upstream_ckpt")) != stored.get("upstream_ckpt"):
        _log.info("-k %s, instead of the checkpoint's %s", options.get("upstream_ckpt"), stored.get("upstream_ckpt"))
    if stored.get("push_to_hf_hub") and "push_to_hf_hub" not in options:
        _log.info("nothing will be uploaded: --push_to_hf_hub has to be given again")
    args = stored | changes | override.arguments(options.get("override"))
    for name in ("upstream", "downstream"):
        if not isinstance(args[name], str):
            raise UserError(f"-o args.{name}: expected a name, found {args[name]!r}")
    _check_task(args["downstream"], f"-e {path}: -d")
    trust.check_downstream(path, args, config, options)
    if "config" in options:
        options["config"] = recipe_files.find(options["config"], "-c")
    return changes


def _check_task(task: str, where: str) -> None:
    folder = upstream_names.s3prl_folder()
    tasks = [expert.parent.name for expert in folder.glob("downstream/*/expert.py")] if folder else []
    if tasks and task not in tasks:
        raise UserError(f"{where} {task}: s3prl has no such task; {nearest(task, tasks)}")


def _check_new_experiment(options: Options) -> Path:
    """Check the options of a new experiment without s3prl, and find the files that they name; returns its folder."""
    task, upstream = options.get("downstream"), options.get("upstream")
    if task is None:
        raise UserError("-d is missing: name the downstream task, such as ctc, voxceleb1, emotion or asr")
    _check_task(task, "-d")
    if "config" not in options and not Path(f"downstream/{task}/config.yaml").is_file():
        raise UserError(
            f"-c is missing: s3prl's wheel brings no configuration for -d {task}; give -c FILE.yaml"
            " (s3prl-ekd's own are under recipes/)"
        )
    for name, option in (("config", "-c"), ("upstream_model_config", "-g")):
        if name in options:
            options[name] = recipe_files.find(options[name], option)
    folder = _experiment_folder(options)
    if folder is None:
        raise UserError("give the experiment a name or a folder: -n NAME (result/downstream/NAME) or -p FOLDER")
    if not options.overrides("upstream") and not options.overrides("upstream_ckpt"):
        if upstream is None:
            raise UserError("-u is missing: name the upstream, such as ekd_student")
        _check_upstream(upstream, options)
    if options["mode"] == "train":
        checkpoints.check_unused(folder)
    return folder


def _check_upstream(name: str, options: Options) -> None:
    if options.get("hub") == "huggingface":
        _log.warning("--hub huggingface runs the code (expert.py) of the repository %s: use only one you trust", name)
        return
    s3prl_hub.check_name(name, "-u")
    if name == "ekd_student" and "upstream_ckpt" not in options:
        raise UserError(
            "-u ekd_student needs -k: a student folder, a states-*.ckpt of run_pretrain or a hub id"
            " (-u ekd_student_mini needs none)"
        )
    upstream_names.check_file(name, options.get("upstream_ckpt"), options=("-u", "-k"))


def _check_checkpoint(options: Options) -> None:
    """``-i``, of which s3prl ignores whatever is not of a downstream run."""
    path = options.get("init_ckpt")
    if path is None:
        return
    if not Path(path).is_file():
        raise UserError(f"-i {path}: no such file (working folder: {Path.cwd()})")
    from s3prl_ekd.weights.kinds import kind_of
    from s3prl_ekd.weights.pickles import load_pickle_safely

    states = load_pickle_safely(path)
    if not isinstance(states, dict) or not {"Upstream", "Featurizer", "Downstream"} & states.keys():
        raise UserError(f"-i {path}: {_NOT_DOWNSTREAM}, but {kind_of(states)}")


def _check_new_configuration(options: Options) -> None:
    task = options["downstream"]
    file = options.get("config") or f"downstream/{task}/config.yaml"
    given = read_yaml(file)
    try:
        config = override.applied(options.get("override"), given)
        downstream_config.check_keys(task, config)
        downstream_config.check_filled_in(task, config)
        if options["mode"] == "train":
            check_training(config, package="s3prl.")
    except UserError as error:
        raise UserError(f"-c {file}{' with -o' if 'override' in options else ''}: {error}") from error
    _choose_split(options, task, config)


def _check_resumed_configuration(options: Options) -> None:
    """The checkpoint's was good enough to train with: only what ``-o`` changes is new."""
    from s3prl_ekd.s3prl_plugin.runners.resume import warn_of_changes

    path, changes = options["past_exp"], options.get("override")
    states = checkpoints.read_states(path)
    task, config = states["Args"].downstream, override.applied(changes, states["Config"])
    try:
        downstream_config.check_keys(task, override.applied(changes, {}))
        if changes and options["mode"] == "train":
            check_training(config, package="s3prl.")
    except UserError as error:
        raise UserError(f"-o: {error}") from error
    if "config" in options:
        warn_of_changes(options["config"], changes, config)
    _choose_split(options, task, config)


def _choose_split(options: Options, task: str, config: Mapping[str, Any]) -> None:
    if options["mode"] == "evaluate" and "evaluate_split" not in options and not options.overrides("evaluate_split"):
        options["evaluate_split"] = downstream_config.default_split(task, config)


def _choose_device(options: Options) -> None:
    """The CPU where there is no GPU; under torchrun this process's GPU."""
    rank = options.get("local_rank") or os.environ.get("LOCAL_RANK")
    if default_device() == "cuda":
        if rank is not None:
            options["local_rank"] = rank
    elif options.get("local_rank") is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("s3prl trains with several processes on GPUs only, and torch sees none: start one process")
    if "device" not in options:
        options["device"] = default_device()
