"""LibriSpeech with its transcripts as characters (or whatever the tokenizer makes of them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s3prl_ekd.s3prl_compat.ctc_corpus.folder import LibriSpeechFolder


class LibriDataset(LibriSpeechFolder):
    """What ``name: librispeech`` in a CTC configuration means; arguments as s3prl's loader passes them."""

    def __init__(
        self, split: Sequence[str], tokenizer: Any, bucket_size: int, path: str, ascending: bool = False, **_: Any
    ) -> None:
        super().__init__(path, split, tokenizer.encode, bucket_size, ascending)
