"""What there is to train and to judge: one experiment per downstream model, with the test sets that judge it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from s3prl_ekd import assets
from s3prl_ekd.errors import UserError, nearest
from s3prl_ekd.files import read_yaml
from s3prl_ekd.superb import iemocap, lexicon, librispeech, voxceleb
from s3prl_ekd.superb.corpora import Corpora, HiddenSets, Split

Settings = dict[str, Any]
"""A configuration of s3prl's downstream runner, as its YAML gives it."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """One set of utterances that judges a trained downstream model."""

    __test__ = False  # pytest collects classes named Test*

    name: str
    """Its name in tables, such as ``test-noisy``."""
    split: str
    """``public`` or ``hidden``."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Dotted keys of the training configuration and their values for this test."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One training of s3prl's runner and its evaluations."""

    name: str
    """Also its folder, such as ``pr`` or ``er-fold3``."""
    task: str
    """``pr``, ``sid``, ``er`` or ``asr``."""
    config: Settings
    """Complete configuration of the training."""
    tests: tuple[TestSet, ...]
    """What judges it."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        return self.config["runner"]["total_steps"]

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Experiment:
        """The inverse of :meth:`to_mapping`."""
        return cls(**{**mapping, "tests": tuple(TestSet(**test) for test in mapping["tests"])})


Plan = Callable[[Corpora, frozenset[Split], Settings, Path], Iterable[Experiment]]
"""(corpora, splits, template, folder for prepared files) -> experiments."""


_GIVEN_BY = {
    "librispeech": "--librispeech DIR",
    "lexicons": "--lexicon FILE (OpenSLR 11's librispeech-lexicon.txt, or --lexicon-fallback instead)",
    "voxceleb1": "--voxceleb1 DIR",
    "iden_split": "--iden-split FILE",
    "iemocap": "--iemocap DIR",
    "hidden": "--hidden DIR (with LibriSpeech/hidden-*, VoxCeleb1-hidden and IEMOCAP-hidden, or the original layouts)",
}
_NEEDED = {
    "pr": {Split.PUBLIC: ("librispeech", "lexicons"), Split.HIDDEN: ("librispeech", "lexicons", "hidden")},
    "sid": {Split.PUBLIC: ("voxceleb1", "iden_split"), Split.HIDDEN: ("hidden",)},
    "er": {Split.PUBLIC: ("iemocap",), Split.HIDDEN: ("iemocap", "hidden")},
    "asr": {Split.PUBLIC: ("librispeech",), Split.HIDDEN: ("librispeech", "hidden")},
}
_OPTIONAL = {"pr": ("lexicon_fallback",), "er": ("iemocap_labels",), "asr": ("lengths",)}
"""What else the data of a task depends on."""


def require_given(tasks: Iterable[str], corpora: Corpora, splits: frozenset[Split]) -> None:
    """Make sure that ``corpora`` names all that the tests of ``tasks`` in ``splits`` need.

    Raises:
        UserError: it does not; the message has all that is missing.
    """
    needed = {name for task in tasks for split in splits for name in _NEEDED[task][split]}
    if corpora.lexicon_fallback:
        needed.discard("lexicons")
    missing = [option for name, option in _GIVEN_BY.items() if name in needed and not getattr(corpora, name)]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; --tasks chooses the tasks that need no others")


def data_identity(task: str, corpora: Corpora, split: Split) -> dict[str, Any]:
    """What tells the data of ``task`` and of its tests in ``split`` from other data: the corpus's fingerprint if it has
    one, or else the folders given, and of files what is in them."""
    if corpora.fingerprint:
        return {"fingerprint": corpora.fingerprint}
    names = (*_NEEDED[task][split], *_OPTIONAL.get(task, ()))
    return {name: _identity(getattr(corpora, name)) for name in names}


def _identity(value: Any) -> Any:
    """A plain value that is another one when the data is."""
    if isinstance(value, tuple):
        return [_identity(item) for item in value]
    if isinstance(value, HiddenSets):
        return str(value.root)
    if isinstance(value, Path):
        return hashlib.sha256(value.read_bytes()).hexdigest() if value.is_file() else str(value)
    return value


def plan(task: str, corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path) -> list[Experiment]:
    """The experiments of ``task`` whose tests lie in ``splits``.

    Args:
        task: a key of :data:`PLANS`.
        corpora: where the data is, all that :func:`require_given` looks for.
        splits: which test sets are asked for.
        template: the task's configuration without paths (:func:`load_template`).
        folder: where lexicons, lengths and labels are written when they must be made.

    Raises:
        UserError: data is missing or malformed.
    """
    return [experiment for experiment in PLANS[task](corpora, splits, template, folder) if experiment.tests]


def load_template(task: str, recipes: str) -> Settings:
    """The configuration of ``task`` that comes with the package, ``recipes/downstream/{mini,real}/TASK.yaml``."""
    return read_yaml(assets.recipe(f"downstream/{recipes}/{task}.yaml"))


def changed(config: Settings, changes: Mapping[str, Any]) -> Settings:
    """A deep copy of ``config`` with dotted keys set; every key but the last part must exist."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = value
    return config


