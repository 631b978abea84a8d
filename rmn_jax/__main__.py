"""``python -m rmn_jax`` is the command ``rmn``."""

from rmn_jax.cli.main import run

if __name__ == "__main__":
    run()
