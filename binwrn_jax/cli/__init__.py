"""The command lines: ``train.py`` and ``binwrn VERB``."""
