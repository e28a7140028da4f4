"""The command line ``binwrn VERB``; ``train.py`` is its verb ``train``."""
