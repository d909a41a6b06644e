"""Ground floor: frozen values that every room speaks. No files, no clock, no heavy library."""
