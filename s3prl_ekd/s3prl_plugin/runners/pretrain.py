"""``python -m s3prl_ekd.run_pretrain``: s3prl's unmodified ``run_pretrain.py``, from any folder, with our recipe in it.

The options are s3prl's. The script expects s3prl's own folder as the working folder: it imports ``pretrain``,
``optimizers`` and others at top level and lists ``pretrain/``. Both are arranged here, for as long as it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s3prl_ekd import assets, recipe_files
from s3prl_ekd.command_line import SEEDS
from s3prl_ekd.devices import default_device
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.s3prl_plugin import trust
from s3prl_ekd.s3prl_plugin.runners import override, support
from s3prl_ekd.s3prl_plugin.runners.options import Options, Syntax
from s3prl_ekd.s3prl_plugin.runners.pretrain_config import check_config

_log = logging.getLogger(__name__)

PROG = "python -m s3prl_ekd.run_pretrain"
RECIPE = "ekd_student"
RECIPES = Path(__file__).parents[1] / "pretrain"  # pretrain/ekd_student/pretrain_expert.py, in s3prl's own layout
SYNTAX = Syntax(
    prog=PROG,
    values={
        "past_exp": "-e",
        "override": "-o",
        "config": "-c",
        "upstream": "-u",
        "upstream_config": "-g",
        "expname": "-n",
        "expdir": "-p",
        "seed": "",
        "device": "",
    },
    flags={"help": "-h", "auto_resume": "-a", "multi_gpu": ""},
    own={trust.SWITCH: trust.HELP},
    integers={"seed": SEEDS},
)
_ADDED = """\
  -u ekd_student  in any folder, on the CPU where there is no GPU, with mistakes in one line
  -g, -c          a file, or one of s3prl-ekd recipes, such as mini/config_model.yaml; one finds the other beside it
  -n, -p          one of them is enough
  -e, -a          -o is followed, and the run goes on in the checkpoint's folder
