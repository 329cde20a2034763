"""Models and data sets by name, through the official clients, against a stand-in for both hubs on this machine."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from swift_mega.base import hub
from swift_mega.base.errors import UserError
from swift_mega.base.hub import resolve_model
from tests.support.hub_server import HubServer, commit, point_clients_at

INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
MAIN = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "model.safetensors.index.json": INDEX,
    "model-1.safetensors": b"first",
    "model-2.safetensors": b"second",
    "modeling_own.py": b"raise SystemExit('code of the repository was run')",
    "pytorch_model.bin": b"another format",
    "original/consolidated.safetensors": b"another format",
}
OLD = MAIN | {"config.json": b'{"model_type": "old"}'}
WANTED = sorted(name for name in MAIN if not name.endswith((".py", ".bin")) and "/" not in name)
ROWS = b'{"text": "one"}\n{"text": "two"}\n'


@pytest.fixture
def server() -> Iterator[HubServer]:
    repositories = {"models/org/tiny": {"main": MAIN, "v1": OLD}, "datasets/org/texts": {"main": {"train.jsonl": ROWS}}}
    with HubServer(repositories).running() as running:
        yield running


@pytest.fixture(params=["", "ms::"], ids=["huggingface", "modelscope"])
def prefix(request: pytest.FixtureRequest, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The prefix of ids on a hub, its client pointed at the stand-in and at an empty cache."""
    return point_clients_at(server, request.param, tmp_path, monkeypatch)


def names(folder: Path) -> list[str]:
    """Files of a model's folder; clients keep notes of their own in hidden ones."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/tiny") == Path("org/tiny")


def test_download_fetches_what_is_needed_and_no_code(server: HubServer, prefix: str) -> None:
    folder = resolve_model(f"{prefix}org/tiny")
    assert names(folder) == WANTED
    assert (folder / "model-2.safetensors").read_bytes() == b"second"


def test_code_is_fetched_where_it_is_asked_for(server: HubServer, prefix: str) -> None:
    resolve_model(f"{prefix}org/tiny")
    folder = resolve_model(f"{prefix}org/tiny", code=True)
    assert names(folder) == sorted([*WANTED, "modeling_own.py"])


def test_a_revision(server: HubServer, prefix: str) -> None:
    assert b"old" in (resolve_model(f"{prefix}org/tiny", "v1") / "config.json").read_bytes()
    assert b"llama" in (resolve_model(f"{prefix}org/tiny") / "config.json").read_bytes()


def test_a_commit(server: HubServer, prefix: str) -> None:
    assert b"old" in (resolve_model(f"{prefix}org/tiny", commit(OLD)) / "config.json").read_bytes()


def test_the_second_time_the_cache_is_enough(server: HubServer, prefix: str) -> None:
    folder = resolve_model(f"{prefix}org/tiny")
    server.asked.clear()
    assert resolve_model(f"{prefix}org/tiny") == folder
    assert server.asked == []


def test_a_server_that_is_down_does_not_matter_to_the_cache(server: HubServer, prefix: str) -> None:
    folder = resolve_model(f"{prefix}org/tiny")
    server.shutdown()
    server.server_close()
    assert resolve_model(f"{prefix}org/tiny") == folder


def test_a_shard_that_is_missing_in_the_cache_is_fetched(server: HubServer, prefix: str) -> None:
    folder = resolve_model(f"{prefix}org/tiny")
    (folder / "model-2.safetensors").unlink()
    assert names(resolve_model(f"{prefix}org/tiny")) == WANTED


def test_a_tokenizer_alone(server: HubServer, prefix: str) -> None:
    folder = resolve_model(f"{prefix}org/tiny", weights=False)
    assert not list(folder.glob("*.safetensors"))
    assert len(list(resolve_model(f"{prefix}org/tiny").glob("*.safetensors"))) == 2


def test_no_such_repository(server: HubServer, prefix: str) -> None:
    with pytest.raises(UserError, match=r"has no `org/tony` that you may read(.|\n)*Check the spelling"):
        resolve_model(f"{prefix}org/tony")


def test_no_such_revision(server: HubServer, prefix: str) -> None:
    with pytest.raises(UserError, match="no revision `v2`"):
        resolve_model(f"{prefix}org/tiny", "v2")


def test_no_network_and_nothing_in_the_cache(server: HubServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the clients' pauses between attempts
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"not in the local cache, and \w.* cannot be reached \(http://127"):
        resolve_model(f"{prefix}org/tiny")


@pytest.mark.parametrize(
    "name", ["./missing", "/no/where", "a/b/c", "word", "ms::word", "../a", "my models/a b", "a/b..c", "a/b-"]
)
def test_neither_folder_nor_id(name: str) -> None:
    with pytest.raises(UserError, match="is neither a folder here nor an id"):
        resolve_model(name)


def test_modelscope_without_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(UserError, match=r"pip install 'swift-mega\[modelscope\]'"):
        resolve_model("ms::org/tiny")


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        resolve_model("org/tiny")


def test_a_full_disk(server: HubServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = "modelscope_hub.HubApi.download_repo" if prefix else "huggingface_hub.snapshot_download"
    monkeypatch.setattr(hub._hub_of(f"{prefix}org/tiny")[0].__class__, "cached", lambda *_: None)
    monkeypatch.setattr(target, full)
    with pytest.raises(UserError, match="disk of the cache is full"):
        resolve_model(f"{prefix}org/tiny")


DATASET = """
import sys
from swift_mega.base.readers import BadRows, Corpus
from swift_mega.base.errors import UserError
corpus = Corpus([sys.argv[1]])
print([(row.text, row.where) for row in corpus.texts(BadRows())], corpus.bytes > 0, len(corpus.sources[0].sha256()))
try:
    Corpus([sys.argv[1] + "-not-there"])
except UserError as error:
    print(error.what)
"""


def test_a_data_set(server: HubServer, prefix: str, tmp_path: Path) -> None:
    """In a process of its own: `datasets` reads its settings when it is imported. Twice: the second time offline."""
    name = f"{prefix}org/texts"
    variables = {"HF_ENDPOINT": server.url, "HF_HOME": f"{tmp_path}/hf", "MODELSCOPE_ENDPOINT": server.url}
    variables |= {"MODELSCOPE_CACHE": f"{tmp_path}/ms", "MODELSCOPE_HOME": f"{tmp_path}/home"}
    expected = [("one", f"{name}:train:1"), ("two", f"{name}:train:2")]
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", DATASET, name], env=variables, capture_output=True, text=True)
        assert done.stdout.startswith(f"{expected} True 64\n"), done.stderr
        assert "texts-not-there" in done.stdout, done.stderr
        if server.socket.fileno() >= 0:
            server.shutdown()
            server.server_close()
