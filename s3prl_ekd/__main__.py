"""``python -m s3prl_ekd`` is ``s3prl-ekd``."""

import sys

from s3prl_ekd.cli import main

sys.exit(main())
