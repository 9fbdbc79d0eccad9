"""What s3prl's downstream runner and its tasks PR, SID, ER and ASR read from their YAML; s3prl ignores all other keys.

Known keys are those of the packaged configurations, of s3prl's own where an installation has them, and those that
:attr:`~s3prl_ekd.tasks.task.Task.more_keys` adds.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml
from s3prl_ekd.s3prl_plugin.runners.optimizer_config import check_arguments, check_training, parameters
from s3prl_ekd.tasks import BY_DOWNSTREAM

_log = logging.getLogger(__name__)

Settings = Mapping[str, Any]

_KEYWORD_ARGUMENTS = ("optimizer", "scheduler", "specaug")  # checked by the functions that get them

# Keys that s3prl reads and no YAML shows.
_MODELS = {
    "FrameLevel": {"hiddens": None, "activation": None},
    "UtteranceLevel": dict.fromkeys(("pooling", "activation", "pre_net", "post_net")),
    "DeepModel": dict.fromkeys(("model_type", "hidden_dim", "kernel_size", "padding", "pooling", "dropout")),
    "Wav2Letter": {"total_rate": None},
    "RNNs": dict.fromkeys(
        ("total_rate", "module", "bidirection", "dim", "dropout", "layer_norm", "proj", "sample_rate", "sample_style")
    ),
}
_RUNNER = dict.fromkeys(("fp16", "evaluate_ratio", "train_dataloader"))

_NO_DATA = ("lexicon",)
_FIXED_SPLITS = ("train", "dev", "test")
_MAY_BE_NULL = ("test_fold",)


# Smallest values of numbers that s3prl takes as they come, wherever they stand.
_LEAST = dict.fromkeys(("total_steps", "gradient_accumulate_steps", "log_step", "eval_step", "save_step"), 1) | {
    "max_keep": 0,
    "batch_size": 1,
    "train_batch_size": 1,
    "eval_batch_size": 1,
    "num_workers": 0,
}


def check_numbers(config: Settings, where: str = "") -> None:
    """Refuse steps, batch sizes and worker counts that cannot be.

    Args:
        config: a configuration, or the part of one that ``-o`` sets.
        where: its place, for messages, such as ``runner.``.

    Raises:
        UserError: a value that is no whole number, or too small.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_numbers(value, f"{where}{key}.")
        elif key in _LEAST and value is not None and not (_is(value, int) and value >= _LEAST[key]):
            raise UserError(f"{where}{key}: expected a whole number of at least {_LEAST[key]}, found {value!r}")
        elif key == "gradient_clipping" and not (_is(value, int | float) and 0 < value < math.inf):
            raise UserError(f"{where}{key}: expected a positive number, found {value!r}")


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_training_sections(config: Settings) -> None:
    """Check ``optimizer``, ``scheduler`` and ``specaug``; s3prl must be importable.

    Raises:
        UserError: a key or value that s3prl would stumble over.
    """
    from s3prl import optimizers, schedulers

    check_training(config, optimizers, schedulers)
    if config.get("specaug"):
        from s3prl.downstream.specaug import SpecAug

        check_arguments("specaug", config["specaug"], parameters(SpecAug))


def check_keys(task: str, config: Settings) -> None:
    """Refuse keys that s3prl would ignore and that look misspelt, and warn of others that it ignores.

    Args:
        task: as ``-d`` names it; only those of :data:`~s3prl_ekd.tasks.BY_DOWNSTREAM` are known.
        config: a configuration, or the part of one that ``-o`` sets.

    Raises:
        UserError: such a key, with the nearest one that there is.
    """
    if task not in BY_DOWNSTREAM:
        return
    known = _known(task) | dict.fromkeys(_KEYWORD_ARGUMENTS)
    data = dict.fromkeys(splits(task, config) or ())
    lists = BY_DOWNSTREAM[task].lists
    _check(config, _merged(known, {"downstream_expert": {lists: data}}) if lists else known, "")


def _check(config: Settings, known: Settings, where: str) -> None:
    for key, value in config.items():
        place = f"{where}{key}"
        if key in known:
            if isinstance(value, Mapping) and isinstance(known[key], Mapping):
                _check(value, known[key], f"{place}.")
        elif where == "runner." or difflib.get_close_matches(str(key), known, n=1, cutoff=0.75):
            raise UserError(f"unknown key {place!r}; {nearest(str(key), known)}")
        else:
            _log.warning("%s: s3prl reads no such key", place)


def check_filled_in(task: str, config: Settings) -> None:
    """Refuse a packaged configuration in which the paths are still ``null``.

    Raises:
        UserError: it is one.
    """
    empty = list(_empty(BY_DOWNSTREAM[task].template("real"), config, "")) if task in BY_DOWNSTREAM else []
    if empty:
        raise UserError(
            f"{', '.join(empty)}: null; fill in the path{'s' if len(empty) > 1 else ''} (in the file, or by -o), or use"
            " s3prl-ekd superb, which does"
        )


def _empty(template: Settings, config: Settings, where: str) -> Iterator[str]:
    for key in (key for key in template if key in config):
        if isinstance(template[key], Mapping) and isinstance(config[key], Mapping):
            yield from _empty(template[key], config[key], f"{where}{key}.")
        elif template[key] is None and config[key] is None and key not in _MAY_BE_NULL:
            yield f"{where}{key}"


def splits(task: str, config: Settings) -> list[str] | None:
    """The values that ``-t`` can have; None where only the task knows."""
    if task not in BY_DOWNSTREAM:
        return None
    section = BY_DOWNSTREAM[task].lists
    if not section:
        return list(_FIXED_SPLITS)
    expert = config.get("downstream_expert")
    data = expert.get(section) if isinstance(expert, Mapping) else None
    lists = data.items() if isinstance(data, Mapping) else ()
    return [name for name, value in lists if isinstance(value, list) and name not in _NO_DATA]


def default_split(task: str, config: Settings) -> str:
    """What ``-t`` is where it is not given.

    Raises:
        UserError: there is no split for testing.
    """
    valid = splits(task, config)
    if valid is None or "test" in valid:
        return "test"  # s3prl's own default
    tests = [name for name in valid if name.startswith("test")]
    if not tests:
        raise UserError(f"-t is missing: name what to evaluate; valid: {', '.join(valid)}")
    _log.info("evaluating %s; -t chooses another of %s", tests[0], ", ".join(valid))
    return tests[0]


def _known(task: str) -> Settings:
    known = BY_DOWNSTREAM[task]
    sources: list[Settings] = [known.template(recipes) for recipes in ("mini", "real")]
    models = {key: _MODELS for key in ("model", "modelrc") if key in sources[0]["downstream_expert"]}
    sources += [{"runner": _RUNNER, "downstream_expert": models}, {"downstream_expert": known.more_keys}]
    for file in _stock_files(task):
        with contextlib.suppress(UserError):
            sources.append(read_yaml(file))
    return functools.reduce(_merged, sources)


def _stock_files(task: str) -> Iterator[Path]:
    """s3prl's own configurations of a task, which its wheel leaves out."""
    for folder in importlib.util.find_spec("s3prl.downstream").submodule_search_locations:
        yield from Path(folder, task).glob("*.yaml")


def _merged(one: Any, two: Any) -> Any:
    """The keys of both, recursively; a value that is no mapping does not matter."""
    if not (isinstance(one, Mapping) and isinstance(two, Mapping)):
        return one if isinstance(one, Mapping) else two
    return {key: _merged(one.get(key), two.get(key)) for key in {**one, **two}}
