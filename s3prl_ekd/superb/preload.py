"""What the processes of experiments import, imported once in the process they are forked off."""

import contextlib
import importlib

_EXPERTS = tuple(f"s3prl.downstream.{task}.expert" for task in ("ctc", "voxceleb1", "emotion", "asr"))
_OURS = tuple(
    f"s3prl_ekd.{name}" for name in ("upstream", "s3prl_plugin.runners.downstream", "s3prl_plugin.runners.pretrain")
)

# Whatever goes wrong here goes wrong again in the process that needs it, where it can be said.
with contextlib.suppress(Exception):
    from s3prl_ekd.s3prl_compat import patches
    from s3prl_ekd.s3prl_plugin import hub

    hub.register()
    with patches.quiet():
        for name in ("s3prl.downstream.runner", *_EXPERTS, *_OURS):
            importlib.import_module(name)
