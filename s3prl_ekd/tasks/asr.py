"""Speech recognition on LibriSpeech, by characters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s3prl_ekd import assets
from s3prl_ekd.tasks import read_speech
from s3prl_ekd.tasks.corpora import HIDDEN, Corpora, Input, Split
from s3prl_ekd.tasks.read_speech import LIBRISPEECH
from s3prl_ekd.tasks.scores import error_rate
from s3prl_ekd.tasks.task import Experiment, Settings, Task, filled_in

LENGTHS = Input(
    name="lengths",
    option="--len-for-bucket",
    help="s3prl's len_for_bucket CSVs (default: made; ASR)",
    mini="len_for_bucket",
)


def _plan(corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path) -> Iterable[Experiment]:
    data = template["downstream_expert"]["datarc"]
    root, public = corpora.path(LIBRISPEECH), read_speech.public_tests(corpora, splits)
    needed = [*data["train"], *data["dev-clean"], *public]
    lengths = read_speech.lengths_folder(root, needed, corpora.get(LENGTHS), folder / "len_for_bucket")
    tests = read_speech.judged_by(public, Split.PUBLIC, "datarc", "test-clean")
    if Split.HIDDEN in splits:
        hidden_root, hidden = read_speech.hidden_tests(corpora)
        given = corpora.get(HIDDEN) / "len_for_bucket"
        hidden_lengths = read_speech.lengths_folder(
            hidden_root, hidden, given if given.is_dir() else None, folder / "len_for_bucket-hidden"
        )
        elsewhere = {"libri_root": hidden_root, "bucket_file": hidden_lengths}
        tests += read_speech.judged_by(hidden, Split.HIDDEN, "datarc", "test-clean", **elsewhere)
    paths = {"libri_root": root, "bucket_file": lengths, "dict_path": assets.folder("vocab/char.dict")}
    yield Experiment(name="asr", task="asr", config=filled_in(template, "datarc", paths), tests=tests)


TASK = Task(
    name="asr",
    downstream="asr",
    inputs=(LIBRISPEECH,),
    more_inputs=(LENGTHS,),
    hidden=read_speech.HIDDEN_SPLITS,
    plan=_plan,
    metric="WER",
    higher_is_better=False,
    score=error_rate,
    evaluate_split="test-clean",
    best="dev-clean-best.ckpt",
    printed="test-clean wer",
    scale=1,
    answers=("test-clean-*-hyp.ark", "test-clean-*-ref.ark"),
    lists="datarc",
    longest=True,
    by_default=True,
)
