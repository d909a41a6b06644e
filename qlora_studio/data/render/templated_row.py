"""One conversation on its way through one chat template: what stands before each answer, and where each answer lies.

What the template loses, moves or rewrites is found here, and the row is refused with the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qlora_studio.core.conversation import Conversation, Turn
from qlora_studio.core.errors import StudioError, TemplateStopped
from qlora_studio.data.render.content import Piece, find_lost_of_answer, find_lost_of_context
from qlora_studio.data.render.control import Escapes
from qlora_studio.data.render.encode import Draft
from qlora_studio.data.render.messages import message_of
from qlora_studio.data.render.tokenizer import Tokenizer
from qlora_studio.data.render.traits import Traits

Span = tuple[int, int]


class RowRefused(StudioError):
    """A row that cannot be rendered truthfully. `finding` is the name by which such rows are counted."""

    def __init__(self, finding: str, message: str, hint: str = "", *, where: str = "", field: str = "") -> None:
        super().__init__(message, hint, where=where, field=field)
        self.finding = finding


class TemplatedRow:
    """One conversation on its way through one template."""

    def __init__(self, conversation: Conversation, tokenizer: Tokenizer, traits: Traits, control_tokens: str) -> None:
        self.conversation = conversation
        self.tokenizer = tokenizer
        self.traits = traits
        self.where = str(conversation.source) if conversation.source.file else ""
        self.escapes = Escapes.make(tokenizer, control_tokens)
        self._check_template()
        self.turns = [self._hidden(turn, index) for index, turn in enumerate(conversation.turns)]
        self.messages = [message_of(turn, traits) for turn in self.turns]
        self._prompts: dict[tuple[int, bool], str] = {}

    def _hidden(self, turn: Turn, index: int) -> Turn:
        """The turn with its typed control tokens hidden; the turn itself where there are none, as mostly."""
        content = self.escapes.hide(turn.content, self.where, f"turn {index + 1}")
        reasoning = turn.reasoning and self.escapes.hide(turn.reasoning, self.where, f"turn {index + 1}")
        if content == turn.content and reasoning == turn.reasoning:
            return turn
        return replace(turn, content=content, reasoning=reasoning)

    def _check_template(self) -> None:
        if self.conversation.tools and not self.traits.knows_tools:
            raise RowRefused(
                "tools-unknown",
                "This row brings tools, and the chat template knows none.",
                "Choose a model or a template with tools (chatml-tools), or leave such rows out.",
                where=self.where,
                field="tools",
            )

    def prompt(self, count: int, thinking: bool) -> str:
        """The text before the answer to the first `count` turns."""
        key = (count, thinking)
        if key not in self._prompts:
            self._prompts[key] = self._render(count, thinking, add_generation_prompt=True)
        return self._prompts[key]

    def whole_text(self, count: int) -> str:
        """The text of the first `count` turns, with nothing asked behind them."""
        return self._render(count, False, add_generation_prompt=False)

    def _render(self, count: int, thinking: bool, add_generation_prompt: bool) -> str:
        return self._render_messages(self.messages[:count], thinking, add_generation_prompt)

    def _render_messages(self, messages: Sequence[dict[str, Any]], thinking: bool, add_generation_prompt: bool) -> str:
        variables = {"enable_thinking": thinking} if self.traits.knows_thinking else {}
        try:
            return self.tokenizer.render(
                messages,
                tools=self.conversation.tools,
                add_generation_prompt=add_generation_prompt,
                variables=variables,
            )
        except TemplateStopped as error:
            first = error.problems[0]
            raise TemplateStopped(first.message, first.hint, where=self.where) from None
        except StudioError as error:
            first = error.problems[0]
            raise RowRefused("template-refuses", first.message, first.hint, where=self.where) from None

    def _answers(self, stop: int) -> Iterable[int]:
        return (index for index in range(stop) if self.turns[index].role == "assistant")

    def starts(self, text: str, stop: int) -> tuple[int, ...]:
        """Where answers among the first `stop` turns begin. Chat and training cut tokens at the same places."""
        found = []
        for index in self._answers(stop):
            before = self.prompt(index, bool(self.turns[index].reasoning))
            if text.startswith(before):
                found.append(len(before))
        return tuple(sorted(set(found)))

    def _closed(self, index: int) -> tuple[str, Span]:
        """The text up to and with answer `index`, and the answer's characters with its end of turn."""
        turn = self.turns[index]
        before = self.prompt(index, bool(turn.reasoning))
        text = self._render(index + 1, bool(turn.reasoning), add_generation_prompt=False)
        if not text.startswith(before):
            text = before + self._continuation(before, index, text)
        if self.traits.stops_at_next_role:
            text += (self.traits.call_end if turn.tool_calls else "") or self.traits.end_of_turn
            return text, (len(before), len(text))
        end = self.traits.find_end(text, len(before))
        return text[:end], (len(before), end)

    def _continuation(self, before: str, index: int, whole: str) -> str:
        """The answer as it follows a prompt that already opens the reasoning, or one whose earlier turns the template
        writes otherwise once they are answered; anything else is refused.
        """
        turn = self.turns[index]
        if before.rstrip().endswith("<think>"):
            closing = "\n</think>\n\n" if before.endswith("\n") else "\n\n</think>\n\n"
            answer = self._without_reasoning(before, index) if turn.tool_calls else None
            if answer is None and not turn.tool_calls:
                answer = turn.content + ("" if self.traits.stops_at_next_role else self.traits.end_of_turn)
            if answer is not None:
                return f"{turn.reasoning or ''}{closing}{answer}"
        opening = before.removeprefix(self._render(index, bool(turn.reasoning), add_generation_prompt=False))
        if opening.strip() and opening != before and opening in whole:
            return whole[whole.rindex(opening) + len(opening) :]
        raise RowRefused(
            "prompt-not-prefix",
            f"With this template the prompt before turn {index + 1} is not how the whole conversation begins.",
            "Training would show the model a context that chat never produces: choose another template.",
            where=self.where,
            field=f"turn {index + 1}",
        )

    def _without_reasoning(self, before: str, index: int) -> str | None:
        """What the template writes of an answer behind the place where its reasoning would open; None if it cannot."""
        head = before[: before.rindex("<think>")]
        bare = message_of(replace(self.turns[index], reasoning=None), self.traits)
        text = self._render_messages([*self.messages[:index], bare], False, add_generation_prompt=False)
        return text[len(head) :] if text.startswith(head) else None

    def whole(self, wanted: set[int], train_on: str) -> list[Draft]:
        """One draft for the row; none where the template rewrites what it said before."""
        last = max(wanted)
        if self.turns[last].role == "assistant":
            text, span = self._closed(last)
            spans = {last: span}
        else:
            text = self._render(len(self.turns), bool(self.turns[-1].reasoning), add_generation_prompt=False)
            spans = {}
        for index in self._answers(last):
            before = self.prompt(index, bool(self.turns[index].reasoning))
            if not text.startswith(before):
                return []
            closed, span = self._closed(index)
            if not text.startswith(closed):
                return []
            spans[index] = span
        spans = self._places(text, last) | spans
        chosen = wanted if train_on != "everything" else set(range(last + 1)) - wanted
        if missing := chosen - set(spans):
            raise self._refused("template-drops", min(missing), "The chat template writes this turn in its own words.")
        self._check_content(text, {index: spans[index] for index in wanted if index in spans}, last)
        marked = tuple(sorted(spans[index] for index in chosen))
        if train_on == "everything":
            marked = _without((0, len(text)), marked)
        return [Draft(text, self.starts(text, last + 1), marked, self.escapes, self.conversation)]

    def single(self, index: int) -> Draft:
        """A draft that trains answer `index` alone, in the context chat would give it."""
        if self.turns[index].role != "assistant":
            raise RowRefused(
                "template-rewrites",
                "This template rewrites earlier turns, so only answers can be trained with it.",
                "Train on answers, or choose another template.",
                where=self.where,
                field=f"turn {index + 1}",
            )
        text, span = self._closed(index)
        self._places(text, index)
        self._check_content(text, {index: span}, index)
        return Draft(text, self.starts(text, index + 1), (span,), self.escapes, self.conversation)

    def _check_content(self, text: str, trained: Mapping[int, Span], last: int) -> None:
        """Raises RowRefused where something the row says is not found in the text: the law of content.

        What a trained answer says must stand in its own stretch, everything before the last answer in the prompt.
        """
        lost: Piece | None = None
        for index, (start, end) in sorted(trained.items()):
            turn = self.turns[index]
            if turn.role == "assistant":
                lost = lost or find_lost_of_answer(turn, index, text[start:end])
        if lost is None and (self.conversation.tools or any(turn.tool_calls for turn in self.turns[:last])):
            before = text[: trained[last][0]] if last in trained else text
            lost = find_lost_of_context(self.turns[:last], self.conversation.tools, before)
        if lost:
            index = max(lost.turn, 0)
            place = f" of turn {lost.turn + 1}" if lost.turn >= 0 else ""
            raise self._refused("template-drops", index, f"The chat template drops {lost.name}{place}.")

    def _refused(self, finding: str, index: int, message: str) -> RowRefused:
        hint = "Choose another template, or leave such rows out."
        if self.turns[index].reasoning and "the reasoning" in message:
            hint = "Choose another template, move the reasoning into the answer, or leave such rows out."
        elif self.turns[index].tool_calls:
            hint = "Choose a template with tools (chatml-tools), give the row its tools, or leave such rows out."
        return RowRefused(finding, message, hint, where=self.where, field=f"turn {index + 1}")

    def _places(self, text: str, last: int) -> dict[int, Span]:
        """Where the words of each turn stand. Raises RowRefused where the template drops or reorders one."""
        places, position = {}, 0
        for index, turn in enumerate(self.turns[: last + 1]):
            words = turn.content.strip()
            found = text.find(words, position)
            if found < 0 and (turn.role == "tool" or turn.tool_calls):
                continue  # templates re-spell what tools say; whether it is there is checked with the content
            if found < 0 and turn.role == "system" and words in text:
                continue  # some families move the system prompt into the last question
            if found < 0:
                message = f"The chat template drops or reorders turn {index + 1} ({turn.role})."
                raise self._refused("template-drops", index, message)
            places[index] = (found, found + len(words))
            position = found + len(words)
        return places


def _without(span: Span, holes: Sequence[Span]) -> tuple[Span, ...]:
    """What is left of a span when these ascending holes are taken out."""
    left, position = [], span[0]
    for start, end in holes:
        if start > position:
            left.append((position, start))
        position = max(position, end)
    if span[1] > position:
        left.append((position, span[1]))
    return tuple(left)
