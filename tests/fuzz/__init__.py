"""Damaged and hostile input, drawn at random but reproducibly, against one law.

The law: whatever the input, either it works or it is one :class:`~s3prl_ekd.errors.UserError` of one printable line of
bounded length, within bounded time and memory, and nothing half-written stays.

``make fuzz`` tries all kinds and prints the table of docs/reliability.md. One file per kind: :mod:`fuzz.kinds`. A case
is named by seed, kind and number, so that each can be repeated by itself, its input kept:
``PYTHONPATH=tests python -m fuzz --kind audio --case 137 --keep DIR``.
"""
