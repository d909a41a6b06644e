"""A data set of the Hugging Face hub becomes rows, at a pinned revision. The hub is asked once, with a time-out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.rows import Row, RowOrProblem, Tally
from qlora_studio.data.readers.table_child import plain_value

_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class HubSet:
    """A data set on the hub. `revision` is a commit once it is pinned."""

    id: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}{f'/{self.subset}' if self.subset else ''}:{self.split}"


def pin(wanted: HubSet) -> HubSet:
    """The same set with its branch or tag resolved to a commit. Raises a StudioError where that fails."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", wanted.id):
        raise StudioError(f"'{wanted.id}' is not the id of a hub data set.", "It looks like owner/name.")
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise StudioError("The hub is switched off (HF_HUB_OFFLINE).", "Give a file instead.", where=wanted.id)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().dataset_info(wanted.id, revision=wanted.revision, timeout=_TIMEOUT_SECONDS)
    except GatedRepoError:
        raise StudioError(
            "This data set asks you to accept its licence first.",
            "Open its page on the hub, accept, and log in.",
            where=wanted.id,
        ) from None
    except RevisionNotFoundError:
        raise StudioError(
            f"This data set has no revision '{wanted.revision}'.", "Leave it empty.", where=wanted.id
        ) from None
    except RepositoryNotFoundError:
        raise StudioError("The hub has no such data set, or it is private.", "Check the id.", where=wanted.id) from None
    except OfflineModeIsEnabled:
        raise StudioError(
            "The hub is switched off (HF_HUB_OFFLINE).", "Give a file instead.", where=wanted.id
        ) from None
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        said = "asks to wait: too many requests" if code == 429 else f"answers with an error ({code})"
        raise StudioError(f"The hub {said}.", "Try again later.", where=wanted.id) from None
    except Exception as error:  # the HTTP library below raises its own kinds, which change between versions
        raise StudioError(
            f"The hub cannot be reached ({type(error).__name__}).",
            "Check the network, or give a file.",
            where=wanted.id,
        ) from None
    return HubSet(wanted.id, wanted.subset, wanted.split, info.sha)


def read_hub(pinned: HubSet, tally: Tally) -> Iterator[RowOrProblem]:
    """Rows of a pinned set, streamed; the line of a row is its number, from 1."""
    from datasets import load_dataset

    try:
        rows = load_dataset(pinned.id, pinned.subset, split=pinned.split, revision=pinned.revision, streaming=True)
        for number, values in enumerate(rows, 1):
            tally.rows += 1
            yield Row(str(pinned), number, {name: plain_value(value) for name, value in values.items()})
    except Exception as error:  # the library raises from bare Exception to those of every file format it reads
        said = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise StudioError(
            f"The data set cannot be read: {said[:300]}.", "Check subset and split on its page.", where=str(pinned)
        ) from None
