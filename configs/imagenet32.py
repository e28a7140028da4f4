"""ImageNet at 32x32 (Table 2): flip and crop, all BN scales and offsets learned.

    python train.py --config=configs/imagenet32.py:20-10,1bit --workdir=runs/imagenet32

Paper, top-1 / top-5 test error %: 1-bit 20-4 56.08 / 30.88, 20-10 44.27 / 21.09, 20-15 41.26 / 19.08
(30 epochs), 26-10 41.36 / 18.93 (62 epochs: ``--config.epochs=62``); 32-bit 20-4 46.61 / 22.91,
20-10 39.96 / 17.89, 20-15 38.90 / 17.03. Not run here: no data at hand.
"""

from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants


def get_config(spec: str = ""):
    """The paper's setting; ``spec`` as in `binwrn_jax.training.variants.apply_variants`."""
    config = base_config()
    config.data.name = "imagenet32"
    config.model.depth, config.model.width = 20, 10.0
    config.model.affine = True
    config.moments = "running"  # section 3.2.1 recomputes them only where scale and offset are not learned
    config.epochs = 30
    config.optimizer.weight_decay = 1e-4
    apply_variants(config, spec)
    return config
