"""The face in the browser: Gradio over the verbs of `studio.py`. Knows no model, no file format and no memory formula."""
