"""One file a tab: its controls, and what happens when they are used."""
