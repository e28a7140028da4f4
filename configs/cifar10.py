"""CIFAR-10 (Table 1): flip and crop (``+``), and cutout (``++``) by the spec word ``cutout``.

    python train.py --config=configs/cifar10.py:20-4,1bit,cutout --workdir=runs/c10

Paper, test error %: 1-bit 20-4 6.13 (+) 5.34 (++), 20-10 4.72 / 3.92, 26-10 4.46 / 3.41;
32-bit 20-4 5.02 / 4.39, 20-10 4.22 / 3.46, 26-10 4.23 / 3.54. 126 epochs for 20-4 and 20-20,
254 for width 10 (``--config.epochs=254``). Measured here: docs/results/.
"""

from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants


def get_config(spec: str = ""):
    """The paper's setting; ``spec`` as in `binwrn_jax.training.variants.apply_variants`."""
    config = base_config()
    apply_variants(config, spec)
    return config
