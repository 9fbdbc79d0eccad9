"""The expert that ``s3prl-ekd plug --s3prl DIR`` puts into a checkout of s3prl, for its unmodified ``run_pretrain.py``.

That script imports nothing of ours before the expert, so all that it needs is done when this module is imported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from s3prl_ekd.s3prl_compat import patches
from s3prl_ekd.s3prl_plugin import hook
from s3prl_ekd.s3prl_plugin.runners import guard

patches.apply()
hook.report_user_errors()

from s3prl_ekd.s3prl_plugin.pretrain.ekd_student import pretrain_expert  # noqa: E402

__all__ = ["UpstreamPretrainExpert"]


class UpstreamPretrainExpert(pretrain_expert.UpstreamPretrainExpert):
    """The same with checkpoints from which the script can go on by itself.

    It loads the checkpoint before it imports anything of ours. It stores its options as ``argparse.Namespace``, which
    torch 2.6 and newer do not load unless told; an OrderedDict with attributes they do, and the script only asks for
    the attributes. (The schedule objects of s3prl's ``*_with_schedule`` optimizers stay as they are: to resume with
    those, plug the environment as well.)
    """

    def __init__(self, datarc: Mapping[str, Any], upstream_config: str | Mapping[str, Any], *args: Any, **kwargs: Any):
        """See the base class."""
        if isinstance(upstream_config, Mapping):  # a checkpoint's
            guard.check_teachers(upstream_config)
        super().__init__(datarc, upstream_config, *args, **kwargs)

    def add_state_to_save(self, all_states: dict[str, Any]) -> dict[str, Any]:
        """See the base class."""
        args: OrderedDict[str, Any] = OrderedDict()
        vars(args).update(vars(all_states["Args"]))
        all_states["Args"] = args
        return super().add_state_to_save(all_states)
