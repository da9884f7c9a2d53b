"""Trains a base classifier; see `python train.py --help`."""

from dsmooth_jax.commands.train import main

if __name__ == "__main__":
    main()
