"""What a checkpoint is, by the entries in it: for messages, and to choose what loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

CHECKPOINT_KEY = "EKD_Student"  # the Distiller's state dict in a checkpoint of s3prl's run_pretrain

_AS_TEACHER = "as a teacher: student: FILE"
_FAIRSEQ = "a fairseq checkpoint of another model than a pretrained HuBERT or wav2vec 2.0"

ENCODER_OF_FAIRSEQ = "encoder.layer_norm.weight"
"""A weight of every pretrained model of the family in fairseq."""
FINAL_NORM_OF_TORCHAUDIO = "encoder.transformer.layer_norm.weight"
"""A weight of every encoder of torchaudio; what stands before it in a file's names is the encoder's own name there."""

# Entries by which a checkpoint is recognised -> what it is, for the message; the first row that is found whole counts.
_OTHER_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((CHECKPOINT_KEY,), "a checkpoint of ekd_student (make a folder of it: s3prl-ekd export-checkpoint)"),
    (("Distiller",), "a checkpoint of s3prl's distiller (as a teacher: s3prl: distiller_local)"),
    (("Downstream",), "a downstream checkpoint of s3prl's run_downstream"),
    (("Featurizer",), "a downstream checkpoint of s3prl's run_downstream"),
    (("Transformer",), "an s3prl Mockingjay / TERA checkpoint"),
    (("pytorch-lightning_version",), "a Lightning checkpoint"),
    (("cfg", "model"), _FAIRSEQ),
    (("args", "model"), _FAIRSEQ),
)
# What the configuration inside a checkpoint calls its model -> its name, and s3prl's upstream that loads such files.
_S3PRL_CONVERTED = {
    "hubert": ("HuBERT", "hubert_local"),
    "wav2vec2": ("wav2vec 2.0", "wav2vec2_local"),
    "data2vec_audio": ("data2vec", "data2vec_local"),
    "multires_hubert": ("multi-resolution HuBERT", "multires_hubert_local"),
}
_LIGHTHUBERT = ("hubert_pruner", "student_hubert")


def has_torchaudio_names(state: Any) -> bool:
    """Whether these are names and tensors of torchaudio's, perhaps of a larger model with an encoder inside."""
    if not isinstance(state, Mapping):
        return False
    named = any(str(name).endswith(FINAL_NORM_OF_TORCHAUDIO) for name in state)
    return named and all(isinstance(value, Tensor) for value in state.values())


def kind_of(states: Any) -> str:
    """What an unusable checkpoint seems to be, in words."""
    if not isinstance(states, Mapping):
        return f"a pickled {type(states).__name__}"
    teacher = upstream_of(states)
    if teacher is not None:
        name, upstream = teacher
        return f"{name} checkpoint (as a teacher: s3prl: {upstream}, ckpt: FILE)"
    if has_torchaudio_names(states.get("state_dict", states)):
        return f"a model with torchaudio's names ({_AS_TEACHER})"
    if {"cfg", "args"} & states.keys() and ENCODER_OF_FAIRSEQ in (states.get("model") or ()):
        return f"a HuBERT or wav2vec 2.0 of fairseq ({_AS_TEACHER})"
    for keys, kind in _OTHER_KINDS:
        if all(key in states for key in keys):
            return kind
    if states and all(isinstance(value, Tensor) for value in states.values()):
        return "weights alone, without a configuration; name the folder that has them and their config.json"
    return f"a checkpoint with the entries {', '.join(sorted(map(str, states))[:5]) or '(none)'}"


def upstream_of(states: Any) -> tuple[str, str] | None:
    """A teacher's checkpoint in one of the formats that s3prl loads: its name with article, and s3prl's upstream."""
    if not isinstance(states, Mapping):
        return None
    config = states.get("model_cfg")
    if "model_weight" in states and isinstance(config, Mapping):
        kind = str(config.get("_name") or ("hubert" if "label_rate" in config else "wav2vec2"))
        name, upstream = _S3PRL_CONVERTED.get(kind, (kind, f"{kind}_local"))
        return f"an s3prl-converted {name}", upstream
    config = states.get("cfg")
    if "model" in states and isinstance(config, Mapping):
        if "relative_position_embedding" in config:
            return "a WavLM", "wavlm_local"
        if "encoder_layers" in config:
            return "a UniSpeech-SAT", "unispeech_sat_local"
        if isinstance(config.get("model"), Mapping) and config["model"].get("_name") in _LIGHTHUBERT:
            return "a LightHuBERT", "lighthubert_local"
    return None
