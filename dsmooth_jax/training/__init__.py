"""Training base classifiers: a pure step, a loop that survives, and a run of both."""

from dsmooth_jax.training.choice import Choice
from dsmooth_jax.training.config import Config, from_json
from dsmooth_jax.training.run import train

__all__ = ["Choice", "Config", "from_json", "train"]
