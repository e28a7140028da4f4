"""Trains one network: ``python train.py --config=configs/cifar10.py:20-4,1bit,cutout --workdir=DIR``."""

import sys
from pathlib import Path

from binwrn_jax.cli.allocator import keep_memory
from binwrn_jax.cli.main import train_main

if __name__ == "__main__":
    keep_memory()
    sys.exit(train_main(sys.argv, default_config=Path(__file__).parent / "configs" / "digits.py"))
