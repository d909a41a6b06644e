"""The one way to the Hugging Face hub: who asks (token), how long to wait, offline, and every error as a sentence.

The hub is asked with a short time-out before a library that would retry for minutes. Tokens are those of `HF_TOKEN` and
of `hf auth login`; they are handed to each request and to nothing else, and never stand in a message.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_studio.core.errors import StudioError

HUB = "https://huggingface.co"
REACH_SECONDS = 4
"""How long the hub may take to show that it is there."""
REQUEST_SECONDS = 10
"""How long it may take to answer one question."""
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.model",
    "*.jinja",
    "*.txt",
    "LICENSE*",
    "NOTICE*",
    "README.md",
)
"""What is downloaded of a model: weights, tokenizer, template, licence; no pickles, no code."""
TOKEN_NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

Kind = Literal["model", "data set", "upload"]


@dataclass(frozen=True, slots=True)
class HubModel:
    """What the hub says of a model before anything is downloaded."""

    repo: str
    commit: str
    licence: str
    """Its short name, such as `apache-2.0`; empty where the model names none."""
    download_bytes: int
    """Of all files that would be downloaded."""
    has_safetensors: bool
    has_template: bool
    """Whether a chat template comes with it."""


def is_offline() -> bool:
    """Whether a person asked to stay offline: `HF_HUB_OFFLINE`, or `TRANSFORMERS_OFFLINE` as the libraries take it."""
    setting = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return setting.upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """The address of the hub: `HF_ENDPOINT` where a mirror is used."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def hub_answers() -> bool:
    """True where the hub answered within the time-out, whatever it said, and nobody asked to stay offline."""
    if is_offline():
        return False
    try:
        request = urllib.request.Request(endpoint(), method="HEAD")
        with urllib.request.urlopen(request, timeout=REACH_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def token_file() -> Path:
    """Where `hf auth login` keeps the token."""
    if named := os.environ.get("HF_TOKEN_PATH"):
        return Path(named).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "token"


def find_token() -> str | None:
    """The token of `HF_TOKEN`, else the one saved by `hf auth login`; None where there is neither."""
    for name in TOKEN_NAMES:
        if token := os.environ.get(name, "").strip():
            return token
    try:
        return token_file().read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def circumstances() -> str:
    """A short digest of all that decides what the hub answers to us: where it is, whether it may be asked, who asks."""
    facts = f"{is_offline()} {endpoint()} {find_token()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def look_up_model(repo: str, revision: str | None = None) -> HubModel:
    """What the hub says of a model, at the commit that `revision` means now. Raises a StudioError with the reason."""
    with _sentences(repo, "model", revision):
        from huggingface_hub import HfApi

        found = HfApi(endpoint=endpoint(), token=find_token() or False).model_info(
            repo, revision=revision, timeout=REQUEST_SECONDS, files_metadata=True
        )
    files = {item.rfilename: item.size or 0 for item in found.siblings or []}
    wanted = [name for name in files if any(Path(name).match(pattern) for pattern in MODEL_FILES)]
    tokenizer = (found.config or {}).get("tokenizer_config") or {}
    return HubModel(
        repo=repo,
        commit=str(found.sha),
        licence=_licence(found.card_data),
        download_bytes=sum(files[name] for name in wanted),
        has_safetensors=any(name.endswith(".safetensors") for name in files),
        has_template="chat_template.jinja" in files or bool(tokenizer.get("chat_template")),
    )


def _licence(card: Any) -> str:
    """The short name of a model card's licence; empty where it names none."""
    return str(card.get("license_name") or card.get("license") or "") if card else ""


def fetch_model_file(repo: str, commit: str, name: str) -> bytes:
    """One small file of a model, such as `config.json`. Raises a StudioError with the reason."""
    with _sentences(repo, "model", commit, name):
        from huggingface_hub import hf_hub_download

        with tempfile.TemporaryDirectory() as folder:
            path = hf_hub_download(
                repo,
                name,
                revision=commit,
                local_dir=folder,
                endpoint=endpoint(),
                token=find_token() or False,
                etag_timeout=REQUEST_SECONDS,
            )
            return Path(path).read_bytes()


def download_model(repo: str, commit: str, folder: Path) -> None:
    """All files of a model that training and export need, into a folder. Raises a StudioError with the reason."""
    with _sentences(repo, "model", commit):
        from huggingface_hub import snapshot_download

        snapshot_download(
            repo,
            revision=commit,
            local_dir=folder,
            allow_patterns=list(MODEL_FILES),
            endpoint=endpoint(),
            token=find_token() or False,
            etag_timeout=REQUEST_SECONDS,
        )


def pin_dataset(name: str, revision: str | None = None) -> str:
    """The commit that a data set's branch or tag means now. Raises a StudioError with the reason."""
    with _sentences(name, "data set", revision):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), token=find_token() or False)
        return str(api.dataset_info(name, revision=revision, timeout=REQUEST_SECONDS).sha)


