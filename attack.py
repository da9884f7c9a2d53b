"""Attacks a classifier with patches; see `python attack.py --help`."""

from dsmooth_jax.commands.attack import main

if __name__ == "__main__":
    main()
