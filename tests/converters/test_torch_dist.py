"""The torch_dist store: plain megatron-core loads ours, we read megatron-core's, and nothing is trusted."""

import contextlib
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from converters import engine
from converters.space import Box
from converters.stores import torch_dist, torch_zip
from converters.stores.extra_state import extra_states
from converters.stores.torch_dist import check_files, open_checkpoint
from converters.tensors import TensorSpec
from converters.torch_tensors import to_carrier, to_torch
from swift_mega.base.errors import UserError
from tests.support.space import assembled

KEY = "decoder.layers.mlp.linear_fc2.weight"
SPECS = {
    KEY: TensorSpec((2, 4, 6), "bfloat16"),
    "decoder.final_layernorm.weight": TensorSpec((4,), "float32"),
}


def write(folder: Path, rows: int = 4) -> dict[str, torch.Tensor]:
    """A checkpoint of SPECS in chunks of `rows` rows, and what is in it."""
    torch.manual_seed(0)
    tensors = {key: torch.randn(spec.shape).to(getattr(torch, spec.dtype)) for key, spec in SPECS.items()}
    chunks: list[tuple[str, Box, Box]] = [
        (KEY, (layer, row, 0), (1, rows, 6)) for layer in range(2) for row in range(0, 4, rows)
    ]
    chunks.append(("decoder.final_layernorm.weight", (0,), (4,)))
    target = torch_dist.layout(folder, SPECS, chunks, extra_states(SPECS), torch_zip.saved({"iteration": 0}))
    folder.mkdir(exist_ok=True)
    engine.reserve(target)
    for key, stored in target.space.items():
        for placement in stored.placements:
            assert placement.file is not None
            with placement.file.open("r+b") as stream:
                stream.seek(placement.begin)
                stream.write(to_carrier(tensors[key][box(placement)]).tobytes())
    engine.finish(target)
    return tensors


def box(placement: Any) -> tuple[slice, ...]:
    return tuple(slice(o, o + s) for o, s in zip(placement.offset, placement.shape, strict=True))


def whole(folder: Path, key: str) -> torch.Tensor:
    """A tensor put together from its chunks."""
    stored = open_checkpoint(folder).stored(key)
    return to_torch(assembled(stored), stored.spec.dtype)


def refusal(folder: Path, key: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        stored = open_checkpoint(folder)
        if key:
            stored.stored(key)
    return str(error.value)


def edit_metadata(folder: Path, change: Callable[[Any], object]) -> None:
    content = pickle.loads((folder / ".metadata").read_bytes())
    change(content)
    (folder / ".metadata").write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("rows", [4, 2, 1])
def test_reads_back_what_was_written(rows: int, tmp_path: Path) -> None:
    tensors = write(tmp_path, rows)
    for key, tensor in tensors.items():
        assert torch.equal(whole(tmp_path, key), tensor)
    assert list(open_checkpoint(tmp_path).objects) == [
        "decoder.layers.mlp.linear_fc2._extra_state/shard_0_2",
        "decoder.layers.mlp.linear_fc2._extra_state/shard_1_2",
        "decoder.final_layernorm._extra_state/shard_0_1",
    ]


def test_what_is_not_sharded_may_be_an_object(tmp_path: Path) -> None:
    """As megatron-core 0.19 has it, which writes no common.pt."""
    tensors, common = {KEY: SPECS[KEY]}, torch_zip.saved([{"iteration": 7}])
    target = torch_dist.layout(
        tmp_path, tensors, [(KEY, (0, 0, 0), (2, 4, 6))], {torch_dist.COMMON_OBJECT: common}, b""
    )
    engine.reserve(target)
    engine.finish(target)
    (tmp_path / torch_dist.COMMON).unlink()
    check_files(tmp_path)
    assert open_checkpoint(tmp_path).common() == {"iteration": 7}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "bool"])
