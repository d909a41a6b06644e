"""A row becomes a conversation: each format by name."""
