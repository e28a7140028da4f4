"""The networks of the paper."""

from binwrn_jax.nn.layers import BatchNorm, BinaryConv, BinaryDense
from binwrn_jax.nn.wide_resnet import WideResNet

__all__ = ["BatchNorm", "BinaryConv", "BinaryDense", "WideResNet"]
