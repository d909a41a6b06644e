"""`python -m qlora_studio` is the command line."""

from qlora_studio.cli import main

main()
