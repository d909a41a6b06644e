"""Pure functions from state to escaped HTML. They read nothing, change nothing and know no Gradio."""
