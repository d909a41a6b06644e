"""A conversation and a tokenizer become text, token ids and the spans that are trained."""
