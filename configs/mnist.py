"""MNIST (section 4): 4x wide, no augmentation.

    python train.py --config=configs/mnist.py:20-4,1bit --config.epochs=14 --workdir=runs/mnist

Paper, test error %: 1-bit 0.81, 0.36, 0.27 after 1, 6, 14 epochs; 32-bit 0.71, 0.28 after 1, 6.
"""

from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants


def get_config(spec: str = ""):
    """The paper's setting, 14 epochs; the word ``fashion`` takes Fashion-MNIST instead."""
    config = base_config()
    config.data.name = "mnist"
    config.epochs = 14
    config.augmentation = "none"
    apply_variants(config, spec, {"fashion": {"data.name": "fashion_mnist"}})
    return config
