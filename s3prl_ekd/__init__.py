"""Ensemble knowledge distillation of self-supervised speech models (arXiv 2302.12757), for s3prl and beyond.

>>> from s3prl_ekd import load_student
>>> student = load_student("path/to/student")       # a plain torch.nn.Module; s3prl is not imported
>>> hidden_states = student(waveforms, lengths).hidden_states
"""

from __future__ import annotations

from s3prl_ekd.s3prl_compat import import_hook

__version__ = "0.1.0"

SAMPLE_RATE = 16000  # samples per second, everywhere in this package
FRAME_SHIFT = 320  # samples per frame: 20 ms
MIN_SAMPLES = 400  # the least that gives a frame: the receptive field of the conv stack

TYPE_CHECKING = False  # as typing's, without its import: a plugged environment loads this file at every start
if TYPE_CHECKING:
    from s3prl_ekd.student.folder import load_student
else:

    def __getattr__(name: str) -> object:
        # torch takes seconds to import; `import s3prl_ekd` and the command line's help must not wait for it.
        if name == "load_student":
            from s3prl_ekd.student.folder import load_student

            return load_student
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _announce_models(configuration_auto: object) -> None:
    from s3prl_ekd import transformers_model

    transformers_model.announce(configuration_auto)


# Now, or when transformers is imported: its AutoModel opens students with layers of different size, too.
import_hook.after("transformers.models.auto.configuration_auto", _announce_models)

__all__ = ["FRAME_SHIFT", "MIN_SAMPLES", "SAMPLE_RATE", "__version__", "load_student"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
