"""The description of a model: the fields of ``model.json``, checked when a model is made or opened."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from binwrn_jax.errors import UserError
from binwrn_jax.nn.registry import create_network, is_own, stored_fields

_MOST_CLASSES = 2**24
_LARGEST_SIDE = 2**16


@dataclasses.dataclass(frozen=True)
class Description:
    """What a model is, its origin and its error.

    Attributes:
      num_classes: length of its logits.
      image_shape: ``(H, W, C)`` of its uint8 images.
      model: fields of a network of this package, see `binwrn_jax.nn.registry`, or those that a function of
        the user's got in training, with its name as ``type``; None for another network of the user's own.
      dataset: name of the data set that it was trained on, if known.
      class_names: one for each class, or none at all.
      input: ``resize``: the rule for images of another size; None where nothing is known.
      image_size_assumed: no file says the size of its images; H and W are a guess.
      epoch: epochs trained, if known.
      step: updates done, if known.
      test: what an evaluation measured, and its ``split``.
      config_sha256: see `binwrn_jax.training.config`.
      license: of the weights.
      recorded: what its author's file says of its training.
      source: where it was imported from.
      other: further fields, kept as they are.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    model: Mapping[str, Any] | None = None
    dataset: str | None = None
    class_names: tuple[str, ...] = ()
    input: Mapping[str, Any] | None = None
    image_size_assumed: bool = False
    epoch: int | None = None
    step: int | None = None
    test: Mapping[str, Any] | None = None
    config_sha256: str | None = None
    license: str | None = None
    recorded: Mapping[str, Any] | None = None
    source: Mapping[str, Any] | None = None
    other: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if isinstance(self.model, Mapping):
            object.__setattr__(self, "model", stored_fields(self.model))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Description:
        """The description with these fields of ``model.json``.

        Raises:
          UserError: a field is missing, or no model has such a value; the message names it.
        """
        _check(fields)
        known = {field.name for field in dataclasses.fields(cls)} - {"other"}
        other = {name: value for name, value in fields.items() if name not in known}
        # null is how earlier versions wrote that nothing is known.
        given = {name: fields[name] for name in known if fields.get(name) is not None}
        return cls(**given, other=other)

    def to_dict(self) -> dict[str, Any]:
        """The fields of ``model.json``, as JSON has them: lists instead of tuples."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        other = fields.pop("other")
        return {
            **fields,
            "image_shape": list(self.image_shape),
            "class_names": list(self.class_names),
            **other,
        }

    def network(self) -> nn.Module:
        """The network of this package that the field ``model`` describes.

        Raises:
          UserError: it describes none.
        """
        if self.model is None:
            raise UserError("its network is none of this package: give it, Model.load(path, network=...)")
        if is_own(self.model):
            create_network(self.model, self.num_classes)  # refuses it by name
        return _network(self.model, self.num_classes)


def _network(fields: Mapping[str, Any], num_classes: int) -> nn.Module:
    try:
        network = create_network(fields, num_classes)
        network.check()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"its field model describes no network ({reason})") from error
    return network


def _is_int(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _check(fields: Mapping[str, Any]) -> None:
    """Raises a `UserError` that names the first field with a value that no model has."""
    missing = [name for name in ("num_classes", "image_shape") if name not in fields]
    if missing:
        raise UserError(f"its field {missing[0]} is missing")
    classes, shape = fields["num_classes"], fields["image_shape"]
    if not _is_int(classes, 1, _MOST_CLASSES):
        raise UserError(
            f"its field num_classes is {_short(classes)}: expected a number from 1 to {_MOST_CLASSES}"
        )
    if not (
        isinstance(shape, list | tuple)
        and len(shape) == 3
        and all(_is_int(side, 1, _LARGEST_SIDE) for side in shape)
    ):
        raise UserError(f"its field image_shape is {_short(shape)}: expected height, width and channels")
    names = fields.get("class_names")
    if names is not None and not (
        isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
        and len(names) in (0, classes)
    ):
        raise UserError(f"its field class_names is {_short(names)}: expected {classes} names, or none")
    for name in ("model", "input", "test", "recorded", "source"):
        value = fields.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"its field {name} is {_short(value)}: expected an object with fields")
    for name in ("dataset", "config_sha256", "license"):
        value = fields.get(name)
        if value is not None and not isinstance(value, str):
            raise UserError(f"its field {name} is {_short(value)}: expected text")
    for name in ("epoch", "step"):
        value = fields.get(name)
        if value is not None and not _is_int(value, 0, 2**62):
            raise UserError(f"its field {name} is {_short(value)}: expected a number from 0")
    if not isinstance(fields.get("image_size_assumed") or False, bool):
        raise UserError(f"its field image_size_assumed is {_short(fields['image_size_assumed'])}")
    resize = (fields.get("input") or {}).get("resize")
    if resize is not None and not isinstance(resize, str):
        raise UserError(f"its field input.resize is {_short(resize)}: expected the name of a rule")
    if fields.get("model") is not None and not is_own(fields["model"]):
        _network(fields["model"], classes)


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
