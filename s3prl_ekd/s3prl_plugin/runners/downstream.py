"""``python -m s3prl_ekd.run_downstream``: s3prl's unmodified ``run_downstream.py`` on today's packages, with our hub.

The options are s3prl's. Before it starts, what it would answer with a traceback is checked and said in one line.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd import recipe_files
from s3prl_ekd.command_line import SEEDS
from s3prl_ekd.devices import default_device
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_compat import task_patches
from s3prl_ekd.s3prl_plugin import hub, trust
from s3prl_ekd.s3prl_plugin.runners import downstream_config, override, support
from s3prl_ekd.s3prl_plugin.runners.options import Options, Syntax

_log = logging.getLogger(__name__)

PROG = "python -m s3prl_ekd.run_downstream"
_NOT_DOWNSTREAM = "not a checkpoint of run_downstream"
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
    own={trust.SWITCH: trust.HELP},
    choices={"mode": ("train", "evaluate", "inference"), "hub": ("torch", "huggingface")},
    integers={"seed": SEEDS, "local_rank": (0, 2**31 - 1), "upstream_layer_selection": (-(2**31), 2**31 - 1)},
)
_ADDED = """\
  -u ekd_student -k WHERE  a student folder, a states-*.ckpt of run_pretrain or a hub id; -u ekd_student_mini: no -k
  -c                       a file, or one of s3prl-ekd recipes, such as downstream/real/er.yaml
  -e, -a                   -k, -g, -p and --cache_dir are followed, and what s3prl would ignore is refused
