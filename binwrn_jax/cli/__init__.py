"""The command lines: ``binwrn VERB``, of which ``train.py`` is the verb ``train``."""
