"""Run by its path, first of all, in a process that is started anew (:mod:`.processes`): makes this package importable.

Which folders are searched is known there a moment later only, when multiprocessing sets the path of the parent.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import s3prl_ekd.s3prl_compat.import_hook  # noqa: F401
