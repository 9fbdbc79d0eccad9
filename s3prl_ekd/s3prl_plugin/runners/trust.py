"""What the plain values of a runner's checkpoint can make s3prl run, and whether the user asked for it.

A run that goes on takes its options and its configuration from the checkpoint. Without any pickle in it, it can so name
an upstream (or a teacher) that unpickles a file, evaluates strings of that file's configuration or fetches code, and
strings that s3prl's tasks evaluate themselves, such as ``downstream_expert.modelrc.select``. Such a thing counts only
if the user names it as well, by the same option again, or trusts the checkpoint by ``--trust-checkpoint``.

What needs no confirmation: this package's students (read without code), s3prl's upstreams that bring their own address,
and the configurations of the tasks whose code was read for this, as long as their strings are names, numbers or paths.
"""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from s3prl_ekd import recipe_files
from s3prl_ekd.config.recipe import DistillConfig
from s3prl_ekd.errors import UserError
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_compat.upstream_names import takes_file
from s3prl_ekd.s3prl_hub import NAMES
from s3prl_ekd.s3prl_plugin.runners.options import TRUST, TRUST_FLAG, Options
from s3prl_ekd.tasks import BY_DOWNSTREAM

# How s3prl 0.4.18 puts a string of a configuration into eval().
_EVALUATED_AS = ("{}", "get_{}", "self.{}", "self.get_{}_dataloader")

_OPTIONS = {"upstream": "-u", "upstream_ckpt": "-k", "upstream_model_config": "-g", "hub": "--hub"}

Settings = Mapping[str, Any]


def check_downstream(file: str, args: Settings, config: Settings, options: Options) -> None:
    """Check what a checkpoint of ``run_downstream`` names, before anything of it is used.

    Args:
        file: the checkpoint.
        args: the options that the run will have, from the checkpoint and from the command line.
        config: the checkpoint's configuration.
        options: the command line.

    Raises:
        UserError: something that could run code and that the command line does not name.
    """
    if TRUST in options:
        return
    missing = _unnamed_upstream(args, options)
    if missing:
        origin = f" of {_shown(args['upstream_ckpt'])}" if args.get("upstream_ckpt") else ""
        what = f"the upstream {_shown(args['upstream'])}{origin}"
        raise _refused(file, what, " ".join(f"{_OPTIONS[key]} {_shown(value)}" for key, value in missing.items()))
    task, own = args.get("downstream"), _own_yaml(options, "config")
    if task not in BY_DOWNSTREAM and own.get("downstream_expert") != config.get("downstream_expert"):
        raise _refused(file, f"data for -d {task}, and not every task reads its data safely", "its -c FILE")
    _check_strings(file, config, own, "-c")


def _unnamed_upstream(args: Settings, options: Options) -> dict[str, str]:
    """The options that the user would have to give, with their values; none if the upstream is harmless or named."""
    files = {name: args.get(name) for name in ("upstream_ckpt", "upstream_model_config") if args.get(name) is not None}
    if args.get("hub") == "huggingface" or args.get("from_hf_hub"):
        needed = {"hub": "huggingface", "upstream": args["upstream"]}
    elif args["upstream"] in NAMES:
        needed = {}
    elif takes_file(args["upstream"]):
        needed = {"upstream": args["upstream"]} | files
    else:
        needed = files
    return {name: v for name, v in needed.items() if options.get(name) != str(v) and not options.overrides(name)}


def check_pretraining(file: str, args: Settings, states: Settings, config: Settings, options: Options) -> None:
    """The same for ``run_pretrain``, where ``-g`` names the recipe and ``-c`` the configuration.

    ``states`` is all that is in the checkpoint, for the rest see :func:`check_downstream`.

    Raises:
        UserError: see :func:`check_downstream`; or the checkpoint brings no recipe, but the path of one.
    """
    from s3prl_ekd.student.checkpoint import RECIPE_KEY

    if TRUST in options:
        return
    recipe = states.get(RECIPE_KEY)
    if not isinstance(recipe, Mapping):
        raise _refused(file, "another file as its recipe", "")
    if args.get("upstream") == "ekd_student":
        check_teachers(file, recipe, options)
    else:
        _check_strings(file, recipe, _own_yaml(options, "upstream_config"), "-g")
    _check_strings(file, config, _own_yaml(options, "config"), "-c")


def check_teachers(file: str, recipe: Settings, options: Options) -> None:
    """Check the teachers of a checkpoint's recipe.

    Raises:
        UserError: one that loads a file through s3prl, and the command line does not name the recipe.
    """
    if TRUST in options:
        return
    named = set()
    if "upstream_config" in options:
        own = DistillConfig.from_mapping(_own_yaml(options, "upstream_config"), f"-g {options.get('upstream_config')}")
        named = {(teacher.s3prl, teacher.ckpt) for teacher in own.teachers}
    for teacher in DistillConfig.from_mapping(recipe, "Upstream_Config").teachers:
        loads_any_file = teacher.s3prl is not None and (takes_file(teacher.s3prl) or teacher.ckpt is not None)
        if loads_any_file and (teacher.s3prl, teacher.ckpt) not in named:
            origin = f" of {_shown(teacher.ckpt)}" if teacher.ckpt else ""
            raise _refused(file, f"the teacher s3prl: {_shown(teacher.s3prl)}{origin}", "its recipe by -g FILE")


def _check_strings(file: str, settings: Settings, own: Settings, option: str) -> None:
    """Refuse strings that call something when they are evaluated, unless the user's ``own`` file has them too."""
    named = {text for _, text in _strings(own)}
    for place, text in _strings(settings):
        if text not in named and _calls_something(text):
            raise _refused(file, f"{_shown(place)}: {text[:80]!r}", f"it by {option} FILE")


def _own_yaml(options: Options, name: str) -> dict[str, Any]:
    if name not in options:
        return {}
    option = {"config": "-c", "upstream_config": "-g"}[name]
    return read_yaml(recipe_files.find(options[name], option))


def _strings(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, Iterable):
        for item in value:
            yield from _strings(item, place)


def _calls_something(text: str) -> bool:
    """Whether ``text``, evaluated in one of the ways in which s3prl does it, would call a function."""
    for form in _EVALUATED_AS:
        try:
            tree = ast.parse(form.format(text).strip(), mode="eval")
        except (SyntaxError, ValueError):
            continue
        except (MemoryError, RecursionError):  # deeper than a name could be
            return True
        if any(isinstance(node, ast.Call) for node in ast.walk(tree)):
            return True
    return False


def _shown(value: Any) -> str:
    text = str(value)
    return shlex.quote(text) if text.isprintable() else repr(text)


def _refused(file: str, what: str, again: str) -> UserError:
    hint = f"give {again} as well, or " if again else "give "
    return UserError(f"-e {file}: names {what}, which could run code; if you trust it, {hint}{TRUST_FLAG}")
