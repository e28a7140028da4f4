"""Wide residual networks with one bit per weight, in JAX and Flax.

The method of M. D. McDonnell, "Training wide residual networks for deployment using a single bit
for each weight" (ICLR 2018). What a notebook needs is importable from here; see docs/tour.ipynb.
Orbax, TFDS and matplotlib are imported where they are used, not by ``import binwrn_jax``.
"""

from binwrn_jax.data.on_device import DeviceData, epoch_order
from binwrn_jax.data.sources import Arrays, load
from binwrn_jax.deploy.packed import load_packed
from binwrn_jax.errors import UserError
from binwrn_jax.evaluation import cross_entropy, evaluate, make_eval_step, metric_sums
from binwrn_jax.nn import BatchNorm, BinaryConv, WideResNet
from binwrn_jax.nn.rules import RULES, binarize, he_scale, sign
from binwrn_jax.parallel.sharding import make_mesh
from binwrn_jax.store.model_folder import load_model, save_model
from binwrn_jax.training.augment import AUGMENTATIONS, augment
from binwrn_jax.training.config import base_config
from binwrn_jax.training.loop import train
from binwrn_jax.training.moments import dataset_moments
from binwrn_jax.training.optimizer import sgd
from binwrn_jax.training.schedules import cycle_ends, sgdr, step_decay
from binwrn_jax.training.state import TrainState, init_state
from binwrn_jax.training.step import make_moments_step, make_train_step

__version__ = "0.1.0"

__all__ = [
    "AUGMENTATIONS",
    "RULES",
    "Arrays",
    "BatchNorm",
    "BinaryConv",
    "DeviceData",
    "TrainState",
    "UserError",
    "WideResNet",
    "augment",
    "base_config",
    "binarize",
    "cross_entropy",
    "cycle_ends",
    "dataset_moments",
    "epoch_order",
    "evaluate",
    "he_scale",
    "init_state",
    "load",
    "load_model",
    "load_packed",
    "make_eval_step",
    "make_mesh",
    "make_moments_step",
    "make_train_step",
    "metric_sums",
    "save_model",
    "sgd",
    "sgdr",
    "sign",
    "step_decay",
    "train",
]
