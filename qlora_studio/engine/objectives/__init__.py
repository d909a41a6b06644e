"""What a training optimises. `protocol.py` says what an objective is; each is a file and a line in `registry.py`."""
