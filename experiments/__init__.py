"""The paper's tables and figures, and questions beyond them: one script each, ``python -m experiments.NAME``.

Run from the root of the checkout; ``experiments/README.md`` lists the scripts.
"""
