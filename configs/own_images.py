"""Your own images: a folder with one folder for each class, or another of the forms of docs/own-data.md.

    python train.py --config=own_images --config.data.name=folder:PATH --workdir=runs/own

Not in the paper. The network sees 32x32 pixels; ``--config.data.size`` changes that. Images are mirrored and
moved at random; ``--config.augmentation=crop`` only moves them, where left and right matter (letters, signs).
"""

from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants


def get_config(spec: str = ""):
    """A 20-1 network, 30 epochs; ``spec`` as in `binwrn_jax.training.variants.apply_variants`."""
    config = base_config()
    config.data.name = "folder:PATH"
    config.data.size = 32
    config.model.depth, config.model.width = 20, 1.0
    config.batch_size = 50
    config.epochs = 30
    apply_variants(config, spec)
    return config
