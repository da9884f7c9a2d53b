"""What is asked of scores, what was found, and how it is shown."""
