"""What is wrong with rows before a run, and what mends it."""
