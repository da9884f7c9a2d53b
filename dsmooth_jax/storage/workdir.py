"""Where the parts of a run lie: every path of its folder, once."""

from pathlib import Path

CONFIG = Path("config.json")
"""What was trained."""

VALIDATION_IDS = Path("validation_ids.txt")
"""The images that settings were chosen on, a line each."""

METRICS = Path("metrics.jsonl")
"""A line for each validation."""

CURVE = Path("curve.png")
"""The metrics, drawn."""

TENSORBOARD = Path("tensorboard")
"""The metrics for TensorBoard, where asked for."""

LATEST = Path("checkpoints", "latest")
"""The newest checkpoints, to go on from."""

BEST = Path("checkpoints", "best")
"""The best checkpoint on validation data: what is certified."""

CERTIFIED = Path("certify")
"""What was found, a folder for each split."""

ATTACKED = Path("attack")
"""What attacks found, a folder for each split."""

SCORES = Path("scores")
"""The store, in a folder that holds what was found."""

SUMMARY = Path("summary.json")
"""What was found, for programs."""

COMPARISON = Path("comparison.csv")
"""What was found of several runs."""

LOCK = "certify.lock"
"""What the command holds that writes to such a folder."""
