"""Trains one network: ``python train.py --config=configs/cifar10.py:20-4,1bit,cutout --workdir=DIR``."""

import sys

from binwrn_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
