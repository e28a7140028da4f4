"""The cache folder, for files that can be made again."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path


def user_cache(name: str) -> Path:
    """The folder ``binwrn_jax/NAME`` in the user's cache; it may not exist yet.

    The cache is XDG_CACHE_HOME, else ``.cache`` in the home folder. Values that are no absolute paths are
    ignored, as the XDG specification requires, so an unexpanded ``~`` makes no folder of that name.
    A user without a home folder (no HOME and no entry in the password file, as in many containers) gets
    ``binwrn_jax-UID`` in the folder for temporary files.

    Args:
      name: the subject, such as ``native``.
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):
        return Path(cache, "binwrn_jax", name)
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = ""
    if os.path.isabs(home):
        return Path(home, ".cache", "binwrn_jax", name)
    return Path(tempfile.gettempdir(), f"binwrn_jax-{os.getuid()}", name)
