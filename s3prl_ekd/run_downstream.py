"""``python -m s3prl_ekd.run_downstream``: s3prl's downstream runner, same options."""

import sys

from s3prl_ekd.s3prl_plugin.runners.downstream import main

if __name__ == "__main__":
    sys.exit(main())
