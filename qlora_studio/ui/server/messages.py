"""The door between a person's click and the studio: mistakes become sentences, surprises go to the log."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, NoReturn, TypeVar

import gradio as gr

from qlora_studio.core.errors import StudioError
from qlora_studio.ui import fields

Handler = TypeVar("Handler", bound=Callable[..., Any])
LOG = logging.getLogger("qlora_studio.ui")
SHOWN = 4
"""Problems in one toast; a page that has room shows them all."""


def sentences(error: StudioError) -> list[str]:
    """What is wrong, in the page's words."""
    return [fields.sentence(problem) for problem in error.problems]


def reports_errors(handler: Handler) -> Handler:
    """The handler with a StudioError shown as its sentences, anything else as one sentence and a line in the log."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*values: Any, **options: Any) -> Iterator[Any]:
            try:
                yield from handler(*values, **options)
            except Exception as error:
                raise_for_page(error)

        return stream  # type: ignore[return-value]

    @functools.wraps(handler)
    def answer(*values: Any, **options: Any) -> Any:
        try:
            return handler(*values, **options)
        except Exception as error:
            raise_for_page(error)

    return answer  # type: ignore[return-value]


def raise_for_page(error: Exception) -> NoReturn:
    """Raises what the page shows as a message. Toasts render HTML, so the text is escaped."""
    if isinstance(error, gr.Error):
        raise error
    if isinstance(error, StudioError):
        problems = sentences(error)
        rest = [f"… and {len(problems) - SHOWN} more."] if len(problems) > SHOWN else []
        text = "<br>".join(escape(sentence) for sentence in [*problems[:SHOWN], *rest])
        raise gr.Error(text, duration=12, title="This does not work", print_exception=False) from None
    LOG.exception("a handler of the page failed")
    raise gr.Error(
        f"Something went wrong inside the studio ({escape(type(error).__name__)}). Its terminal shows more.",
        duration=12,
        print_exception=False,
    ) from None


def notify(message: str) -> None:
    """A short note in the corner."""
    gr.Info(escape(message), duration=4)
