"""CIFAR-100 (Table 1).

    python train.py --config=configs/cifar100.py:20-10,1bit,cutout --config.epochs=254 --workdir=runs/c100

Paper, test error %: 1-bit 20-4 23.87 (+) 23.74 (++), 20-10 19.35 / 18.51, 26-10 18.94 / 18.50, 20-20
18.81; 32-bit 20-4 21.53 / 20.48, 20-10 18.76 / 17.19, 26-10 18.63 / 17.22, 20-20 18.14.
Not run here: the data set is not at hand.
"""

from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants


def get_config(spec: str = ""):
    """The paper's setting; ``spec`` as in `binwrn_jax.training.variants.apply_variants`."""
    config = base_config()
    config.data.name = "cifar100"
    apply_variants(config, spec)
    return config
