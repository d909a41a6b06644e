"""Imported sets on disk: written whole, listed, split, mixed, prepared for a run."""
