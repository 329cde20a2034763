"""A folder to a hub, through the official clients, against a stand-in for both hubs on this machine."""

import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from swift_mega.base.errors import UserError
from swift_mega.base.upload import Repository, repository
from tests.support.hub_server import Files, HubServer, log_in, point_clients_at

SHARDED = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": b"{}",
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
}
BEFORE = {
    ".gitattributes": b"",
    "README.md": b"A model.",
    "config.json": b'{"model_type": "old"}',
    "model.safetensors": b"old",
    "adapter_model.safetensors": b"of somebody else",
}


@pytest.fixture
def server() -> Iterator[HubServer]:
    repositories: dict[str, dict[str, Files]] = {
        "models/me/old": {"main": dict(BEFORE)},
        "models/you/theirs": {"main": {}},
    }
    with HubServer(repositories).running() as running:
        running.tokens = {"secret": "me"}
        yield running


@pytest.fixture(params=["", "ms::"], ids=["huggingface", "modelscope"])
def prefix(request: pytest.FixtureRequest, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The prefix of ids on a hub, its client pointed at the stand-in, with a token."""
    log_in("secret", monkeypatch)
    return point_clients_at(server, request.param, tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    for name, content in SHARDED.items():
        (made / name).write_bytes(content)
    return made


def sent(to: Repository, folder: Path) -> str:
    to.check()
    return to.send(folder)


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository(private: bool, server: HubServer, prefix: str, folder: Path) -> None:
    page = sent(repository(f"{prefix}me/new", private), folder)
    assert server.repositories["models/me/new"]["main"] == SHARDED
    assert ("models/me/new" in server.private) == private
    assert page == f"{server.url}{'/models' if prefix else ''}/me/new"
    assert sorted(path.name for path in folder.iterdir()) == sorted(SHARDED)


def test_the_weights_of_before_are_replaced(server: HubServer, prefix: str, folder: Path) -> None:
    """transformers would load the file model.safetensors rather than the shards beside it."""
    sent(repository(f"{prefix}me/old", False), folder)
    kept = {name: BEFORE[name] for name in (".gitattributes", "README.md", "adapter_model.safetensors")}
    assert server.repositories["models/me/old"]["main"] == SHARDED | kept


def test_the_second_time_no_weights_are_sent(server: HubServer, prefix: str, folder: Path) -> None:
    to = repository(f"{prefix}me/new", False)
    sent(to, folder)
    server.asked.clear()
    sent(to, folder)
    assert not [request for request in server.asked if request.startswith("PUT")]


def test_a_private_model_is_not_written_to_a_public_repository(server: HubServer, prefix: str, folder: Path) -> None:
    with pytest.raises(UserError, match=r"me/old on .* is public, and `--private`"):
        sent(repository(f"{prefix}me/old", True), folder)
    assert server.repositories["models/me/old"]["main"] == BEFORE
    server.private.add("models/me/old")
    sent(repository(f"{prefix}me/old", True), folder)


@pytest.mark.parametrize("name", ["you/theirs", "you/new"])
def test_a_repository_of_somebody_else(name: str, server: HubServer, prefix: str, folder: Path) -> None:
    said = rf"does not let you write to {name}: (.|\n)*login` with a token"
    if prefix and name == "you/theirs":
        said = f"did not take {name}: "  # its client logs why each file is refused, and raises how many were
    with pytest.raises(UserError, match=said):
        sent(repository(prefix + name, False), folder)
    assert not server.repositories.get(f"models/{name}", {}).get("main")


@pytest.mark.parametrize("token", [None, "wrong"])
def test_nobody_is_logged_in(
    token: str | None, server: HubServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(variable, token) if token else monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=r"does not let you write to me/new: (.|\n)*login` with a token"):
        repository(f"{prefix}me/new", False).check()


def test_no_network(server: HubServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the clients' pauses between attempts
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot be reached at http://127"):
        repository(f"{prefix}me/new", False).check()


def test_a_storage_that_fails(server: HubServer, prefix: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.storage_is_down = True
    with pytest.raises(UserError, match="did not take me/new: "):
        sent(repository(f"{prefix}me/new", False), folder)
    server.storage_is_down = False
    sent(repository(f"{prefix}me/new", False), folder)
    assert server.repositories["models/me/new"]["main"] == SHARDED


@pytest.mark.parametrize("prefix", [""], indirect=True)
def test_a_token_that_may_only_read(server: HubServer, prefix: str) -> None:
    server.role = "read"
    with pytest.raises(UserError, match="the token may only read"):
        repository("me/new", False).check()


@pytest.mark.parametrize("prefix", [""], indirect=True)
def test_offline_is_said(server: HubServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        repository("me/new", False).check()
    assert server.asked == []


@pytest.mark.parametrize("name", ["new", "ms::new", "a/b/c", "me/a b", "./new", ""])
def test_no_id(name: str) -> None:
    with pytest.raises(UserError, match="is not the id of a repository"):
        repository(name, False)


def test_modelscope_without_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(UserError, match=r"pip install 'swift-mega\[modelscope\]'"):
        repository("ms::me/new", False)
