"""The 1,797 real handwritten digits that scikit-learn ships (8x8 pixels): trains with no download.

Not in the paper: it is the data set for a first try and for tests.

    python train.py --workdir=runs/digits

Cost and result: see the README.
"""

from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants


def get_config(spec: str = ""):
    """A 14-1 network, 30 epochs; ``spec`` as in `binwrn_jax.training.variants.apply_variants`."""
    config = base_config()
    config.data.name = "digits"
    config.model.depth, config.model.width = 14, 1.0
    config.batch_size = 50
    config.epochs = 30
    config.augmentation = "none"
    apply_variants(config, spec)
    return config
