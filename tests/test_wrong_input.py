"""What a user can get wrong, as the user sees it: one message with cause and way out, exit code 2, nothing in the way.

Most cases go through `swift-mega`'s own entry function: what can be known before a process is started
here, what only the ranks find out in one rank here and in two of the session's workers. Some of each
kind start the real processes.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swift_mega.base.output import HEADER
from swift_mega.data import indexed
from tests.support import cli, newcomer
from tests.support.permissions import permissions_count
from tests.support.place import Place

Distributed = Callable[..., list[cli.Ended]]


@pytest.fixture
def other_tokenizer(good: tuple[Path, Path], tmp_path: Path) -> Path:
    """A tokenizer with as many tokens as the model's, two of them exchanged."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(good[0] / file, folder / file)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(bytes)`: a real file system of that size."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs takes root and a kernel that lets it")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        # Lazily: a run that failed in this process still holds its metrics open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


Spoil = Callable[[Place], Any]


def missing_shard(place: Place) -> None:
    """The model in several files, one of them gone."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(place.model)
    (place.model / "model.safetensors").unlink()
    model.save_pretrained(place.model, max_shard_size="50KB")
    min(place.model.glob("model-00002-of-*.safetensors")).unlink()


def missing_scales(place: Place) -> None:
    """Weights in fp8 and nothing else."""
    import torch
    from safetensors.torch import load_file, save_file

    place.change_config(quantization_config={"quant_method": "fp8"})
    tensors = load_file(place.model / "model.safetensors")
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, place.model / "model.safetensors"
    )


def empty_data(place: Place) -> None:
    """An index without documents."""
    (place.folder / "data.json").unlink()
    indexed.bin_path(place.data).write_bytes(b"")
    parts = indexed.index_parts(np.zeros(0, np.int32), np.dtype(np.uint16))
    indexed.idx_path(place.data).write_bytes(b"".join(parts))


def another_run(place: Place) -> None:
    """The output folder as a run with another seed leaves it."""
    place.output.mkdir()
    lines = [HEADER, "output: there", "train: {steps: 2, seed: 7}", f"model: {{path: {place.model}}}"]
    lines.append(f"data: {{train: [{place.data}], sequence_length: 16}}")
    (place.output / "run.yaml").write_text("\n".join(lines))


def hand_written(place: Place) -> None:
    """A `run.yaml` that the user wrote lies in the output folder."""
    place.output.mkdir()
    (place.output / "run.yaml").write_text("output: .\ntrain: {steps: 2}\n")


def other_files(place: Place) -> None:
    """The output folder holds something else."""
    place.output.mkdir()
    (place.output / "thesis.tex").touch()


def nothing(place: Place) -> None:
    """The options alone are wrong."""


EARLY: dict[str, tuple[Spoil, list[str], str, str]] = {
    "tensor parallel": (
        nothing,
        ["--tensor-model-parallel-size", "3"],
        "4 attention heads / 3 leaves 1",
        "Sizes that work: 1, 2, 4",
    ),
    "pipeline": (
        nothing,
        ["--pipeline-model-parallel-size", "3"],
        "3 does not divide 4 layers: 1 left over",
        "Sizes that work: 1, 2, 4",
    ),
    "world size": (
        nothing,
        ["--tensor-model-parallel-size", "4"],
        "cannot be split into TP 4 × PP 1 = 4 ranks per model copy",
        "Start 4 processes",
    ),
    "batch": (
        nothing,
        ["--micro-batch-size", "4", "--global-batch-size", "6"],
        "global_batch_size 6 is no multiple of micro_batch_size 4",
        "Nearest that work:",
    ),
    "sequence length": (
        nothing,
        ["--sequence-length", "65"],
        "sequence_length 65 is outside the model's positions: max_position_embeddings 64",
        "Choose 1 to 64",
    ),
    "architecture": (
        lambda place: place.change_config(architectures=["MambaForCausalLM"], model_type="mamba"),
        [],
        "MambaForCausalLM",
        "LlamaForCausalLM, ",
    ),
    "damaged config.json": (
        lambda place: (place.model / "config.json").write_text("{"),
        [],
        "config.json is not valid JSON",
        "again",
    ),
    "truncated shard": (
        lambda place: os.truncate(place.model / "model.safetensors", 5000),
        [],
        "model.safetensors is truncated or damaged: it is 5,000 bytes long",
        "Copy or download this file again",
    ),
    "missing shard": (missing_shard, [], "lists model-00002-of-", "Copy or download it; it holds"),
    "no weights": (
        lambda place: (place.model / "model.safetensors").unlink(),
        [],
        "has neither model.safetensors nor model.safetensors.index.json",
        "Give a Hugging Face folder with safetensors weights",
    ),
    "quantised in an unknown way": (
        lambda place: place.change_config(quantization_config={"quant_method": "awq"}),
        [],
        "`quantization_config` says quant_method 'awq', which cannot be read",
        "fp8 (",
    ),
    "scales that are not there": (
        missing_scales,
        [],
        "float8_e4m3fn [",
        "numbers without their scales mean nothing",
    ),
    "no data": (
        lambda place: place.data.with_suffix(".bin").unlink(),
        [],
        "data.bin does not exist",
        "swift-mega data build",
    ),
    "empty data": (empty_data, [], "data is empty: 0 documents, 0 tokens", "Leave it out"),
    "truncated data": (
        lambda place: os.truncate(place.data.with_suffix(".bin"), 100),
        [],
        "data.bin has 100 bytes where",
        "copy it again",
    ),
    "token out of range by the manifest": (
        lambda place: place.change_json(place.folder / "data.json", largest_token=300),
        [],
        "data holds token 300, the model's vocabulary ends at 299",
        "the model's own tokenizer",
    ),
    "another run": (
        another_run,
        [],
        "holds another run (train.seed: 7 there, 1234 here)",
        "Choose another folder with `output`",
    ),
    "another run, resume never": (another_run, ["--resume", "never"], "already holds a run", "--resume auto"),
    "other files": (
        other_files,
        [],
        "out is not empty and holds no run",
        "Choose another folder with `output`",
    ),
    "output is a file": (lambda place: place.output.touch(), [], "out is a file", "Choose a folder"),
    "no steps": (nothing, ["--steps", "0"], "`train.steps` is 0", "at least 1"),
    "a decay of 1": (nothing, ["--adam-beta2", "1"], "`optimizer.adam_beta2` is 1", "at least 0 and below 1"),
    "a dropout above 1": (nothing, ["--hidden-dropout", "1.5"], "`model.hidden_dropout` is 1.5", "below 1"),
    "log interval 0": (nothing, ["--log.interval-steps", "0"], "`log.interval_steps` is 0", "at least 1"),
    "not a number": (nothing, ["--lr", "nan"], "`optimizer.lr` is nan", "at least 0"),
    "no model": (
        lambda place: shutil.rmtree(place.model),
        [],
        "is neither a folder here nor an id",
        "Give the path of a folder",
    ),
    "no checkpoint to resume": (nothing, ["--resume", "nowhere"], "nowhere is no Megatron checkpoint", "root folder"),
    "too little data": (
        nothing,
        ["--sequence-length", "64", "--split", "1,999,0"],
        "one sample takes sequence_length + 1 = 65",
        "Give more text",
    ),
    "split of words": (nothing, ["--split", "a,b,c"], "`data.split` 'a,b,c' is not up to three shares", "`969,30,1`"),
    "split of four": (nothing, ["--split", "1,1,1,1"], "is not up to three shares", "`969,30,1`"),
    "split below 0": (nothing, ["--split=-1,2,3"], "is not up to three shares", "`969,30,1`"),
    "split of nothing": (nothing, ["--split", "0,0,0"], "leaves nothing to train on", "above 0"),
    "learning rate that rises": (nothing, ["--lr", "1", "--min-lr", "2"], "fall from 1.0 to 2.0", "min_lr ≤"),
    "long warm-up": (nothing, ["--lr-warmup-steps", "2"], "Warm-up takes 2 steps", "below 2"),
    "recomputed layers": (
        nothing,
        ["--recompute-granularity", "full", "--recompute-num-layers", "9"],
        "`train.recompute_num_layers` is 9, and a rank has 4 consecutive layers",
        "Choose 1 to 4",
    ),
    "users own run.yaml": (
        hand_written,
        [],
        "out/run.yaml is not a record of a run, and would be written over",
        "give that file another name",
    ),
    "wrong type": (nothing, ["--steps", "many"], "`--train.steps` is 'many'", "a whole number"),
    "misspelt option": (nothing, ["--optimizer.lrr", "1"], "no option `--optimizer.lrr`", "`--optimizer.lr`"),
    "misspelt choice": (nothing, ["--precision", "fp23"], "`--model.precision` is 'fp23'", "auto, fp32, bf16"),
}
"""Known before a process is started: spoiled how, further options, cause, way out."""


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize("name", EARLY)
def test_told_before_a_process_is_started(place: Place, name: str, nproc: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, options, cause, way_out = EARLY[name]
    spoil(place)
    before = tree(place.folder)
    monkeypatch.setattr("launch.local.run", lambda *args: pytest.fail("processes were started"))
    monkeypatch.setattr("swift_mega.cli.pretrain._train", lambda *args: pytest.fail("training was started"))
    ended = cli.in_process(place.argv(*options, "--nproc", str(nproc)))
    cli.assert_explained(ended, cause, way_out)
    assert tree(place.folder) == before


BAD_YAML: dict[str, tuple[str | bytes, str, str]] = {
    "no YAML": ("train: [1,", "is not valid YAML", "Correct it"),
    "no text": (b"\x80\x81", "is not text", "YAML"),
    "a list": ("[1, 2]", "not `name: value` pairs", "train:"),
    "misspelt section": ("trian: {steps: 1}", "there is no option `trian`", "did you mean `train`?"),
    "misspelt name": ("train: {step: 1}", "there is no option `train.step`", "did you mean `train.steps`?"),
    "section is no section": ("train: 5", "`train` must hold `name: value` pairs, got 5", "--help"),
    "wrong type": ("train: {steps: [1]}", "run.yaml: `train.steps` is [1]", "a whole number"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_bad_yaml(tmp_path: Path, name: str) -> None:
    content, cause, way_out = BAD_YAML[name]
    file = tmp_path / "run.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = cli.in_process(["pretrain", str(file), "--output", "x", "--model.path", "x"])
    cli.assert_explained(ended, cause, way_out)
    assert not Path("x").exists()


def out_of_range(place: Place) -> None:
    """Another tool's data, whose tokens go up to 299 and then, far behind, beyond."""
    (place.folder / "data.json").unlink()
    tokens = np.fromfile(place.data.with_suffix(".bin"), np.uint16)
    tokens[20:] = 300
    tokens.tofile(place.data.with_suffix(".bin"))


