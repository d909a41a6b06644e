"""Rows in, conversations and token ids out. No torch."""
