"""Certifies and reports a classifier; see `python certify.py --help`."""

from dsmooth_jax.commands.certify import main

if __name__ == "__main__":
    main()