def nan_weight(place: Place) -> None:
    """A weight of the last layer's norm is NaN."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(place.model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].copy()
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, place.model / "model.safetensors", {"format": "pt"})


def weight_left_out(place: Place) -> None:
    """A folder that is whole as safetensors, but lacks a tensor of the architecture."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(place.model / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, place.model / "model.safetensors", {"format": "pt"})


def under_a_file(place: Place) -> None:
    """The output would lie below a file."""
    place.output.parent.joinpath("file").touch()
    place.output = place.folder / "file" / "out"


LATE: dict[str, tuple[Spoil, list[str], str, str]] = {
    "token out of range": (
        out_of_range,
        [],
        "holds token 300, the model's vocabulary ends at 299",
        "the model's own tokenizer",
    ),
    "weight left out": (
        weight_left_out,
        [],
        "missing: `model.layers.2.mlp.up_proj.weight`",
        "Are config.json and weights of the same model and complete?",
    ),
    "NaN in a weight": (nan_weight, [], "The gradient norm is nan at step 1; loss nan", "Lower optimizer.lr"),
    "NaN without clipping": (nan_weight, ["--clip-grad", "0"], "The gradient norm is nan at step 1", "optimizer.lr"),
    "no permission": (under_a_file, [], "out cannot be written: Not a directory", "choose another `output`"),
}
"""Known to a rank at its start or later."""


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize("name", LATE)
def test_told_by_the_ranks(place: Place, name: str, nproc: int, distributed: Distributed) -> None:
    spoil, options, cause, way_out = LATE[name]
    spoil(place)
    argv = place.argv(*options)
    ended = cli.in_process(argv) if nproc == 1 else cli.on_ranks(distributed, argv)
    cli.assert_explained(ended, cause, way_out)
    assert not any(place.folder.rglob("*.unfinished")) and not any(place.folder.rglob("iter_*"))