def set_option(config: Settings, key: str, value: Any) -> Settings:
    """``config`` with one existing dotted key set to a value of its kind.

    Raises:
        UserError: there is no such key, or the value is of another kind.
    """
    place, *path = [config], *key.split(".")
    for depth, part in enumerate(path):
        parent = place[-1]
        if not isinstance(parent, dict) or part not in parent:
            valid = parent if isinstance(parent, dict) else ()
            raise UserError(f"--set {key}: no key {'.'.join(path[: depth + 1])!r}; {nearest(part, valid)}")
        place.append(parent[part])
    old = place[-1]
    if isinstance(old, float) and isinstance(value, int | str):
        try:  # YAML 1.1 reads 1e-3 (no dot) as a string
            value = float(value)
        except ValueError:
            value = str(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"--set {key}: expected {type(old).__name__}, found {value!r}")
    return changed(config, {key: value})


def with_steps(config: Settings, steps: int) -> Settings:
    """``config`` with another number of steps; logs, evaluations and checkpoints come at least once."""
    runner = config["runner"]
    every = {f"runner.{name}": min(runner[name], steps) for name in ("log_step", "eval_step", "save_step")}
    return changed(config, {"runner.total_steps": steps, **every})


# --- the four tasks ------------------------------------------------------------------------------------------------


def _phoneme_recognition(
    corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path
) -> Iterable[Experiment]:
    corpus = template["downstream_expert"]["corpus"]
    root, public, hidden = _read_speech(corpora, splits)
    words = _words(root, [*corpus["train"], *corpus["dev"], *public])
    if hidden:
        words |= _words(corpora.hidden.librispeech, hidden)
    lexicon.write_lexicon(folder / "lexicon.txt", words, corpora.lexicons, fallback=corpora.lexicon_fallback)
    key = "downstream_expert.corpus"
    config = changed(
        template,
        {
            f"{key}.path": str(root),
            f"{key}.lexicon": [str(folder / "lexicon.txt")],
            "downstream_expert.text.vocab_file": str(assets.folder("vocab/phoneme.txt")),
        },
    )
    tests = [TestSet(name=name, split=Split.PUBLIC, changes={f"{key}.test": [name]}) for name in public]
    for name in hidden:
        changes = {f"{key}.test": [name], f"{key}.path": str(corpora.hidden.librispeech)}
        tests.append(_hidden_test(name, changes))
    yield Experiment(name="pr", task="pr", config=config, tests=tuple(tests))


