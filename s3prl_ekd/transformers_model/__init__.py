"""Students with layers of different size as models of transformers.

``modeling_ekd.py`` has the classes, and goes into the folder of each such student; here transformers' Auto classes are
told of them, so that nobody who has this package must trust a folder's copy.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

MODEL_TYPES = ("ekd_hubert", "ekd_wavlm")
"""What ``model_type`` says in such a folder's ``config.json``."""


def register() -> None:
    """Let ``AutoConfig``, ``AutoModel``, ``AutoModelForCTC`` and ``AutoModelForAudioClassification`` know the classes.

    Who opens a folder need not call this (:func:`announce`); who makes a model of a configuration of their own must.
    """
    import transformers

    from s3prl_ekd.transformers_model import modeling_ekd

    for classes in modeling_ekd.CLASSES.values():
        config = classes["AutoConfig"]
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto, model in classes.items():
            if auto != "AutoConfig":
                getattr(transformers, auto).register(config, model, exist_ok=True)


def announce(configuration_auto: Any) -> None:
    """Have :func:`register` called when the first folder of these kinds is opened.

    The classes are built on transformers' own, whose import takes seconds: too long for everybody who has this package
    and imports transformers.

    Args:
        configuration_auto: transformers' module with ``AutoConfig``.
    """
    from transformers.configuration_utils import PreTrainedConfig

    class StandIn(PreTrainedConfig):
        """In place of a configuration until one is read."""

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            register()
            return configuration_auto.CONFIG_MAPPING[cls.model_type].from_dict(config_dict, **kwargs)

    try:
        for model_type in MODEL_TYPES:
            stand_in = type("StandIn", (StandIn,), {"model_type": model_type, "__module__": __name__})
            configuration_auto.AutoConfig.register(model_type, stand_in, exist_ok=True)
    except Exception as error:  # in the middle of somebody's import of transformers, who may want none of this
        logger.warning("transformers is not told of students with layers of different size: %s", error)
