"""The one way to the hub: tokens reach it, it is never waited for, and each of its errors is a sentence."""

import socket
import time

import pytest

from qlora_studio import hub
from qlora_studio.core.errors import StudioError
from tests.hub_server import SHA, Hub, HubModel, serve

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")

FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"0" * 1000, "pytorch_model.bin": b"0" * 9000}


@pytest.fixture
def running(monkeypatch):
    models = {
        "good/one": HubModel({**FILES, "chat_template.jinja": b"x"}),
        "mine/one": HubModel(FILES, private=True),
        "old/one": HubModel({"pytorch_model.bin": b"0"}, licence=""),
        "gated/one": HubModel({}), "busy/one": HubModel({}), "sick/one": HubModel({}), "locked/one": HubModel({}),
    }  # fmt: skip
    errors = {
        "gated/one": (403, "GatedRepo"),
        "busy/one": (429, ""),
        "sick/one": (500, ""),
        "locked/one": (403, ""),
    }
    with serve(Hub(models, errors)) as there:
        monkeypatch.setenv("HF_ENDPOINT", there.url)
        yield there


def test_a_model_is_known_before_anything_is_downloaded(running):
    assert hub.look_up_model("good/one") == hub.HubModel(
        repo="good/one", commit=SHA, licence="apache-2.0", download_bytes=1024, has_safetensors=True, has_template=True
    )
    assert hub.look_up_model("old/one") == hub.HubModel("old/one", SHA, "", 0, False, False)


def test_a_small_file_is_read_and_nothing_is_left_behind(running, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    assert hub.fetch_model_file("good/one", SHA, "config.json") == FILES["config.json"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_download_takes_weights_and_leaves_pickles(running, tmp_path):
    hub.download_model("good/one", SHA, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir() if path.is_file()}
    assert names == {"config.json", "model.safetensors", "chat_template.jinja"}


@pytest.mark.parametrize("how", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "saved"])
@pytest.mark.parametrize("implicit", ["0", "1"])
def test_a_private_model_opens_with_a_token_however_it_is_given(running, monkeypatch, tmp_path, how, implicit):
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", implicit)
    with pytest.raises(StudioError, match="mine/one: The hub has no such model, or it is private"):
        hub.look_up_model("mine/one")
    if how == "saved":
        (tmp_path / "token").write_text("good\n")
    else:
        monkeypatch.setenv(how, "good")
    assert hub.look_up_model("mine/one").commit == SHA
    assert hub.fetch_model_file("mine/one", SHA, "config.json") == FILES["config.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gated/one",
            "gated/one: This model asks you to accept its licence first. Open {url}/gated/one and accept it, then log "
            "in with `hf auth login` or set HF_TOKEN.",
        ),
        (
            "none/one",
            "none/one: The hub has no such model, or it is private. Check the Hub ID. For a private one, log in with "
            "`hf auth login` or set HF_TOKEN.",
        ),
        ("busy/one", "busy/one: The hub asks to wait: too many requests. Try again later."),
        ("sick/one", "sick/one: The hub answers with an error (500). Try again later."),
        (
            "locked/one",
            "locked/one: The hub refuses access (403). Log in again with `hf auth login`, or set HF_TOKEN anew.",
        ),
    ],
)
def test_every_refusal_is_a_sentence(running, name, message):
    with pytest.raises(StudioError) as caught:
        hub.look_up_model(name)
    assert str(caught.value) == message.format(url=running.url)


def test_a_missing_file_is_named(running):
    with pytest.raises(StudioError, match=r"^old/one: This model has no config\.json\. Choose a model in transformers"):
        hub.fetch_model_file("old/one", SHA, "config.json")


def test_who_has_a_token_is_told_to_accept_with_its_account(running, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    with pytest.raises(StudioError) as caught:
        hub.look_up_model("gated/one")
    assert (
        caught.value.hint == f"Open {running.url}/gated/one and accept it with the account that your token belongs to."
    )
    assert "secret-token" not in str(caught.value)


def test_offline_asks_nobody(running, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StudioError, match="good/one: The hub is switched off"):
        hub.look_up_model("good/one")
    assert running.requests == []


def test_a_hub_that_never_answers_is_given_up_at_once(monkeypatch):
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
    monkeypatch.setattr(hub, "REACH_SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(StudioError, match="good/one: The hub cannot be reached"):
        hub.look_up_model("good/one")
    assert time.monotonic() - begun < 2
    silent.close()


def test_what_a_refusal_depends_on_changes_with_token_address_and_offline(monkeypatch, tmp_path):
    seen = {hub.circumstances()}
    monkeypatch.setenv("HF_TOKEN", "one")
    seen.add(hub.circumstances())
    monkeypatch.setenv("HF_TOKEN", "two")
    seen.add(hub.circumstances())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen.add(hub.circumstances())
    assert len(seen) == 4


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    (folder / "merged").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.")
    (folder / "small.gguf").write_bytes(b"GGUF" * 5000)
    (folder / "merged" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def plain_uploads(monkeypatch):
    """Large files go the way without a second service."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.mark.parametrize("public", [False, True])
def test_an_upload_is_private_unless_said_otherwise_and_every_byte_arrives(
    running, export, plain_uploads, monkeypatch, public, tmp_path
):
    monkeypatch.setenv("HF_TOKEN", "good")
    assert hub.upload_folder(export, "me/new-one", public=public) == f"{running.url}/me/new-one"
    model = running.models["me/new-one"]
    assert model.private == (not public)
    sent = {str(path.relative_to(export)): path.read_bytes() for path in export.rglob("*") if path.is_file()}
    assert {name: content for name, content in model.files.items() if name != ".gitattributes"} == sent
    assert {token for method, path, token in running.requests if path.startswith("/api/")} == {"Bearer good"}
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"good" in path.read_bytes()]
    assert kept == [], "the token is written down nowhere"


def test_a_public_repository_that_is_there_takes_no_private_upload(running, export, plain_uploads, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")
    before = dict(running.models["good/one"].files)
    with pytest.raises(StudioError, match="everybody can see it"):
        hub.upload_folder(export, "good/one")
    assert running.models["good/one"].files == before


@pytest.mark.parametrize(
    ("token", "offline", "message"),
    [
        ("", "", "Nobody is logged in to the hub"),
        ("other", "", r"The hub refuses access \(403\)"),
        ("good", "1", "The hub is switched off"),
    ],
)
def test_what_stands_against_an_upload_is_one_sentence(running, export, monkeypatch, token, offline, message):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    with pytest.raises(StudioError, match=message):
        hub.upload_folder(export, "me/new-one")
    assert "me/new-one" not in running.models
