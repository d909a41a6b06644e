"""What a run can be handed on as. `protocol.py` says what an exporter is; each is a file and a line in `registry.py`."""
