"""A file, folder, archive or hub id becomes rows with file and line, and an account of them."""
