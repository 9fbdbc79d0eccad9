"""Where users' code finds :func:`register`, which lives in :mod:`s3prl_ekd.s3prl_hub`."""

from s3prl_ekd.s3prl_hub import NAMES, check_name, register

__all__ = ["NAMES", "check_name", "register"]
