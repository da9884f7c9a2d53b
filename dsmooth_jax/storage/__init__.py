"""What lies on disk: scores, checkpoints, and what made them."""
