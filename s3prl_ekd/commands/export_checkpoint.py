"""``s3prl-ekd export-checkpoint``: what :mod:`s3prl_ekd.commands.export` was called when it took checkpoints only."""

from __future__ import annotations

from s3prl_ekd.commands.export import add_arguments as add_arguments
from s3prl_ekd.commands.export import run as run