example:
  python -m s3prl_ekd.run_downstream -m train -n my_er -u ekd_student -k demo/student -d emotion -c my_er.yaml
  python -m s3prl_ekd.run_downstream -m evaluate -e result/downstream/my_er/dev-best.ckpt"""


def run(argv: Sequence[str]) -> None:
    """Run s3prl's downstream runner with these options, in this process; may be called repeatedly.

    Raises:
        UserError: bad input.
        SystemExit: after ``--help``.
    """
    options = SYNTAX.parse(argv)
    if "help" in options:
        hub.register()
        support.show_help(lambda: support.run_module("s3prl.run_downstream", options.argv()), SYNTAX, _ADDED)
        return
    support.check_options(options, SYNTAX)
    if "mode" not in options:
        raise UserError("-m is missing: train or evaluate")
    _resolve_resume(options)
    new = "past_exp" not in options
    if new:
        _check_new_experiment(options)
        changes = {}
    else:
        changes = _check_checkpoint_to_go_on_from(options)
    hub.register()  # from here on torch and s3prl are loaded, which takes seconds
    task_patches.apply()
    if new:
        _check_checkpoint(options)
        _check_new_configuration(options)
        _check_upstream(options)
    else:
        _check_resumed_configuration(options)
    _choose_device(options)
    from s3prl_ekd.s3prl_compat.speech_files import read_as_speech
    from s3prl_ekd.s3prl_plugin.runners.checked_upstream import checked_upstream

    with (
        trust.checked_already(),
        support.changed_args(options.get("past_exp"), changes),
        support.forget_new_folder(_experiment_folder(options) if new else None),
        checked_upstream(),
        read_as_speech(),
    ):
        support.run_module("s3prl.run_downstream", options.argv())


def main(argv: Sequence[str] | None = None) -> int:
    """:func:`run` as a command."""
    return support.main(run, PROG, argv)


def _is_named(options: Options) -> bool:
    return "expname" in options or "expdir" in options or options.overrides("expdir")


def _experiment_folder(options: Options) -> Path:
    return Path(options.get("expdir") or f"result/downstream/{options.get('expname')}")


def _resolve_resume(options: Options) -> None:
    """Name the checkpoint that ``-a`` or ``-e`` goes on from."""
    if options.given.pop("auto_resume", False):
        if not _is_named(options):
            raise UserError("-a needs the experiment: give -n NAME or -p FOLDER")
        if any(_experiment_folder(options).glob("states-*.ckpt")):
            options.given["past_exp"] = str(_experiment_folder(options))
            options.given.pop("init_ckpt", None)  # the run has begun with it
    if "past_exp" in options:
        if "init_ckpt" in options:
            raise UserError("-i beside -e: -e takes the weights from its own checkpoint; leave one of the two out")
        options.given["past_exp"] = support.newest_checkpoint(options.get("past_exp"), "-e")


# What is fixed when a run begins, and what a resumed one takes from the command line where that says it: s3prl takes
# both from the checkpoint. (It takes -m, -t, -o, --backend, --local_rank and --device from the command line by itself.)
KEPT = (
    *("upstream", "hub", "upstream_model_name", "upstream_revision", "upstream_trainable"),
    *("upstream_feature_selection", "upstream_layer_selection", "upstream_feature_normalize"),
    *("downstream", "downstream_variant", "seed"),
)
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
    path = options.get("past_exp")
    states = support.read_states(path)
    if "Downstream" not in states:
        raise UserError(
            f"-e {path}: {_NOT_DOWNSTREAM}, but of run_pretrain; its student is judged by -m train -u ekd_student -k"
            f" {path} and a task (-d, -c)"
        )
    stored, config = vars(states["Args"]), states.get("Config")
    texts = [stored.get("upstream"), stored.get("downstream")]
    if not isinstance(config, Mapping) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"-e {path}: a damaged checkpoint (no configuration, upstream or task in it)")
    support.check_unchanged(options, SYNTAX, stored, KEPT)
    if "upstream_model_config" in options:
        options.given["upstream_model_config"] = recipe_files.find(options.get("upstream_model_config"), "-g")
    named = options.given.keys() & {"expname", "expdir"}
    changes = {"expdir": str(_experiment_folder(options) if named else Path(path).parent), "push_to_hf_hub": False}
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
        options.given["config"] = recipe_files.find(options.get("config"), "-c")
    return changes


def _check_task(task: str, where: str) -> None:
    tasks = _tasks()
    if tasks and task not in tasks:
        raise UserError(f"{where} {task}: s3prl has no such task; {nearest(task, tasks)}")


def _check_new_experiment(options: Options) -> None:
    task = options.get("downstream")
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
            options.given[name] = recipe_files.find(options.get(name), option)
    if not _is_named(options):
        raise UserError("give the experiment a name or a folder: -n NAME (result/downstream/NAME) or -p FOLDER")
    if options.get("mode") == "train":
        support.check_unused(_experiment_folder(options))


def _tasks() -> list[str]:
    spec = importlib.util.find_spec("s3prl.downstream")
    folders = spec.submodule_search_locations if spec else ()
    return [path.parent.name for folder in folders for path in Path(folder).glob("*/expert.py")]


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
    task = options.get("downstream")
    file = options.get("config") or f"downstream/{task}/config.yaml"
    given, train = read_yaml(file), options.get("mode") == "train"
    try:
        config = override.applied(options.get("override"), given)
        for section in ("runner", "downstream_expert", *(["optimizer"] if train else [])):
            if not isinstance(config.get(section), Mapping):
                raise UserError(f"has no section {section!r}; is it for a downstream task?")
        downstream_config.check_keys(task, config)
        downstream_config.check_numbers(config)
        downstream_config.check_filled_in(task, config)
        if train:
            downstream_config.check_training_sections(config)
    except UserError as error:
        raise UserError(f"-c {file}{' with -o' if 'override' in options else ''}: {error}") from error
    _check_split(options, task, config)


def _check_resumed_configuration(options: Options) -> None:
    """The checkpoint's was good enough to train with: only what ``-o`` changes is new."""
    from s3prl_ekd.s3prl_plugin.runners.resume import warn_of_changes

    path, changes = options.get("past_exp"), options.get("override")
    states = support.read_states(path)
    task, config = states["Args"].downstream, override.applied(changes, states["Config"])
    try:
        downstream_config.check_keys(task, override.applied(changes, {}))
        downstream_config.check_numbers(override.applied(changes, {}))
        if changes and options.get("mode") == "train":
            downstream_config.check_training_sections(config)
    except UserError as error:
        raise UserError(f"-o: {error}") from error
    if "config" in options:
        warn_of_changes(options.get("config"), changes, config)
    _check_split(options, task, config)


def _check_split(options: Options, task: str, config: Mapping[str, Any]) -> None:
    if options.get("mode") != "evaluate" or options.overrides("evaluate_split"):
        return
    split, valid = options.get("evaluate_split"), downstream_config.splits(task, config)
    if split is None:
        options.given["evaluate_split"] = downstream_config.default_split(task, config)
    elif valid is not None and split not in valid:
        raise UserError(f"-t {split}: the configuration has no such split; {nearest(split, valid)}")


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
    is_file = name.endswith(("_local", "_custom")) and checkpoint is not None and "://" not in checkpoint
    if is_file and not Path(checkpoint).exists():
        raise UserError(f"-k {checkpoint}: no such file (working folder: {Path.cwd()})")


def _hint(name: str, valid: list[str]) -> str:
    hint, _, _ = nearest(name, valid).partition("valid:")  # the whole list is some 300 names
    return hint.strip() or "see python -m s3prl_ekd.run_downstream -h for the names"


def _choose_device(options: Options) -> None:
    """The CPU where there is no GPU; under torchrun this process's GPU."""
    rank = options.get("local_rank") or os.environ.get("LOCAL_RANK")
    if default_device() == "cuda":
        if rank is not None:
            options.given["local_rank"] = rank
    elif options.get("local_rank") is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("s3prl trains with several processes on GPUs only, and torch sees none: start one process")
    if "device" not in options:
        options.given["device"] = default_device()
