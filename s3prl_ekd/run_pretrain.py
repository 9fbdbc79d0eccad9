"""``python -m s3prl_ekd.run_pretrain``: s3prl's pretraining runner, same options, from any folder."""

import sys

from s3prl_ekd.s3prl_plugin.runners.pretrain import main

if __name__ == "__main__":
    sys.exit(main())
