"""The type checker that conftest.py installs on the numeric modules: shapes and dtypes at each call."""

from beartype import BeartypeConf, beartype

# The tower: where `float` is asked for an int will do, as for every other type checker.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
