"""``python -m s3prl_ekd.run_pretrain``: s3prl's unmodified ``run_pretrain.py``, from any folder, with our recipe in it.

The options are s3prl's. The script expects s3prl's own folder as the working folder: it imports ``pretrain``,
``optimizers`` and others at top level and lists ``pretrain/``. Both are arranged here, for as long as it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd import recipe_files
from s3prl_ekd.devices import default_device
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_compat import patches, upstream_names
from s3prl_ekd.s3prl_compat.patches import replaced
from s3prl_ekd.s3prl_plugin.runners import checkpoints, override, trust
from s3prl_ekd.s3prl_plugin.runners.guard import checked_already
from s3prl_ekd.s3prl_plugin.runners.options import PRETRAIN, Options
from s3prl_ekd.s3prl_plugin.runners.pretrain_config import check_config
from s3prl_ekd.s3prl_plugin.runners.stock_process import as_command, forget_new_folder, stock_process

_log = logging.getLogger(__name__)

RECIPE = "ekd_student"
RECIPES = Path(__file__).parents[1] / "pretrain"  # pretrain/ekd_student/pretrain_expert.py, in s3prl's own layout
_YAML = {"config": ("-c", "config_runner.yaml"), "upstream_config": ("-g", "config_model.yaml")}


def run(argv: Sequence[str]) -> None:
    """Run s3prl's pretraining runner with these options, in this process.

    Raises:
        UserError: bad input.
        SystemExit: after ``--help``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "s3prl's run_pretrain is one process, and several would write into one folder; train on several GPUs with"
            " 's3prl-ekd distill' under torchrun"
        )
    options = PRETRAIN.parse(argv)
    if "help" in options:
        with _top_level_modules() as script:
            PRETRAIN.show_help(lambda: _run_script(script, options.argv()))
        return
    PRETRAIN.check(options)
    _name_experiment(options)
    checkpoints.resolve_resume(options, Path(options["expdir"]) if "expdir" in options else None)
    options.setdefault("device", default_device())
    with _top_level_modules() as script:
        if "past_exp" in options:
            new_folder, changes = None, _check_checkpoint_to_go_on_from(options)
        else:
            new_folder, changes = _check_new_experiment(options), {}
        if changes is None:
            return
        with (
            checked_already(),
            _end_of_schedule_follows(),
            checkpoints.changed_args(options.get("past_exp"), changes),
            forget_new_folder(new_folder),
        ):
            _run_script(script, options.argv())


def main(argv: Sequence[str] | None = None) -> int:
    """:func:`run` as a command."""
    return as_command(run, PRETRAIN.prog, argv)


def _run_script(script: Path, argv: Sequence[str]) -> None:
    with stock_process([str(script), *argv]):
        runpy.run_path(str(script), run_name="__main__")


# --- the folder that run_pretrain.py believes to be in ----------------------------------------------------------------


@contextlib.contextmanager
def _top_level_modules() -> Iterator[Path]:
    """s3prl's modules by the names ``run_pretrain.py`` imports, our recipe among its recipes; yields the script."""
    folder = upstream_names.s3prl_folder()
    if folder is None:
        raise UserError("s3prl is not installed; pip install s3prl")
    # After a checkpoint that it could not read, s3prl's distiller leaves s3prl.optimizers under this name; the classes
    # of runs' checkpoints, which are "optimizers.NAME", would not be found in it.
    if "optimizers" in sys.modules and sys.modules["optimizers"] is sys.modules.get("s3prl.optimizers"):
        del sys.modules["optimizers"]
    sys.path.insert(0, str(folder))  # first, so that a folder 'pretrain' or 'utility' of the user's is not taken
    try:
        pretrain = importlib.import_module("pretrain")
        for name in ("utility.helper", "optimizers", "schedulers", "pretrain.runner"):
            importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
    patches.apply()
    if str(RECIPES) not in pretrain.__path__:
        pretrain.__path__.append(str(RECIPES))
    sys.path.append(str(folder))  # last: s3prl's own recipes import from it when they start
    stock_listdir = os.listdir

    def listdir(path: str = ".") -> list[str]:
        if path != "pretrain/":
            return stock_listdir(path)
        experts = (file for where in pretrain.__path__ for file in Path(where).glob("*/pretrain_expert.py"))
        return sorted(file.parent.name for file in experts)

    try:
        with replaced(os, listdir=listdir):
            yield folder / "run_pretrain.py"
    finally:
        sys.path.remove(str(folder))


# --- options ----------------------------------------------------------------------------------------------------------


def _name_experiment(options: Options) -> None:
    """``-n`` alone, ``-p`` alone or both: s3prl wants ``-n`` in any case."""
    name, folder = options.get("expname"), options.get("expdir")
    if name is None and folder is not None:
        options["expname"] = Path(folder).name
    elif folder is None and name is not None:
        options["expdir"] = f"result/pretrain/{name}"


