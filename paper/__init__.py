"""The paper's tables, figures and claims: which runs they need, and what ours have measured."""
