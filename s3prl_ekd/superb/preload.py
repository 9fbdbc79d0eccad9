"""What the processes of experiments import, imported once in the process that they are forked off."""

import contextlib
import importlib
import os

from s3prl_ekd.superb.jobs import ENVIRONMENT

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
