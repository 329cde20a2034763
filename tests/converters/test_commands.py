"""The options of `swift-mega convert`."""

import argparse
import contextlib
import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import carrying, checkpoint, engine
from converters.commands import add_arguments, parse_size, run
from converters.stores.safetensors import open_folder
from swift_mega.base import lock
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.support import cli
from tests.support.hub_server import HubServer, log_in, point_clients_at

from .reshape import load


def call(*words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(word) for word in words]))


def test_there_and_back(hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    call(hf_model("qwen2"), tmp_path / "megatron", "--to", "megatron", "--vocab-divisible-by", "4", "--target-tp", "3")
    call(tmp_path / "megatron", tmp_path / "hf", "--dtype", "bf16", "--max-shard-size", "40KB")
    exported = open_folder(tmp_path / "hf")
    assert {spec.dtype for spec in exported.tensors.values()} == {"bfloat16"}
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    assert checkpoint.read_config(tmp_path / "hf")["dtype"] == "bfloat16"


@pytest.mark.parametrize("option", ["--vocab-divisible-by", "--target-tp"])
def test_padding_must_be_positive(option: str, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{option} is 0"):
        call(hf_model("llama"), tmp_path / "x", option, "0")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stand-in for Hugging Face on this machine, and the token of somebody who is called `me`."""
    with HubServer({}).running() as server:
        server.tokens = {"secret": "me"}
        point_clients_at(server, "", tmp_path, monkeypatch)
        log_in("secret", monkeypatch)
        yield server


@pytest.fixture(scope="module")
def megatron(hf_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "megatron"
    call(hf_model("qwen2"), folder)
    return folder


def test_pushed(megatron: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(megatron, tmp_path / "hf", "--push", "me/model", "--private")
    files = [path for path in (tmp_path / "hf").rglob("*") if path.is_file()]
    written = {str(path.relative_to(tmp_path / "hf")): path.read_bytes() for path in files}
    assert hub.repositories["models/me/model"]["main"] == written
    assert hub.private == {"models/me/model"}
    assert f"uploaded {tmp_path / 'hf'} to {hub.url}/me/model" in capsys.readouterr().out


def test_a_dry_run_and_another_machine_do_not_push(megatron: Path, hub: HubServer, tmp_path: Path) -> None:
    call(megatron, tmp_path / "hf", "--push", "me/model", "--dry-run")
    assert hub.asked == ["GET /api/whoami-v2"]
    call(megatron, tmp_path / "hf", "--push", "me/model", "--nodes", "2", "--node-rank", "1", "--dry-run")
    assert hub.asked == ["GET /api/whoami-v2"]
    assert hub.repositories == {}


def test_an_upload_that_fails_is_repeated_alone(megatron: Path, hub: HubServer, tmp_path: Path) -> None:
    target, hub.storage_is_down = tmp_path / "my hf", True
    with pytest.raises(UserError, match=r"my hf is complete, only the upload is not") as caught:
        call(megatron, target, "--push", "me/model")
    hub.storage_is_down = False
    command = shlex.split(caught.value.fix.partition("`")[2].rstrip("`."))
    assert command[:3] == ["swift-mega", "convert", "push"]
    assert main(command[1:]) == 0
    assert hub.repositories["models/me/model"]["main"]["config.json"] == (target / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--push", "me/model", "--to", "legacy"], "--push is of a Hugging Face folder, and --to is legacy"),
        (["--push", "model"], "`model` is not the id of a repository"),
        (["--private"], "--private is of --push"),
    ],
)
def test_nothing_is_converted_that_cannot_be_pushed(
    words: list[str], said: str, megatron: Path, hub: HubServer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        call(megatron, tmp_path / "target", *words)
    hub.tokens = {}
    with pytest.raises(UserError, match="does not let you write to me/model: 401"):
        call(megatron, tmp_path / "target", "--push", "me/model")
    assert list(tmp_path.iterdir()) == []


def test_a_hugging_face_folder_is_pushed_as_it_is(
    hf_model: Callable[[str], Path], hub: HubServer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="`swift-mega convert push` uploads a folder as it is"):
        call(hf_model("llama"), tmp_path / "target", "--push", "me/model")
    assert main(["convert", "push", str(hf_model("llama")), "me/model"]) == 0
    assert "model.safetensors" in hub.repositories["models/me/model"]["main"]


def test_an_adapter_is_pushed(hub: HubServer, tmp_path: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert main(["convert", "push", str(tmp_path), "me/adapter"]) == 0
    assert hub.repositories["models/me/adapter"]["main"] == files


def test_a_folder_that_is_no_model_is_not_pushed(
    megatron: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "push", str(megatron), "me/model"]) == 2
    assert "is no complete model or adapter in Hugging Face format" in capsys.readouterr().err
    assert hub.asked == []


def test_sizes() -> None:
    assert [parse_size(text) for text in ("5GB", "500MB", "1.5kb", "123", "7 B")] == [
        5 * 10**9,
        5 * 10**8,
        1500,
        123,
        7,
    ]
    for text in ("", "GB", "5XB", "-1GB", "0", "5GBGB", "1.2.3MB"):
        with pytest.raises(UserError, match="--max-shard-size"):
            parse_size(text)


def test_two_conversions_into_one_target(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """The second is refused while the first one is there, and finds the target taken when it has ended."""
    source, target = str(tiny_model("llama")), str(tmp_path / "out")
    staging = tmp_path / ".out.unfinished"
    staging.mkdir()
    with _held(staging) as holder:
        refused = cli.run(["convert", source, target])
    assert refused.code == 2 and f"in use by process {holder.pid}" in refused.err
    assert main(["convert", source, target]) == 0
    assert not staging.exists() and not list((tmp_path / "out").glob(".journal*"))


@contextlib.contextmanager
def _held(staging: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process is machine 0."""
    hold = (
        "import sys, time\nfrom pathlib import Path\nfrom swift_mega.base.lock import alone_in\n"
        f"with alone_in(Path({str(staging)!r}), 'DST', name='.journal.lock.0'):\n"
        "    print('held', flush=True)\n    sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", hold], **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        yield holder
        holder.stdin.close()


def test_machines_that_differ_say_so(
    hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for what an earlier attempt has left, which machine 0 is about to remove, nor when machine 0 is gone."""
    state, one = tmp_path / ".out.unfinished" / ".journal.plan", ["--nodes", "2", "--node-rank", "1"]
    state.parent.mkdir()
    monkeypatch.setattr(carrying, "WAIT_S", 0.3)
    state.write_text("another")
    os.utime(state, (1, 1))
    with _held(state.parent):
        with pytest.raises(UserError, match="waited"):
            call(hf_model("llama"), tmp_path / "out", *one)
        state.touch()
        with pytest.raises(UserError, match="machine 0 does another conversion: its options, or a file of SRC"):
            call(hf_model("llama"), tmp_path / "out", *one)
    with pytest.raises(UserError, match="waited"):
        call(hf_model("llama"), tmp_path / "out", *one)
    assert state.read_text() == "another"


def test_who_waited_finds_the_target_taken(
    hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder gets its final name while another conversion waits for it."""
    from converters import carrying as module

    waited = lock.alone_in

    def finished_meanwhile(folder: Path, option: str, **options: Any) -> None:
        monkeypatch.setattr(module, "alone_in", waited)
        folder.rename(tmp_path / "out")
        (tmp_path / "out" / "config.json").touch()
        raise FileNotFoundError(folder)

    monkeypatch.setattr(module, "alone_in", finished_meanwhile)
    with pytest.raises(UserError, match="out is not empty"):
        call(hf_model("llama"), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("done", [True, False])
def test_a_machine_with_nothing_to_do_ends(done: bool, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Machine 0 has done it all, or else somebody has removed the folder."""
    with _waiting(hf_model("llama"), tmp_path / "out") as outcome:
        if done:
            call(hf_model("llama"), tmp_path / "made")
            (tmp_path / "made").rename(tmp_path / "out")
        (tmp_path / ".out.unfinished").rename(tmp_path / "gone")
    found = str(outcome.get())
    assert found == "None" if done else f"{tmp_path}/.out.unfinished was removed" in found


@contextlib.contextmanager
def _waiting(source: Path, target: Path, *options: str) -> Iterator["queue.Queue[UserError | None]"]:
    """Machine 1 waits for machine 0 within, and has ended after it; how is in the queue."""
    outcome: queue.Queue[UserError | None] = queue.Queue()

    def work() -> None:
        try:
            call(source, target, "--nodes", "2", "--node-rank", "1", *options)
        except UserError as error:
            outcome.put(error)
        else:
            outcome.put(None)

    one = threading.Thread(target=work, daemon=True)
    one.start()
    while not list(target.parent.glob(f".{target.name}.unfinished/.journal.lock.1")):
        time.sleep(0.01)
    yield outcome
    one.join(30)
    assert not one.is_alive()


def test_a_finished_target_is_overwritten_together(
    hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that comes first waits, since what it finds is not yet what is asked for."""
    monkeypatch.setattr(engine, "PART_BYTES", 1 << 14)
    monkeypatch.setattr(carrying, "WAIT_S", 30)
    call(hf_model("qwen2"), tmp_path / "out")
    (tmp_path / "out" / "mine.txt").touch()
    with _waiting(hf_model("qwen2"), tmp_path / "out", "--overwrite") as outcome:
        call(hf_model("qwen2"), tmp_path / "out", "--nodes", "2", "--node-rank", "0", "--overwrite")
    assert outcome.get() is None and not (tmp_path / "out" / "mine.txt").exists()


def test_a_machine_that_fails_leaves_the_others_their_folder(
    hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["--nodes", "2", "--node-rank", "0"]
    with monkeypatch.context() as patch, pytest.raises(UserError, match="is full"):
        patch.setattr(os, "copy_file_range", _no_space)
        call(hf_model("llama"), tmp_path / "out", *first)
    assert (tmp_path / ".out.unfinished" / ".journal.plan").is_file()
    call(hf_model("llama"), tmp_path / "out", *first)
    assert "joining the other machines" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_machine_0_does_not_wait_in_a_folder_that_is_gone(
    hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is removed while machine 0 copies, or when it has copied its share."""
    monkeypatch.setattr(engine, "PART_BYTES", 1 << 12)
    staging, run = tmp_path / ".out.unfinished", engine.run

    def before(*arguments: Any) -> None:
        shutil.rmtree(staging)
        run(*arguments)

    def after(*arguments: Any) -> None:
        run(*arguments)
        shutil.rmtree(staging)

    for removing in (before, after):
        monkeypatch.setattr(engine, "run", removing)
        with pytest.raises(UserError, match=r"\.out\.unfinished (was removed|cannot be written: No such file)"):
            call(hf_model("llama"), tmp_path / "out", "--nodes", "2", "--node-rank", "0")
    assert list(tmp_path.iterdir()) == []


def test_machines_say_which_they_are(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tiny_model("llama")), str(tmp_path / "out"), "--nodes", "2"]) == 2
    assert "its own --node-rank, 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-pp", "2"], "--target-pp is of --to legacy, and this writes Megatron"),
        (["--target-last-stage-layers", "2"], "--target-last-stage-layers is of --to legacy"),
        (["--layer-spec", "local"], "--layer-spec is of --to legacy"),
        (["--to", "legacy", "--keys", "stacked"], "--keys is of --to megatron"),
        (["--max-shard-size", "1GB"], "--max-shard-size is of --to hf"),
        (["--lora", "fused"], "which is Hugging Face.\n  → It is of SRC in: PEFT adapter"),
        (["--weights-only"], "--weights-only means nothing for"),
    ],
)
def test_options_that_mean_nothing_here(
    options: list[str],
    message: str,
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["convert", str(tiny_model("llama")), str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_machine_that_comes_late(
    hf_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others have finished: it is told so, if the target is what they were to make, and else what is wrong."""
    late = ["--nodes", "2", "--node-rank", "1"]
    for source, target in ((hf_model("qwen2"), tmp_path / "megatron"), (tmp_path / "megatron", tmp_path / "hf")):
        call(source, target)
        capsys.readouterr()
        for overwrite in ([], ["--overwrite"]):
            call(source, target, *late, *overwrite)
            assert f"{target} is this conversion already, and complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not empty, and what it holds is not what this conversion writes"):
        call(hf_model("qwen2"), tmp_path / "megatron", *late, "--dtype", "bf16")
    data = next((tmp_path / "megatron").rglob("*.distcp"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match="is not empty, and"):
        call(hf_model("qwen2"), tmp_path / "megatron", *late)
    assert not list(tmp_path.glob(".*")) and data.read_bytes() == content


def test_a_change_of_dtype_within_hugging_face(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny_model("llama")
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "hf", "--dtype", "bf16"]) == 0
    before, after = load(source), load(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
