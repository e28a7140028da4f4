"""Sizes in bytes, as options take them."""

from __future__ import annotations

import argparse
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