def upload_folder(folder: Path, repo: str, *, public: bool = False) -> str:
    """Uploads a folder as a model, private unless `public`, with the token that is logged in; its address.

    Raises a StudioError with the reason: offline, nobody logged in, no such right, or a repository that is public where
    a private one was wanted.
    """
    token = find_token()
    if token is None and not is_offline():
        raise StudioError(
            "Nobody is logged in to the hub.",
            "Run `hf auth login`, or set HF_TOKEN to a token that may write; it is not kept by the studio.",
            where=repo,
        )
    with _sentences(repo, "upload"):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint(), token=token or False)
        made = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(made.repo_id, timeout=REQUEST_SECONDS).private:
            raise StudioError(
                "This repository is there already, and everybody can see it.",
                "Give another name, or say that it is to be public.",
                where=made.repo_id,
            )
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload from QLoRA Studio")
    return f"{endpoint()}/{made.repo_id}"


@contextmanager
def _sentences(repo: str, kind: Kind, revision: str | None = None, file: str = "") -> Iterator[None]:
    """Asks whether the hub is there, and turns what a library raises into one sentence about `repo`."""
    if is_offline():
        raise StudioError(
            "The hub is switched off (HF_HUB_OFFLINE).", f"Switch it on, or give {_other(kind)}.", where=repo
        )
    if not hub_answers():
        raise StudioError("The hub cannot be reached.", f"Check the network, or give {_other(kind)}.", where=repo)
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        message, hint = f"This {kind} asks you to accept its licence first.", _log_in(repo, kind)
    except errors.RevisionNotFoundError:
        message, hint = f"This {kind} has no revision '{revision}'.", "Leave the revision empty for the newest."
    except errors.RepositoryNotFoundError:
        message = f"The hub has no such {kind}, or it is private."
        hint = "Check the Hub ID. For a private one, log in with `hf auth login` or set HF_TOKEN."
    except errors.EntryNotFoundError:
        message, hint = f"This {kind} has no {file or 'such file'}.", "Choose a model in transformers format."
    except errors.HFValidationError:
        message, hint = f"'{repo}' is not a Hub ID.", "It looks like owner/name."
    except errors.HfHubHTTPError as error:
        message, hint = _refused(getattr(error.response, "status_code", None))
    except (OSError, httpx.HTTPError) as error:
        message = f"The hub does not answer ({type(error).__name__})."
        hint = f"Check the network and try again, or give {_other(kind)}."
    else:
        return
    raise StudioError(message, hint, where=repo)


def _refused(code: int | None) -> tuple[str, str]:
    """Message and hint for an answer that is an error by its number."""
    if code == 429:
        return "The hub asks to wait: too many requests.", "Try again later."
    if code in (401, 403):
        return f"The hub refuses access ({code}).", "Log in again with `hf auth login`, or set HF_TOKEN anew."
    return f"The hub answers with an error ({code}).", "Try again later."


def _log_in(repo: str, kind: Kind) -> str:
    page = f"{endpoint()}/{'datasets/' if kind == 'data set' else ''}{repo}"
    if find_token():
        return f"Open {page} and accept it with the account that your token belongs to."
    return f"Open {page} and accept it, then log in with `hf auth login` or set HF_TOKEN."


def _other(kind: Kind) -> str:
    if kind == "upload":
        return "it another try later: the export stays where it is"
    return "the folder of a model" if kind == "model" else "a file"
