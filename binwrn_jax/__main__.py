"""``python -m binwrn_jax VERB``: the program ``binwrn``."""

import sys

from binwrn_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
