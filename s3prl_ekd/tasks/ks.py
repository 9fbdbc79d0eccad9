"""Keyword spotting on Speech Commands (version 0.01): ten words, any other word, and silence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s3prl_ekd.errors import UserError
from s3prl_ekd.tasks.corpora import HIDDEN, Corpora, Input, Split
from s3prl_ekd.tasks.task import Experiment, Settings, Task, TestSet, filled_in, in_section

SPEECH_COMMANDS = Input(
    name="speech_commands",
    option="--speech-commands",
    help="speech_commands_v0.01 (KS)",
    mini="SpeechCommands/speech_commands_v0.01",
)
TEST_SET = Input(
    name="speech_commands_test",
    option="--speech-commands-test",
    help="speech_commands_test_set_v0.01 (KS)",
    mini="SpeechCommands/speech_commands_test_set_v0.01",
)
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
_CLASSES = (*KEYWORDS, "_unknown_", "_silence_")


def _plan(corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path) -> Iterable[Experiment]:
    root, test = corpora.path(SPEECH_COMMANDS), corpora.path(TEST_SET)
    _check(SPEECH_COMMANDS, root, (*KEYWORDS, "_background_noise_"))
    _check(TEST_SET, test, _CLASSES)
    tests = [TestSet(name="test", split=Split.PUBLIC)] if Split.PUBLIC in splits else []
    if Split.HIDDEN in splits:
        names = ("SpeechCommands/hidden", "speech_commands_test_set_v0.01")
        hidden = corpora.hidden(names, lambda place: (place / "_unknown_").is_dir(), "SpeechCommands/hidden/_unknown_/")
        _check(HIDDEN, hidden, _CLASSES)
        changes = in_section("datarc", {"speech_commands_test_root": hidden})
        tests.append(TestSet(name="hidden", split=Split.HIDDEN, changes=changes))
    paths = {"speech_commands_root": root, "speech_commands_test_root": test}
    yield Experiment(name="ks", task="ks", config=filled_in(template, "datarc", paths), tests=tuple(tests))


def _check(given: Input, root: Path, expected: tuple[str, ...]) -> None:
    """See that each expected folder has recordings, and a test set no other one, which s3prl could not name."""
    missing = [name for name in expected if not any((root / name).glob("*.wav"))]
    if missing:
        raise UserError(f"{given.option} {root}: no *.wav in {', '.join(missing)}; it must be {given.help}")
    others = sorted({path.parent.name for path in root.glob("[!.]*/[!.]*.wav")} - {*expected})
    if given is not SPEECH_COMMANDS and others:
        raise UserError(f"{given.option} {root}: a test set has no folder {others[0]}, only {', '.join(expected)}")


TASK = Task(
    name="ks",
    downstream="speech_commands",
    inputs=(SPEECH_COMMANDS, TEST_SET),
    hidden="SpeechCommands/hidden",
    plan=_plan,
)
