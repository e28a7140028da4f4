"""The words after the colon of ``--config=cifar10:20-4,1bit,cutout``, each with the fields that it sets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from binwrn_jax.errors import UserError
from binwrn_jax.nn.rules import RULES as WEIGHT_RULES

# Of the paper, its released versions and its follow-up.
PAPER: dict[str, dict[str, Any]] = {
    **{rule: {"model.weights": rule} for rule in WEIGHT_RULES},
    "cutout": {},  # which one depends on the other augmentations
    "plain": {"model.plain": True},
    "learnbn": {"model.affine": True, "moments": "running"},
    "step": {"schedule.name": "step"},
    "nobn": {"model.norm": "none", "model.temperature": 40.0, "model.input_relu": False},
    "matlab": {"schedule.floor": 1e-5},
    "keras": {
        "model.padding": "same",
        "model.input_relu": False,
        "schedule.floor": 1e-5,
        "optimizer.reset_momentum": False,
        "moments": "running",
    },
    "bf16": {"model.dtype": "bfloat16"},
}
# Recipes that are not in the paper, with the values of the papers that docs/recipes.md names.
RECIPES: dict[str, dict[str, Any]] = {
    "smooth": {"recipe.label_smoothing": 0.1},
    "mixup": {"recipe.mixup": 0.2},
    "cutmix": {"recipe.cutmix": 1.0},
    "jitter": {"recipe.jitter": 0.3},
    "lighting": {"recipe.lighting": 0.1},
    "ema": {"recipe.ema": 0.998},
    "cosine": {"schedule.name": "cosine", "schedule.warmup_epochs": 1.0},
    "best": {"checkpoint.best": True},
}


def apply_variants(
    config: ConfigDict, words: str, extra: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Sets the fields that the words after the colon of ``--config=cifar10:20-4,1bit,cutout`` stand for.

    Words are separated by commas: a network size as depth-width (``20-10``), a weight rule
    (``1bit``, ``32bit``, ``bwn``, ``bwn_layer``, ``binaryconnect``) and any of

    * ``cutout``: the third augmentation (``++`` in Table 1),
    * ``plain``: no skip connections (appendix B),
    * ``learnbn``: learn all BN scales and offsets (Fig. 6), with running BN moments: those after training
      are for layers without (section 3.2.1),
    * ``step``: the step schedule of Fig. 6 instead of warm restarts,
    * ``nobn``: the follow-up without batch norm (arXiv 1907.06916), temperature 40,
    * ``matlab``: the MATLAB version where it differs from the text (rate down to 1e-5),
    * ``keras``: the Keras version (``same`` padding, no input ReLU, rate down to 1e-5, momentum
      kept at restarts, running BN moments),
    * ``bf16``: bfloat16 activations,
    * not in the paper, see docs/recipes.md: ``smooth`` (label smoothing), ``mixup``, ``cutmix``, ``jitter``
      (random colours and shears), ``lighting`` (PCA), ``ema`` (averaged latent weights), ``cosine`` (one
      cycle with a warm-up), ``best`` (keep the model with the least validation error).

    Args:
      config: changed in place.
      words: separated by commas, or ''.
      extra: further words of one config file, each with the fields that it sets.

    Raises:
      UserError: unknown word; the message lists those that exist.
    """
    cutout = "flip_crop_cutout" if "flip" in config.augmentation else "crop_cutout"
    known = {**PAPER, "cutout": {"augmentation": cutout}, **RECIPES, **(extra or {})}
    for word in filter(None, (part.strip() for part in words.split(","))):
        network = re.fullmatch(r"(\d+)-(\d+(?:\.\d+)?)", word)
        if network:
            config.model.depth, config.model.width = int(network[1]), float(network[2])
        elif word in known:
            config.update_from_flattened_dict(known[word])
        else:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(
                f"unknown spec word {word!r}{hint}: use a network such as 20-4, {', '.join(known)}"
            )
