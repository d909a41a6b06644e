"""What a run's weights are: the hashes by which a base, an adapter and a template are known again."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class Identity(BaseModel):
    """Hashes of what a run computes with, kept as `identity` in its fingerprint.json.

    A part that is None is not known, and differs from nothing.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    base: Mapping[str, str] | None = None
    """sha256 of the base's weight files, by name."""
    adapter: Mapping[str, str] | None = None
    """sha256 of the adapter's files, by name."""
    template: str | None = None
    """sha256 of the chat template's source."""

    def differences(self, other: Identity) -> tuple[str, ...]:
        """One sentence for each part in which `other`, what is there now, is not this, what was written down."""
        sentences = [
            _compare("The base's weights", self.base, other.base),
            _compare("The adapter's files", self.adapter, other.adapter),
        ]
        if None not in (self.template, other.template) and self.template != other.template:
            sentences.append("The chat template is not the one it was trained with.")
        return tuple(sentence for sentence in sentences if sentence)


def _compare(what: str, before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    """In words how two sets of files differ; empty where they are the same or one is not known."""
    if before is None or now is None or dict(before) == dict(now):
        return ""
    if sorted(before.values()) == sorted(now.values()):
        return ""  # the same bytes under other names
    if gone := sorted(set(before) - set(now)):
        return f"{what} are not those it was trained with: {gone[0]} is missing."
    if new := sorted(set(now) - set(before)):
        return f"{what} are not those it was trained with: {new[0]} is new."
    changed = next(name for name in sorted(before) if before[name] != now[name])
    return f"{what} are not those it was trained with: {changed} has changed."
