"""What the processes of experiments import, imported once in the process that they are forked off."""

import contextlib
import importlib
import os

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
ENVIRONMENT = {
    **dict.fromkeys(THREADS, "1"),
    "TQDM_MININTERVAL": "1",  # logs stay small
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a process that has initialised CUDA cannot be forked
}
"""What libraries read when they are loaded."""

os.environ.update(ENVIRONMENT)

# An error here comes again in the process of the experiment, whose log can show it.
with contextlib.suppress(Exception):
    from s3prl_ekd import s3prl_hub
    from s3prl_ekd.s3prl_compat import patches
    from s3prl_ekd.tasks import DEFAULT, TASKS

    s3prl_hub.register()
    with patches.quiet():
        for name in (
            "s3prl.downstream.runner",
            *(f"s3prl.downstream.{TASKS[task].downstream}.expert" for task in DEFAULT),
            "s3prl_ekd.upstream",
            "s3prl_ekd.s3prl_plugin.runners.downstream",
            "s3prl_ekd.s3prl_plugin.runners.pretrain",
        ):
            importlib.import_module(name)
