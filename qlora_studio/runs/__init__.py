"""Job folders: where a run lives, who works on it, what it said. No torch."""
