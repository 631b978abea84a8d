"""One script a table or figure of the paper; run from the checkout as ``python -m experiments.NAME``."""
