"""The first of ours that runs in a process started anew (see :mod:`.processes`): makes this package importable.

It is run by its path: the folders that the parent searches for modules are set in the new process a moment later only.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import s3prl_ekd.s3prl_compat.import_hook  # noqa: F401
