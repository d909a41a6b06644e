"""The face in the browser: Gradio over the verbs of `studio.py`. Knows no model, file format or memory formula."""
