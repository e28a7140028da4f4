"""Wide residual networks with one bit per weight, in JAX and Flax.

The method of M. D. McDonnell, "Training wide residual networks for deployment using a single bit
for each weight" (ICLR 2018). Import all that a notebook needs from here; see docs/tour.ipynb.
Each name is imported from its module at its first use: ``import binwrn_jax`` alone loads no JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# The public names by the module that has them; __init__.pyi says the same to type checkers.
_MODULES = {
    "data.dataset": ("Arrays", "Dataset", "ImageOptions"),
    "data.on_device": ("DeviceData", "epoch_order"),
    "data.open": ("load", "open_dataset"),
    "deploy.formats": ("open_model",),
    "deploy.jax_runtime": ("load_packed",),
    "deploy.own_network": ("export",),
    "errors": ("UserError",),
    "evaluation": ("cross_entropy", "evaluate", "make_eval_step", "metric_sums"),
    "graph.cost": ("cost",),
    "hub.pretrained": ("load_pretrained",),
    "nn.binarize": ("binarize", "by_path"),
    "nn.layers": ("BatchNorm", "BinaryConv", "BinaryDense"),
    "nn.rules": ("RULES", "he_scale", "sign"),
    "nn.wide_resnet": ("WideResNet",),
    "parallel.sharding": ("make_mesh",),
    "store.description": ("Description",),
    "store.model": ("Model",),
    "training.augment": ("AUGMENTATIONS", "augment"),
    "training.config": ("base_config",),
    "training.loop": ("train",),
    "training.moments": ("dataset_moments", "make_moments_step", "recompute_moments"),
    "training.optimizer": ("sgd",),
    "training.recipes": ("Recipe", "paper_recipe"),
    "training.resolve": ("ResolvedRun", "resolve"),
    "training.schedules": ("cycle_ends", "sgdr", "step_decay"),
    "training.state": ("TrainState", "init_state"),
    "training.step": ("make_train_step",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'binwrn_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"binwrn_jax.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
