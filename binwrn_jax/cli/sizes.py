"""Sizes in bytes and counts, as options take them."""

from __future__ import annotations

import argparse
import math
import re

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size(text: str) -> int:
    """Bytes from text such as ``500M`` or ``2G``; without a unit, bytes.

    >>> size("2G")
    2147483648
    """
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give a number of bytes such as 500M or 2G")
    return int(match[1]) * _UNITS[match[2].upper()]


def count(text: str) -> float:
    """A number of operations from text such as ``1e11``.

    >>> count("1e11")
    100000000000.0
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no count: give a positive number such as 1e11")
    return number
