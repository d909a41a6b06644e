"""Ground floor: frozen values that every room uses. No files, no clock, no heavy library."""
