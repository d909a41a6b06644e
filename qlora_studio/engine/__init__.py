"""The only room that imports torch: load, train, evaluate, generate, merge."""