def test_carriers_keep_the_bits(dtype: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    again = to_torch(to_carrier(tensor), dtype)
    assert again.dtype == tensor.dtype and again.float().equal(tensor.float())


def test_a_hole_in_what_is_to_be_written_is_our_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold 24 elements of 48"):
        torch_dist.layout(tmp_path, {KEY: SPECS[KEY]}, [(KEY, (0, 0, 0), (1, 4, 6))], {}, b"")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int64", "bool"])
@pytest.mark.parametrize("shape", [(2, 3), (5,), (), (0,), (1, 300, 7)])
def test_torch_reads_our_zips_and_we_read_torchs(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = (torch.rand(shape) * 10).to(getattr(torch, dtype))
    spec = TensorSpec(shape, dtype)
    payload = to_carrier(tensor).tobytes()
    frame = torch_zip.frame(spec)
    (tmp_path / "ours").write_bytes(frame.head + payload + frame.tail)
    again = torch.load(tmp_path / "ours", weights_only=True)
    assert again.dtype == tensor.dtype and to_carrier(again).tobytes() == payload
    torch.save({"inside": [tensor]}, tmp_path / "theirs")
    for file, record in (
        ("ours", torch_zip.read_file(tmp_path / "ours")),
        ("theirs", torch_zip.read_file(tmp_path / "theirs")["inside"][0]),
    ):
        assert record.spec == spec and record.contiguous
        assert (tmp_path / file).read_bytes()[record.begin :].startswith(payload)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(UserError, match="is full"):
        write(tmp_path)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


class TestNothingIsTrusted:
    def test_hostile_metadata(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path)
        monkeypatch.chdir(tmp_path)
        edit_metadata(tmp_path, lambda content: setattr(content, "planner_data", Hostile()))
        assert "it names posix.system, which has no business there" in refusal(tmp_path)
        assert not (tmp_path / "executed").exists()

    def test_hostile_chunk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path)
        monkeypatch.chdir(tmp_path)
        torch.save(Hostile(), tmp_path / "hostile.distcp")

        def point_there(content: Any) -> None:
            for place in content.storage_data.values():
                place.relative_path, place.offset = "hostile.distcp", 0
                place.length = (tmp_path / "hostile.distcp").stat().st_size

        edit_metadata(tmp_path, point_there)
        assert "it names posix.system, which has no business there" in refusal(tmp_path, KEY)
        assert not (tmp_path / "executed").exists()

    def test_hostile_common(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path)
        monkeypatch.chdir(tmp_path)
        torch.save({"args": Hostile()}, tmp_path / "common.pt")
        with pytest.raises(torch_dist.Damaged, match=r"it names posix\.system, which has no business there"):
            open_checkpoint(tmp_path).common()
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("path", ["../secret.distcp", "/etc/passwd", "a/b.distcp", ".."])
    def test_a_file_outside_the_folder(self, path: str, tmp_path: Path) -> None:
        write(tmp_path)

        def point_outside(content: Any) -> None:
            for place in content.storage_data.values():
                place.relative_path = path

        edit_metadata(tmp_path, point_outside)
        assert "not to a data file beside it" in refusal(tmp_path)


class TestDamage:
    def test_truncated_data(self, tmp_path: Path) -> None:
        write(tmp_path)
        os.truncate(tmp_path / "__0_0.distcp", 1000)
        assert "__0_0.distcp is damaged" in refusal(tmp_path, KEY)

    def test_data_cut_off_behind_the_last_tensor(self, tmp_path: Path) -> None:
        write(tmp_path)
        data = tmp_path / "__0_0.distcp"
        assert torch_dist.open_checkpoint(tmp_path).objects
        os.truncate(data, data.stat().st_size - 1)
        assert "__0_0.distcp is damaged" in refusal(tmp_path)

    def test_missing_data(self, tmp_path: Path) -> None:
        write(tmp_path)
        (tmp_path / "__0_0.distcp").unlink()
        assert "__0_0.distcp is damaged or not trustworthy: it is not there" in refusal(tmp_path, KEY)

    @pytest.mark.parametrize("keep", [0, 10, 300])
    def test_truncated_metadata(self, keep: int, tmp_path: Path) -> None:
        write(tmp_path)
        os.truncate(tmp_path / ".metadata", keep)
        assert ".metadata is damaged" in refusal(tmp_path)

    def test_metadata_overwritten_at_random_is_never_a_traceback(self, tmp_path: Path) -> None:
        write(tmp_path)
        good = (tmp_path / ".metadata").read_bytes()
        for seed in range(300):
            random = np.random.default_rng(seed)
            content = bytearray(good)
            content[random.integers(len(content))] = random.integers(256)
            (tmp_path / ".metadata").write_bytes(content)
            for work in (open_checkpoint, check_files):
                with contextlib.suppress(UserError):
                    work(tmp_path)

    @pytest.mark.parametrize("file", [".metadata", "common.pt", "__0_0.distcp", "metadata.json"])
    @pytest.mark.parametrize("damage", ["truncated", "zeros", "missing"])
    def test_a_damaged_file_is_named_before_it_is_loaded(self, file: str, damage: str, tmp_path: Path) -> None:
        write(tmp_path)
        check_files(tmp_path)
        size = (tmp_path / file).stat().st_size
        (tmp_path / file).unlink()
        if damage != "missing":
            (tmp_path / file).write_bytes(bytes(size if damage == "zeros" else size // 2))
        if (file, damage) == ("__0_0.distcp", "zeros"):
            check_files(tmp_path)  # tensors are not read twice
            assert refusal(tmp_path, KEY).startswith(f"{tmp_path / file} is damaged")
            return
        with pytest.raises(torch_dist.Damaged, match=re.escape(str(tmp_path / file))):
            check_files(tmp_path)

    def test_a_changed_byte_in_what_is_not_sharded(self, tmp_path: Path) -> None:
        write(tmp_path)
        content = (tmp_path / "common.pt").read_bytes()
        (tmp_path / "common.pt").write_bytes(content.replace(b"iteration", b"iterstion"))
        with pytest.raises(torch_dist.Damaged, match="does not have its checksum"):
            check_files(tmp_path)

    def test_a_hole(self, tmp_path: Path) -> None:
        write(tmp_path)
        edit_metadata(tmp_path, lambda content: content.state_dict_metadata[KEY].chunks.pop())
        assert "hold 24 elements of 48" in refusal(tmp_path)

    def test_an_overlap(self, tmp_path: Path) -> None:
        write(tmp_path, rows=2)

        def overlap(content: Any) -> None:
            chunk = content.state_dict_metadata[KEY].chunks[1]
            place = content.storage_data.pop(pickle.loads(pickle.dumps(_index(chunk.offsets))))
            chunk.offsets = torch.Size((0, 1, 0))
            content.storage_data[_index(chunk.offsets)] = place

        edit_metadata(tmp_path, overlap)
        assert "or overlap" in refusal(tmp_path)

    def test_a_chunk_without_a_file(self, tmp_path: Path) -> None:
        write(tmp_path)
        edit_metadata(tmp_path, lambda content: content.storage_data.pop(_index((1, 0, 0))))
        assert f"has no file for `{KEY}` at [1, 0, 0]" in refusal(tmp_path)

    def test_another_dtype_than_said(self, tmp_path: Path) -> None:
        write(tmp_path)
        properties = "properties"

        def lie(content: Any) -> None:
            getattr(content.state_dict_metadata[KEY], properties).dtype = torch.float16

        edit_metadata(tmp_path, lie)
        assert "is bfloat16 [1, 4, 6], .metadata says float16" in refusal(tmp_path, KEY)

    def test_another_format(self, tmp_path: Path) -> None:
        write(tmp_path)
        (tmp_path / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
        assert "format 'zarr'" in refusal(tmp_path)


def _index(offset: tuple[int, ...]) -> Any:
    return MetadataIndex(KEY, offset)


@pytest.mark.usefixtures("megatron")
class TestMegatronCore:
    """The other side is megatron-core's own dist_checkpointing."""

    @staticmethod
    def sharded(key: str, tensor: torch.Tensor, *grid: tuple[int, int, int]) -> Any:
        from megatron.core.dist_checkpointing import ShardedTensor

        return ShardedTensor.from_rank_offsets(key, tensor, *grid, prepend_axis_num=len(grid) and 1)

    @pytest.mark.parametrize("tensor_parallel", [1, 2, 3])
    def test_megatron_core_loads_any_slice(self, tensor_parallel: int, tmp_path: Path) -> None:
        from megatron.core import dist_checkpointing

        expected = write(tmp_path)[KEY]
        columns = 6 // tensor_parallel
        slices = {
            (layer, part): self.sharded(
                KEY, torch.zeros(4, columns).bfloat16(), (0, layer, 2), (2, part, tensor_parallel)
            )
            for layer in range(2)
            for part in range(tensor_parallel)
        }
        loaded = dist_checkpointing.load({str(where): tensor for where, tensor in slices.items()}, str(tmp_path))
        for layer, part in slices:
            found = loaded[str((layer, part))]
            assert torch.equal(found, expected[layer, :, part * columns : (part + 1) * columns])

    def test_megatron_core_knows_every_key(self, tmp_path: Path) -> None:
        from megatron.core import dist_checkpointing

        write(tmp_path)
        assert set(dist_checkpointing.load_tensors_metadata(str(tmp_path))) == set(SPECS)
        assert dist_checkpointing.load_common_state_dict(str(tmp_path)) == {"iteration": 0}

    @pytest.mark.parametrize(("across", "down"), [(1, 1), (2, 1), (1, 2), (3, 4)])
    def test_reads_any_grid_that_megatron_core_wrote(self, across: int, down: int, tmp_path: Path) -> None:
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing import ShardedObject

        tensor = torch.randn(2, 4, 6)
        columns, rows = 6 // across, 4 // down
        state = {
            str((layer, row, column)): self.sharded(
                KEY,
                tensor[layer, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns].contiguous(),
                (0, layer, 2),
                (1, row, down),
                (2, column, across),
            )
            for layer in range(2)
            for row in range(down)
            for column in range(across)
        }
        state["rng"] = ShardedObject("rng_state", {"seed": 1}, (1,), (0,))
        dist_checkpointing.save(state, str(tmp_path))
        assert torch.equal(whole(tmp_path, KEY), tensor)
        # Beside it megatron-core 0.19 has an object of its own, where 0.16 writes common.pt.
        assert "rng_state/shard_0_1" in open_checkpoint(tmp_path).objects
