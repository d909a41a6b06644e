"""What a run will take of the card, before it starts. No torch, no weights."""
