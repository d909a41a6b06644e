"""The hardware that computes. `protocol.py` says what the engine asks of it; each kind is a file and a line in `choose`."""
