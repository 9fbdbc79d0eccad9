"""Phoneme recognition on LibriSpeech, by a pronunciation lexicon."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from s3prl_ekd import assets
from s3prl_ekd.tasks import read_speech
from s3prl_ekd.tasks.corpora import Corpora, Input, Split
from s3prl_ekd.tasks.lexicon import write_lexicon
from s3prl_ekd.tasks.read_speech import LIBRISPEECH
from s3prl_ekd.tasks.scores import error_rate
from s3prl_ekd.tasks.task import Experiment, Settings, Task, filled_in

FALLBACK = Input(
    name="lexicon_fallback",
    option="--lexicon-fallback",
    metavar="",
    help="pronounce what no lexicon has after CMUdict and espeak-ng (needs the extra 'lexicon')",
)
LEXICONS = Input(
    name="lexicons",
    option="--lexicon",
    metavar="FILE",
    many=True,
    help="pronunciations as of OpenSLR 11; may be repeated, the first that has a word counts (PR)",
    hint="OpenSLR 11's librispeech-lexicon.txt",
    instead=FALLBACK,
    mini="lexicon.txt",
)


def _plan(corpora: Corpora, splits: frozenset[Split], template: Settings, folder: Path) -> Iterable[Experiment]:
    corpus = template["downstream_expert"]["corpus"]
    root, public = corpora.path(LIBRISPEECH), read_speech.public_tests(corpora, splits)
    words = read_speech.words(root, [*corpus["train"], *corpus["dev"], *public])
    tests = read_speech.judged_by(public, Split.PUBLIC, "corpus", "test")
    if Split.HIDDEN in splits:
        hidden_root, hidden = read_speech.hidden_tests(corpora)
        words |= read_speech.words(hidden_root, hidden)
        tests += read_speech.judged_by(hidden, Split.HIDDEN, "corpus", "test", path=hidden_root)
    lexicon = folder / "lexicon.txt"
    write_lexicon(lexicon, words, corpora.get(LEXICONS), fallback=corpora.get(FALLBACK))
    config = filled_in(template, "corpus", {"path": root, "lexicon": [str(lexicon)]})
    config = filled_in(config, "text", {"vocab_file": assets.folder("vocab/phoneme.txt")})
    yield Experiment(name="pr", task="pr", config=config, tests=tests)


TASK = Task(
    name="pr",
    downstream="ctc",
    inputs=(LIBRISPEECH, LEXICONS),
    more_inputs=(FALLBACK,),
    hidden=read_speech.HIDDEN_SPLITS,
    plan=_plan,
    metric="PER",
    higher_is_better=False,
    score=error_rate,
    printed="test per",
    answers=("test-hyp.ark", "test-ref.ark"),
    lists="corpus",
    by_default=True,
)
