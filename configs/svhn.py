"""SVHN (Table 2): random crop without flip, train and extra splits.

    python train.py --config=configs/svhn.py:20-4,1bit --workdir=runs/svhn

Paper, test error %: 20-4 1-bit 1.93, 32-bit 1.75, 30 epochs. Not run here: no data at hand.
"""

from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants


def get_config(spec: str = ""):
    """The paper's setting; ``spec`` as in `binwrn_jax.training.variants.apply_variants`."""
    config = base_config()
    config.data.name = "svhn_cropped"
    config.data.train_split = "train+extra"
    config.epochs = 30
    config.augmentation = "crop"
    apply_variants(config, spec)
    return config
