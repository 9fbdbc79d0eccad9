"""LibriSpeech with its words as phones, by a lexicon: the PR task of SUPERB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s3prl_ekd.audio.text import read_lexicon
from s3prl_ekd.errors import UserError
from s3prl_ekd.s3prl_compat.ctc_corpus.folder import LibriSpeechFolder


class LibriPhoneDataset(LibriSpeechFolder):
    """What ``name: libriphone`` in a CTC configuration means; arguments as s3prl's loader passes them.

    Args:
        split: names of the splits.
        tokenizer: s3prl's word tokenizer over the phoneme vocabulary.
        bucket_size: see :class:`LibriSpeechFolder`.
        path: the folder that holds the splits.
        lexicon: files of ``WORD PH PH ...`` lines; of several pronunciations of a word the first one counts.
        ascending: see :class:`LibriSpeechFolder`.

    Raises:
        UserError: a phone that the vocabulary lacks, a word that the lexicon lacks.
    """

    def __init__(
        self,
        split: Sequence[str],
        tokenizer: Any,
        bucket_size: int,
        path: str,
        lexicon: Sequence[str],
        ascending: bool = False,
        **_: Any,
    ) -> None:
        files = [lexicon] if isinstance(lexicon, str) else list(lexicon)
        pronunciations = read_lexicon(files)

        def encode(transcript: str) -> list[int]:
            phones: list[str] = []
            for word in transcript.split():
                if word not in pronunciations:
                    named = f"lexicon {', '.join(files)}"
                    raise UserError(f"{named}: has no pronunciation of {word!r}; add a line '{word}<tab>PH PH'")
                phones += pronunciations[word]
            labels = tokenizer.encode(" ".join(phones))
            if tokenizer.unk_idx in labels:
                unknown = phones[labels.index(tokenizer.unk_idx)]
                raise UserError(f"lexicon {', '.join(files)}: the phone {unknown!r} is not in the phoneme vocabulary")
            return labels

        super().__init__(path, split, encode, bucket_size, ascending)
