"""ImageNet (Table 2, 18-2.5): all BN scales and offsets learned, batches of 1024 and more.

    python train.py --config=configs/imagenet.py:18-2.5,1bit --workdir=runs/imagenet

Paper, top-1 / top-5 test error %: 1-bit 31.03 / 11.51 with one crop, 26.04 / 8.48 with 25; 32-bit
26.92 / 9.20 and 22.99 / 6.91. 62 epochs. Not run here: no ImageNet and no accelerator at hand.

Training crops are of random scale and aspect (Szegedy et al. 2015), mirrored at random; the word ``he`` takes
the scale augmentation of He et al. 2015b instead (short side 256 to 480), which the paper's text refers to.
Data: docs/data.md.

The paper's batch is 125 on one GPU, rate 0.1, float32: the word ``paper``. The default is for several
devices; it differs in

* the batch, 1024 (``--config.batch_size``, up to 8192 for a pod), and with it the rate,
  0.1 batch / 125, reached after a warm-up of 5 epochs. ``--config.schedule.scaling=sqrt`` is the
  cautious choice for the largest batches: at 8192 the linear rate is 6.6, twice that of Goyal et al. 2017;
* batch norm by groups of 128 images (``ghost_size``), near the paper's 125, so that its statistics do not
  change with the batch. Where the groups are a multiple of the devices no activation leaves its device;
  otherwise choose 64 or 32, or a larger batch;
* bfloat16 activations. Parameters, moments, loss and optimiser stay float32.

A machine with little memory adds ``--config.accumulate=8``: the same updates, computed in 8 parts.

The word ``smoke`` is for the first minutes on a machine: a thin network, 3 epochs, the images and the code of
the real run, on any prepared part of the data from 100 images on. Its test error means nothing.
"""

from binwrn_jax.training.config import base_config
from binwrn_jax.training.variants import apply_variants

PAPER = {
    "batch_size": 125,
    "devices": 1,
    "model.ghost_size": 0,
    "model.dtype": "float32",
    "schedule.scaling": "none",
    "schedule.warmup_epochs": 0.0,
}

# 100 images are one step of an epoch; 10,000 of them take minutes on two cores.
SMOKE = {
    "model.width": 0.125,
    "model.ghost_size": 32,
    "batch_size": 64,
    "epochs": 3,
    "schedule.first_cycle": 3,
    "schedule.warmup_epochs": 0.0,
    "eval.crops": 1,
    "eval.batch_size": 64,
    "checkpoint.every_steps": 20,
    "log.every_steps": 1,
}


def get_config(spec: str = ""):
    """18-2.5 at batch 1024; ``paper`` takes the paper's batch of 125 on one device, ``smoke`` a first try."""
    config = base_config()
    config.data.name = "imagenet2012"
    config.model.depth, config.model.width = 18, 2.5
    config.model.affine = True
    config.model.ghost_size = 128
    config.model.dtype = "bfloat16"
    config.moments = "running"  # section 3.2.1 recomputes them only where scale and offset are not learned
    config.batch_size = 1024
    config.epochs = 62
    config.augmentation = "scale_aspect_flip"
    config.eval.crops = 25
    config.schedule.scaling = "linear"
    config.schedule.warmup_epochs = 5.0
    config.optimizer.weight_decay = 1e-4
    apply_variants(config, spec, {"paper": PAPER, "smoke": SMOKE, "he": {"augmentation": "scale_flip"}})
    return config