def _check_checkpoint_to_go_on_from(options: Options) -> dict[str, Any] | None:
    """Check ``-e`` without running anything of it.

    Returns:
        What to change in the options that the checkpoint has, from which s3prl takes every option, ``-o`` included. The
        run goes on in its folder, wherever that is now, and on the device that there is now. None: it is finished.
    """
    from s3prl_ekd.s3prl_plugin.runners.resume import check_recipe, is_finished, warn_of_changes

    checkpoint, changes = options["past_exp"], options.get("override")
    states = checkpoints.read_states(checkpoint)
    if "Downstream" in states:
        raise UserError(f"-e {checkpoint}: not a checkpoint of run_pretrain, but of run_downstream")
    stored = vars(states["Args"])
    checkpoints.check_unchanged(options, PRETRAIN, stored)
    args, names = stored | override.arguments(changes), os.listdir("pretrain/")
    upstream = args.get("upstream")
    if upstream not in names:
        hint = nearest(str(upstream), names)
        raise UserError(f"-e {checkpoint}: was made by the recipe {upstream!r}, which is not here; {hint}")
    if not isinstance(states.get("Config"), dict):
        raise UserError(f"-e {checkpoint}: a damaged checkpoint (no configuration in it)")
    trust.check_pretraining(checkpoint, args, states, states["Config"], options)
    config = override.applied(changes, states["Config"])
    check_config(config, f"-e {checkpoint}{_with_override(options)}")
    recipe, runner = (_yaml_file(options, name) for name in ("upstream_config", "config"))
    if recipe:
        check_recipe(recipe, states)
    if runner:
        warn_of_changes(runner, changes, config)
    if is_finished(checkpoint, states, config):
        _log.info("%s: finished, nothing to do; -o config.runner.total_steps=N would train on", checkpoint)
        return None
    return {
        "device": options.get("device"),
        "override": changes,
        "expdir": options.get("expdir") or str(Path(checkpoint).parent),
    }


def _with_override(options: Options) -> str:
    return " with -o" if "override" in options else ""


def _check_new_experiment(options: Options) -> str:
    """Check the options of a new experiment, and find the files that they name; returns its folder."""
    names = os.listdir("pretrain/")
    if "upstream" not in options:
        raise UserError(f"-u is missing: name the recipe, {RECIPE}")
    if options["upstream"] not in names:
        raise UserError(f"-u {options['upstream']}: no such recipe; {nearest(options['upstream'], names)}")
    if "expdir" not in options:
        raise UserError("give the experiment a name or a folder: -n NAME (result/pretrain/NAME) or -p FOLDER")
    checkpoints.check_unused(options["expdir"])
    if not options.keys() & _YAML.keys():
        _use_default_yaml(options)
    for name in _YAML:
        path = _yaml_file(options, name)
        if path is None:
            (given,) = options.keys() & _YAML.keys()
            option, file = _YAML[name]
            raise UserError(f"{option} is missing, and beside {options.get(given)} there is no {file}")
        options[name] = path
    config = override.applied(options.get("override"), read_yaml(options["config"]))
    check_config(config, f"-c {options.get('config')}{_with_override(options)}")
    return options["expdir"]


def _use_default_yaml(options: Options) -> None:
    """s3prl's default, the YAML beside the recipe's code; its wheel brings none, and ours are under recipes/."""
    for folder in (Path(path, options["upstream"]) for path in sys.modules["pretrain"].__path__):
        if all((folder / file).is_file() for _, file in _YAML.values()):
            options.update({name: str(folder / file) for name, (_, file) in _YAML.items()})
            return
    if options.get("upstream") != RECIPE:
        raise UserError(f"-g and -c are missing: s3prl's wheel brings no YAML for {options.get('upstream')}")
    packaged = ", ".join(f"recipes/{name}" for name in recipe_files.for_pretraining())
    raise UserError(
        "-g and -c are missing: give -g NAME/config_model.yaml -c NAME/config_runner.yaml of your own or one of"
        f" {packaged}"
    )


def _yaml_file(options: Options, name: str) -> str | None:
    """The YAML given, else the one beside the other one given."""
    option, file = _YAML[name]
    if name in options:
        return recipe_files.find(options[name], option)
    for other in options.keys() & _YAML.keys():
        beside = Path(recipe_files.find(options[other], _YAML[other][0])).with_name(file)
        if beside.is_file():
            return str(beside)
    return None


# --- what the script itself gets wrong --------------------------------------------------------------------------------


@contextlib.contextmanager
def _end_of_schedule_follows() -> Iterator[None]:
    """While it lasts, a resumed run with other ``total_steps`` has its learning rate follow them."""
    runner = vars(sys.modules["pretrain.runner"])["Runner"]
    original = runner._get_optimizer

    def get_optimizer(self: Any, model_params: Any) -> Any:
        optimizer = original(self, model_params)
        for group in optimizer.param_groups:  # a *_with_schedule optimizer has just got the checkpoint's end
            if hasattr(group.get("schedule"), "t_total"):
                group["schedule"].t_total = float(self.config["runner"]["total_steps"])
        return optimizer

    with replaced(runner, _get_optimizer=get_optimizer):
        yield