def test_a_model_of_a_hub_is_checked_when_it_is_there(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swift_mega.methods.run.resolve_model", lambda *args, **kwargs: place.model)
    _, options, cause, way_out = EARLY["sequence length"]
    cli.assert_explained(cli.in_process(place.argv(*options, "--model.path", "org/tiny")), cause, way_out)


def test_data_of_another_tokenizer(place: Place, other_tokenizer: Path, distributed: Distributed) -> None:
    argv = place.argv("--model.tokenizer", str(other_tokenizer))
    for ended in (cli.in_process(argv), cli.on_ranks(distributed, argv)):
        cli.assert_explained(ended, "data was built with the tokenizer", "Build it again with `--tokenizer ")
    # What the failed starts left is not in the way of one with other data.
    for file in place.folder.glob("data.*"):
        file.rename(file.with_name("rebuilt" + file.suffix))
    assert cli.in_process(place.argv("--data.train", str(place.folder / "rebuilt"))).code == 0


def test_a_checkpoint_of_another_model(place: Place, distributed: Distributed) -> None:
    assert cli.in_process(place.argv("--steps", "1")).code == 0
    place.change_config(num_hidden_layers=2)
    elsewhere = str(place.folder / "second")
    argv = place.argv("--weights", "random", "--output", elsewhere, "--resume", str(place.output / "checkpoints"))
    for ended in (cli.in_process(argv), cli.on_ranks(distributed, argv)):
        cause = "is a checkpoint of another model (num_layers: 4 there, 2 here)"
        cli.assert_explained(ended, cause, "Choose the model it was made from")


def truncated(file: Path) -> None:
    os.truncate(file, 1000)


def zeros(file: Path) -> None:
    """As a power cut may leave it: as long as it was."""
    file.write_bytes(bytes(file.stat().st_size))


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "data cut off": ("*.distcp", truncated, ".distcp is damaged or not trustworthy: it is 1,000 bytes long"),
    "data gone": ("*.distcp", Path.unlink, ".distcp is damaged or not trustworthy: it is not there"),
    "data zeroed": ("*.distcp", zeros, "iter_0000002 is damaged: not all of its tensors can be read"),
    "metadata cut off": (".metadata", truncated, ".metadata is damaged"),
    "common cut off": ("common.pt", truncated, "common.pt is damaged"),
    "common zeroed": ("common.pt", zeros, "common.pt is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint(trained: Place, distributed: Distributed, name: str) -> None:
    pattern, damage, cause = DAMAGE[name]
    newest, before = (trained.output / "checkpoints" / f"iter_{step:07d}" for step in (2, 1))
    damage(max(newest.glob(pattern)))
    argv = trained.argv("--steps", "3")
    cli.assert_explained(cli.in_process(argv), cause, f"--resume {before}")
    if name == "data zeroed":  # found by the ranks together, all else by rank 0 alone
        cli.assert_explained(cli.on_ranks(distributed, argv), cause, f"--resume {before}")


def test_the_way_back_from_a_damaged_checkpoint(trained: Place) -> None:
    root = trained.output / "checkpoints"
    truncated(root / "iter_0000002" / ".metadata")
    argv = trained.argv("--steps", "4", "--keep-last", "1", "--save-interval-steps", "1")
    assert cli.in_process([*argv, "--stop-after-steps", "1", "--resume", str(root / "iter_0000001")]).code == 0
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "2"
    assert cli.in_process(argv).code == 0
    assert [folder.name for folder in root.glob("iter_*")] == ["iter_0000004"]


@pytest.mark.parametrize("name", ["data zeroed", "metadata cut off", "common cut off"])
def test_weights_of_a_damaged_checkpoint(trained: Place, name: str) -> None:
    """Neither a start from them nor their conversion ends in a traceback."""
    pattern, damage, cause = DAMAGE[name]
    root = trained.output / "checkpoints"
    damage(max((root / "iter_0000002").glob(pattern)))
    argv = trained.argv("--model.path", str(root), "--output", str(trained.folder / "other"))
    cli.assert_explained(cli.in_process(argv), cause, "again")
    ended = cli.in_process(["convert", str(root), str(trained.folder / "hf")])
    cli.assert_explained(ended, str(root / "iter_0000002"), "again")
    assert not (trained.folder / "hf").exists()


UNREADABLE = [
    "data.idx",
    "data.bin",
    "data.json",
    "model/config.json",
    "model/model.safetensors",
    "out",
    "out/run.yaml",
]


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_of_a_run_that_may_not_be_read(place: Place, two_steps: Place, name: str) -> None:
    if name.startswith("out"):
        place.output = shutil.copytree(two_steps.output, place.folder / "out")
    mode = (place.folder / name).stat().st_mode
    (place.folder / name).chmod(0)
    with permissions_count():
        ended = cli.in_process(place.argv("--dry-run"))
    (place.folder / name).chmod(mode)
    cli.assert_explained(ended, "Permission denied", "")
    assert str(place.folder / name) in ended.err


def test_a_checkpoint_that_may_not_be_read(trained: Place) -> None:
    folder = trained.output / "checkpoints" / "iter_0000002"
    for file in folder.glob("*.distcp"):
        file.chmod(0)
    with permissions_count():
        ended = cli.in_process(trained.argv("--steps", "3"))
    cli.assert_explained(ended, f"{folder} cannot be read: Permission denied", "Change its permissions")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt", "a.jsonl.gz"])
def test_a_text_that_may_not_be_read(place: Place, name: str) -> None:
    texts = place.folder / name
    texts.write_bytes(b"")
    texts.chmod(0)
    with permissions_count():
        ended = cli.in_process(
            ["data", "build", str(texts), "--tokenizer", str(place.model), "--output", str(place.folder / "new")]
        )
    cli.assert_explained(ended, f"{texts} cannot be read: Permission denied", "Change its permissions")


def test_converted_weights_are_nothing_to_resume(place: Place, tmp_path: Path) -> None:
    root = tmp_path / "converted"
    assert cli.in_process(["convert", str(place.model), str(root)]).code == 0
    ended = cli.in_process(place.argv("--resume", str(root)))
    cli.assert_explained(ended, "holds weights but no optimizer state", f"model.path={root}")


def test_an_exploding_run_keeps_its_last_good_checkpoint(place: Place) -> None:
    assert cli.in_process(place.argv("--steps", "4", "--stop-after-steps", "2")).code == 0
    ended = cli.in_process(place.argv("--steps", "4", "--lr", "1e30"))
    cli.assert_explained(ended, "The gradient norm is nan at step 4", "Lower optimizer.lr")
    assert [folder.name for folder in sorted((place.output / "checkpoints").glob("iter_*"))] == ["iter_0000002"]
    assert cli.in_process(place.argv("--steps", "4")).code == 0


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.parametrize(("size", "cause"), [(1_000_000, "are needed"), (1_100_000, "is full")])
def test_a_full_disk_during_a_save(
    place: Place, small_disk: Callable[[int], Path], distributed: Distributed, nproc: int, size: int, cause: str
) -> None:
    """Too small for what is known to come, and too small for what megatron-core adds to it."""
    place.output = small_disk(size) / "out"
    argv = place.argv("--data.cache-dir", str(place.folder / "cache"))
    ended = cli.in_process(argv) if nproc == 1 else cli.on_ranks(distributed, argv)
    cli.assert_explained(ended, cause, "the same command then continues")
    assert list((place.output / "checkpoints").iterdir()) == []


def test_a_disk_without_room_for_a_checkpoint_is_known_before_the_first_step(
    place: Place, small_disk: Callable[[int], Path]
) -> None:
    place.output = small_disk(500_000) / "out"
    ended = cli.in_process(place.argv("--data.cache-dir", str(place.folder / "cache")))
    cli.assert_explained(ended, "are needed", "the same command then continues")
    assert not (place.output / "metrics.jsonl").exists()


def test_a_full_disk_during_an_export(place: Place, small_disk: Callable[[int], Path]) -> None:
    """The checkpoint before it stays, and the export is made up for when there is room."""
    argv = place.argv("--data.cache-dir", str(place.folder / "cache"), "--steps", "1")
    assert cli.in_process(argv).code == 0
    pages = sum(-(-file.stat().st_size // 4096) for file in place.output.rglob("*") if file.is_file())
    disk = small_disk(4096 * pages + 100_000)
    place.output = disk / "out"
    argv += ["--output", str(place.output), "--export-hf", "true"]
    cli.assert_explained(cli.in_process(argv), "out/hf is full", "the same command then continues")
    assert (place.output / "checkpoints" / "iter_0000001").is_dir()
    assert list((place.output / "hf").iterdir()) == []
    subprocess.run(["mount", "-o", "remount,size=10M", str(disk)], check=True)
    assert cli.in_process(argv).code == 0
    assert [folder.name for folder in (place.output / "hf").iterdir()] == ["iter_0000001"]


def test_a_full_disk_during_a_conversion(place: Place, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(100_000)
    ended = cli.in_process(["convert", str(place.model), str(disk / "megatron")])
    cli.assert_explained(ended, "is full", "Free space there or choose another target")
    assert list(disk.iterdir()) == []


def test_a_full_disk_during_a_build(place: Place, small_disk: Callable[[int], Path]) -> None:
    texts, disk = newcomer.texts(place.folder / "texts", 1000), small_disk(16_384)
    argv = ["data", "build", str(texts), "--tokenizer", str(place.model), "--output", str(disk / "data")]
    cli.assert_explained(cli.in_process(argv), "is full", "Free space there or choose another `--output`")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("command", ["convert", "data build"])
def test_a_target_that_cannot_be_written(place: Place, command: str) -> None:
    (place.folder / "file").touch()
    target = place.folder / "file" / "below"
    argv = ["convert", str(place.model), str(target)]
    if command == "data build":
        texts = newcomer.texts(place.folder / "texts", 1)
        argv = ["data", "build", str(texts), "--tokenizer", str(place.model), "--output", str(target)]
    cli.assert_explained(cli.in_process(argv), "cannot be written: ", "choose another ")


PROCESSES: dict[str, tuple[Spoil, list[str], str, str]] = {
    "layout": EARLY["tensor parallel"],
    "truncated shard": EARLY["truncated shard"],
    "NaN in a weight": LATE["NaN in a weight"],
}
"""Once more in processes of their own."""


@pytest.mark.parametrize("name", PROCESSES)
def test_in_processes_that_we_start(place: Place, name: str) -> None:
    spoil, options, cause, way_out = PROCESSES[name]
    spoil(place)
    cli.assert_explained(cli.run(place.argv(*options, "--nproc", "2")), cause, way_out)


@pytest.mark.parametrize("name", PROCESSES)
def test_in_processes_that_torchrun_starts(place: Place, name: str) -> None:
    spoil, options, cause, way_out = PROCESSES[name]
    spoil(place)
    ended = cli.run(place.argv(*options), cli.TORCHRUN)
    # torchrun adds a traceback of its own behind our message, in which it tells what the first rank returned.
    said, _, report = ended.err.partition("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")
    said = said[: said.rfind("Traceback")]
    cli.assert_one_message(ended._replace(err=said), cause, way_out)
    assert ended.code == 1
    assert "exitcode  : 2" in report


def tree(folder: Path) -> list[tuple[str, float]]:
    """Everything below a folder, with the time of its last change."""
    return sorted((str(path), path.stat().st_mtime) for path in folder.rglob("*"))
