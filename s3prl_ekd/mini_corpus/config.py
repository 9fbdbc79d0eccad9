"""How large the mini corpus is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Count:
    """Size of one set."""

    speakers: int
    utterances: int
    """Per speaker."""


@dataclass(frozen=True, kw_only=True)
class MiniCorpusConfig:
    """Everything the mini corpus depends on besides the code and the version of espeak-ng.

    No two sets share a speaker, but for SID, where training, development and test are the same people.
    """

    seed: int = 0
    distil_train: Count = Count(speakers=48, utterances=18)
    """Pretraining speech of teachers and students."""
    train_clean: Count = Count(speakers=24, utterances=22)
    """Training of PR and ASR."""
    dev_clean: Count = Count(speakers=6, utterances=10)
    test_clean: Count = Count(speakers=8, utterances=10)
    """PR and ASR, public; test-noisy is the same speech distorted."""
    hidden_clean: Count = Count(speakers=8, utterances=10)
    """PR and ASR, hidden; hidden-noisy is the same speech distorted in other ways."""
    sid_speakers: int = 20
    """Public ones, and as many hidden ones."""
    sid_train: int = 12
    """Utterances per speaker, in videos of four."""
    sid_dev: int = 3
    sid_test: int = 5
    er_train: Count = Count(speakers=8, utterances=40)
    """Utterances are ten sentences in four emotions."""
    er_test: Count = Count(speakers=4, utterances=24)
    """Public, and as many hidden ones."""
    noise_seconds: int = 6
    """Length of each noise recording."""

    @classmethod
    def tiny(cls, seed: int = 0) -> MiniCorpusConfig:
        """All layouts, hardly any speech: for tests."""
        return cls(
            seed=seed,
            distil_train=Count(speakers=6, utterances=4),
            train_clean=Count(speakers=4, utterances=6),
            dev_clean=Count(speakers=2, utterances=4),
            test_clean=Count(speakers=2, utterances=4),
            hidden_clean=Count(speakers=2, utterances=4),
            sid_speakers=6,
            sid_train=4,
            sid_dev=1,
            sid_test=2,
            er_train=Count(speakers=4, utterances=8),
            er_test=Count(speakers=2, utterances=4),
            noise_seconds=4,
        )
