"""Training base classifiers: a pure step, and a loop that survives."""
