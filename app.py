"""Opens the studio in the browser: `python app.py`."""

from qlora_studio.ui.__main__ import main

if __name__ == "__main__":
    main()
