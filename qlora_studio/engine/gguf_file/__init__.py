"""One file for llama.cpp, Ollama and LM Studio, written straight from base and adapter by the `gguf` package.

`families.py` knows which architectures and what of their configuration, `vocabulary.py` their tokenizers, `mixture.py`
which tensor gets which type, `blocks.py` how it is encoded, `write.py` puts the file together one tensor at a time.
"""