example:
  python -m s3prl_ekd.run_pretrain -u ekd_student -n ekd -g mini/config_model.yaml \
      -o config.pretrain_expert.datarc.audio_folder=speech
  python -m s3prl_ekd.run_pretrain -e result/pretrain/ekd -o config.runner.total_steps=2000"""
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
    options = SYNTAX.parse(argv)
    if "help" in options:
        with _top_level_modules() as script:
            support.show_help(lambda: _run_script(script, options.argv()), SYNTAX, _ADDED)
        return
    support.check_options(options, SYNTAX)
    _name_experiment(options)
    _resolve_resume(options)
    _choose_device(options)
    with _top_level_modules() as script:
        if "past_exp" not in options:
            _check_new_experiment(options)
            new_folder, changes = options.get("expdir"), {}
        elif _goes_on(options):
            new_folder, changes = None, _settings_of_this_call(options)
        else:
            return
        with (
            trust.checked_already(),
            _end_of_schedule_follows(),
            support.changed_args(options.get("past_exp"), changes),
            support.forget_new_folder(new_folder),
        ):
            _run_script(script, options.argv())


def main(argv: Sequence[str] | None = None) -> int:
    """:func:`run` as a command."""
    return support.main(run, PROG, argv)


def _run_script(script: Path, argv: Sequence[str]) -> None:
    with support.stock_process([str(script), *argv]):
        runpy.run_path(str(script), run_name="__main__")


# --- the folder that run_pretrain.py believes to be in ----------------------------------------------------------------


@contextlib.contextmanager
def _top_level_modules() -> Iterator[Path]:
    """s3prl's modules by the names ``run_pretrain.py`` imports, our recipe among its recipes; yields the script."""
    spec = importlib.util.find_spec("s3prl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("s3prl is not installed; pip install s3prl")
    folder = Path(next(iter(spec.submodule_search_locations)))
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
    listdir = os.listdir
    os.listdir = lambda path=".": _recipe_names(pretrain.__path__) if path == "pretrain/" else listdir(path)
    try:
        yield folder / "run_pretrain.py"
    finally:
        os.listdir = listdir
        sys.path.remove(str(folder))


def _recipe_names(folders: Sequence[str]) -> list[str]:
    return sorted(expert.parent.name for folder in folders for expert in Path(folder).glob("*/pretrain_expert.py"))


# --- options ----------------------------------------------------------------------------------------------------------


def _name_experiment(options: Options) -> None:
    """``-n`` alone, ``-p`` alone or both: s3prl wants ``-n`` in any case."""
    name, folder = options.get("expname"), options.get("expdir")
    if name is None and folder is not None:
        options.given["expname"] = Path(folder).name
    elif folder is None and name is not None:
        options.given["expdir"] = f"result/pretrain/{name}"


def _resolve_resume(options: Options) -> None:
    """Name the checkpoint that ``-a`` or ``-e`` goes on from."""
    if options.given.pop("auto_resume", False):
        if "expdir" not in options:
            raise UserError("-a needs the experiment: give -n NAME or -p FOLDER")
        if any(Path(options.get("expdir")).glob("states-*.ckpt")):
            options.given["past_exp"] = options.get("expdir")
    if "past_exp" in options:
        options.given["past_exp"] = support.newest_checkpoint(options.get("past_exp"), "-e")


def _choose_device(options: Options) -> None:
    if "device" not in options:
        options.given["device"] = default_device()


# What is fixed when a run begins.
KEPT = ("upstream", "seed", "multi_gpu")


def _settings_of_this_call(options: Options) -> dict[str, Any]:
    """What a resumed run shall take from the command line; s3prl takes every option from the checkpoint, -o included.

    The run goes on in the checkpoint's folder, wherever that is now, and on the device that there is now.
    """
    return {
        "device": options.get("device"),
        "override": options.get("override"),
        "expdir": options.get("expdir") or str(Path(options.get("past_exp")).parent),
    }


def _goes_on(options: Options) -> bool:
    """Check a run that shall go on; False if it is finished already."""
    from s3prl_ekd.s3prl_plugin.runners.resume import check_recipe, is_finished, warn_of_changes

    checkpoint, changes = options.get("past_exp"), options.get("override")
    states = support.read_states(checkpoint)
    if "Downstream" in states:
        raise UserError(f"-e {checkpoint}: not a checkpoint of run_pretrain, but of run_downstream")
    stored = vars(states["Args"])
    support.check_unchanged(options, SYNTAX, stored, KEPT)
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
        return False
    return True


def _with_override(options: Options) -> str:
    return " with -o" if "override" in options else ""


def _check_new_experiment(options: Options) -> None:
    names = os.listdir("pretrain/")
    if "upstream" not in options:
        raise UserError(f"-u is missing: name the recipe, {RECIPE}")
    if options.get("upstream") not in names:
        raise UserError(f"-u {options.get('upstream')}: no such recipe; {nearest(options.get('upstream'), names)}")
    if "expdir" not in options:
        raise UserError("give the experiment a name or a folder: -n NAME (result/pretrain/NAME) or -p FOLDER")
    support.check_unused(options.get("expdir"))
    if not options.given.keys() & _YAML.keys():
        _use_default_yaml(options)
    for name in _YAML:
        path = _yaml_file(options, name)
        if path is None:
            (given,) = options.given.keys() & _YAML.keys()
            option, file = _YAML[name]
            raise UserError(f"{option} is missing, and beside {options.get(given)} there is no {file}")
        options.given[name] = path
    config = override.applied(options.get("override"), read_yaml(options.get("config")))
    check_config(config, f"-c {options.get('config')}{_with_override(options)}")


def _use_default_yaml(options: Options) -> None:
    """s3prl's default, the YAML beside the recipe's code; its wheel brings none, and ours are under recipes/."""
    for folder in (Path(path, options.get("upstream")) for path in sys.modules["pretrain"].__path__):
        if all((folder / file).is_file() for _, file in _YAML.values()):
            options.given |= {name: str(folder / file) for name, (_, file) in _YAML.items()}
            return
    if options.get("upstream") != RECIPE:
        raise UserError(f"-g and -c are missing: s3prl's wheel brings no YAML for {options.get('upstream')}")
    raise UserError(
        "-g and -c are missing: give -g NAME/config_model.yaml -c NAME/config_runner.yaml of your own or one of"
        f" {', '.join(_packaged())}"
    )


def _yaml_file(options: Options, name: str) -> str | None:
    """The YAML given, else the one beside the other one given."""
    option, file = _YAML[name]
    if name in options:
        return recipe_files.find(options.get(name), option)
    for other in options.given.keys() & _YAML.keys():
        beside = Path(recipe_files.find(options.get(other), _YAML[other][0])).with_name(file)
        if beside.is_file():
            return str(beside)
    return None


def _packaged() -> list[str]:
    """Packaged recipe folders, as ``recipes/NAME``, which the options accept from any working folder."""
    root = assets.recipe()
    return sorted(f"recipes/{file.parent.relative_to(root).as_posix()}" for file in root.rglob("config_model.yaml"))


# --- what the script itself gets wrong --------------------------------------------------------------------------------


@contextlib.contextmanager
def _end_of_schedule_follows() -> Iterator[None]:
    """While it lasts, a resumed run with other ``total_steps`` has its learning rate follow them."""
    module = sys.modules["pretrain.runner"]
    original = module.Runner

    class Runner(original):
        def _get_optimizer(self, model_params: Any) -> Any:
            optimizer = super()._get_optimizer(model_params)
            for group in optimizer.param_groups:  # a *_with_schedule optimizer has just got the checkpoint's end
                if hasattr(group.get("schedule"), "t_total"):
                    group["schedule"].t_total = float(self.config["runner"]["total_steps"])
            return optimizer

    module.Runner = Runner
    try:
        yield
    finally:
        module.Runner = original
