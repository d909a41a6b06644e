"""What is asked of a model and what it answers, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Side = Literal["base", "tuned"]


class Sampling(BaseModel):
    """How the next token is chosen. The same seed and settings give the same answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(0.0, ge=0, le=5, description="0 always takes the likeliest word; higher is more varied.")
    top_p: float = Field(
        0.95, gt=0, le=1, description="Choose among the likeliest words that together reach this share."
    )
    top_k: int = Field(0, ge=0, le=1000, description="Choose among so many of the likeliest words; 0 sets no limit.")
    repetition_penalty: float = Field(
        1.0, ge=0.5, le=2, description="Above 1, words that were used become less likely."
    )
    max_new_tokens: int = Field(256, ge=1, le=32_768, description="Longest answer in tokens.")
    seed: int = Field(42, ge=0, le=2**32 - 1, description="Same seed, same answer.")


class ChatTurn(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """A conversation that waits for an answer of one side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["ask"] = "ask"
    turns: tuple[ChatTurn, ...]
    side: Side = "tuned"
    sampling: Sampling = Sampling()


class StopAnswer(BaseModel):
    """Ends the answer that is being written; what is there stays."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["stop"] = "stop"


ChatMessage = Annotated[ChatRequest | StopAnswer, Field(discriminator="kind")]
"""What goes to a chat worker, one a line."""
CHAT_MESSAGES: TypeAdapter[ChatMessage] = TypeAdapter(ChatMessage)


class ChatPiece(BaseModel):
    """The answer so far. The last piece of an answer is `done` or carries an error."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str = ""
    done: bool = False
    tokens: int = 0
    tokens_per_second: float = 0.0
    prompt: str = ""
    """On the last piece: the exact text the model was given."""
    error: str = ""
    hint: str = ""


class Chat(Protocol):
    """An open chat with a model in memory. Closing it gives the memory back."""

    @property
    def lives(self) -> bool: ...

    def ask(self, request: ChatRequest) -> Iterator[ChatPiece]:
        """The answer as it grows; the last piece is `done`. Raises a StudioError for what went wrong."""
        ...

    def stop(self) -> None:
        """Ends the answer that is being written; what is there stays."""
        ...

    def close(self) -> None: ...