def _speech_recognition(
    corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path
) -> Iterable[Experiment]:
    data = template["downstream_expert"]["datarc"]
    root, public, hidden = _read_speech(corpora, splits)
    needed = [*data["train"], *data["dev-clean"], *public]
    lengths = librispeech.lengths_folder(root, needed, corpora.lengths, folder / "len_for_bucket")
    key = "downstream_expert.datarc"
    config = changed(
        template,
        {
            f"{key}.libri_root": str(root),
            f"{key}.bucket_file": str(lengths),
            f"{key}.dict_path": str(assets.folder("vocab/char.dict")),
        },
    )
    tests = [TestSet(name=name, split=Split.PUBLIC, changes={f"{key}.test-clean": [name]}) for name in public]
    if hidden:
        given = corpora.hidden.root / "len_for_bucket"
        lengths = librispeech.lengths_folder(
            corpora.hidden.librispeech, hidden, given if given.is_dir() else None, folder / "len_for_bucket-hidden"
        )
    for name in hidden:
        changes = {
            f"{key}.test-clean": [name],
            f"{key}.libri_root": str(corpora.hidden.librispeech),
            f"{key}.bucket_file": str(lengths),
        }
        tests.append(_hidden_test(name, changes))
    yield Experiment(name="asr", task="asr", config=config, tests=tuple(tests))


def _speaker_identification(
    corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path
) -> Iterable[Experiment]:
    """A closed set of speakers: the hidden test set trains a model of its own, on hidden speakers."""
    places = {}
    if Split.PUBLIC in splits:
        places[Split.PUBLIC] = (corpora.need("voxceleb1"), corpora.need("iden_split"))
    if Split.HIDDEN in splits:
        places[Split.HIDDEN] = (corpora.hidden.voxceleb1, corpora.hidden.iden_split)
    for split, (root, split_file) in places.items():
        voxceleb.check_split_file(root, split_file)
        key = "downstream_expert.datarc"
        config = changed(template, {f"{key}.file_path": str(root), f"{key}.meta_data": str(split_file)})
        name = {Split.PUBLIC: "sid", Split.HIDDEN: "sid-hidden"}[split]
        yield Experiment(name=name, task="sid", config=config, tests=(TestSet(name="test", split=split),))


def _emotion_recognition(
    corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path
) -> Iterable[Experiment]:
    root = corpora.need("iemocap")
    labels = corpora.need("iemocap_labels") if corpora.iemocap_labels else iemocap.write_folds(root, folder / "iemocap")
    key = "downstream_expert.datarc"
    tests = [TestSet(name="test", split=Split.PUBLIC)] if Split.PUBLIC in splits else []
    if Split.HIDDEN in splits:
        hidden_labels = iemocap.test_only(corpora.hidden.iemocap, folder / "iemocap-hidden")
        changes = {
            f"{key}.root": str(corpora.hidden.iemocap),
            f"{key}.meta_data": str(hidden_labels),
            f"{key}.test_fold": "fold1",
        }
        tests.append(TestSet(name="hidden", split=Split.HIDDEN, changes=changes))
    for fold in corpora.folds:
        config = changed(
            template, {f"{key}.root": str(root), f"{key}.meta_data": str(labels), f"{key}.test_fold": fold}
        )
        name = "er" if len(corpora.folds) == 1 else f"er-{fold}"
        yield Experiment(name=name, task="er", config=config, tests=tuple(tests))


def _read_speech(corpora: Corpora, splits: frozenset[Split]) -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
    """LibriSpeech's root, its public test splits, and the hidden ones."""
    public = corpora.librispeech_tests if Split.PUBLIC in splits else ()
    root, hidden = corpora.need("librispeech"), ()
    if Split.HIDDEN in splits:
        known = corpora.librispeech_tests if corpora.hidden.librispeech == root else ()
        hidden = tuple(name for name in corpora.hidden.librispeech_splits if name not in known)
        if not hidden:
            raise UserError(f"--hidden {corpora.hidden.root}: has no test sets of read speech but the public ones")
    return root, public, hidden


def _hidden_test(name: str, changes: Mapping[str, Any]) -> TestSet:
    """Of the split ``name`` of read speech, which may be called as a public one."""
    shown = name if name.startswith("hidden-") else f"hidden-{name}"
    return TestSet(name=shown, split=Split.HIDDEN, changes=changes)


def _words(root: Path, splits: Iterable[str]) -> set[str]:
    return {word for _, words in librispeech.transcripts(root, list(splits)) for word in words}


PLANS: dict[str, Plan] = {
    "pr": _phoneme_recognition,
    "sid": _speaker_identification,
    "er": _emotion_recognition,
    "asr": _speech_recognition,
}
