"""doctor"""


def doctor() -> None:
    """x"""
