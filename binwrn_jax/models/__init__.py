"""The networks of the paper."""

from binwrn_jax.models.layers import BatchNorm, BinaryConv
from binwrn_jax.models.wide_resnet import WideResNet

__all__ = ["BatchNorm", "BinaryConv", "WideResNet"]
