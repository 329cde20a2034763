"""`convert` both ways: byte-identical tensors, equal config, everything said, nothing half-written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import checkpoint, engine
from converters.convert import convert
from converters.family import family_of
from converters.options import DTYPES, Options
from converters.stores import safetensors, torch_dist
from converters.stores.safetensors import open_folder
from converters.torch_tensors import to_torch
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.support.space import assembled

from .conftest import SHARDED, VARIANTS
from .reshape import load, reshaped


@pytest.fixture
def megatron_model(hf_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    def make(variant: str, **options: Any) -> Path:
        convert(hf_model(variant), tmp_path / "megatron", options=Options(**options))
        return tmp_path / "megatron"

    return make


def assert_same_model(one: Path, other: Path) -> None:
    ours, theirs = open_folder(one), open_folder(other)
    assert set(ours.tensors) == set(theirs.tensors)
    for name, spec in theirs.tensors.items():
        assert ours.tensors[name] == spec
        assert ours.array(name).tobytes() == theirs.array(name).tobytes(), name


def refusal(source: Path, target: Path, **options: Any) -> str:
    to = options.pop("to", None)
    with pytest.raises(UserError) as error:
        convert(source, target, to=to, options=Options(**options))
    return str(error.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_byte_identical(
    variant: str, hf_model: Callable[[str], Path], megatron_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = hf_model(variant)
    options = Options(max_shard_bytes=60_000) if variant == SHARDED else None
    convert(megatron_model(variant), tmp_path / "hf", options=options)
    assert_same_model(source, tmp_path / "hf")
    others = sorted(str(path.relative_to(source)) for path in checkpoint.hf_files(source))
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= set(others)
    assert "additional_chat_templates/tool_use.jinja" in others
    for name in others:
        assert (tmp_path / "hf" / name).read_bytes() == (source / name).read_bytes()
    if variant == SHARDED:
        assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
    else:
        assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


@pytest.mark.parametrize("variant", ["llama", "qwen3-tied"])
def test_transformers_loads_the_export(
    variant: str, hf_model: Callable[[str], Path], megatron_model: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    convert(megatron_model(variant), tmp_path / "hf")
    tokens = torch.arange(20)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (hf_model(variant), tmp_path / "hf")
    )
    assert torch.equal(before, after)


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpoint_holds_the_reshaped_tensors(
    variant: str, hf_model: Callable[[str], Path], megatron_model: Callable[..., Path]
) -> None:
    """Against the independent reshaping, so that an error in both directions at once would show."""
    folder = checkpoint.latest(megatron_model(variant, vocab_divisible_by=16, target_tp=3))
    config = checkpoint.read_config(folder)
    stored = torch_dist.open_checkpoint(folder)
    expected = reshaped(load(hf_model(variant)), config["num_hidden_layers"], config["num_key_value_heads"], 144)
    assert set(stored.tensors) == set(expected)
    for key, tensor in expected.items():
        assert stored.tensors[key].shape == tuple(tensor.shape)
        assert torch.equal(to_torch(assembled(stored.stored(key)), stored.tensors[key].dtype), tensor), key


def test_layout_of_the_checkpoint(megatron_model: Callable[..., Path]) -> None:
    root = megatron_model("llama")
    assert (root / "latest_checkpointed_iteration.txt").read_text() == "release"
    names = {path.name for path in (root / "release").iterdir()}
    assert names == {".metadata", "metadata.json", "common.pt", "__0_0.distcp", "hf"}
    assert checkpoint.is_megatron(root) and checkpoint.is_megatron(root / "release")
    assert checkpoint.hf_folder(root) == root / "release" / "hf"


@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", "bf16"), ("float32", "fp32")])
@pytest.mark.parametrize("variant", ["qwen3", "qwen3-tied"])
def test_cast_on_export(
    variant: str,
    dtype: str,
    name: str,
    hf_model: Callable[[str], Path],
    megatron_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    convert(megatron_model(variant), tmp_path / "hf", options=Options(dtype=DTYPES[name]))
    original, exported = load(hf_model(variant)), load(tmp_path / "hf")
    for key, tensor in original.items():
        assert torch.equal(exported[key], tensor.to(getattr(torch, dtype)))
    before, after = (json.loads((p / "config.json").read_text()) for p in (hf_model(variant), tmp_path / "hf"))
    assert after == before | {"dtype": dtype}


def test_cast_on_import(hf_model: Callable[[str], Path], megatron_model: Callable[..., Path], tmp_path: Path) -> None:
    root = megatron_model("llama", dtype="bfloat16")
    assert checkpoint.read_config(root)["dtype"] == "bfloat16"
    convert(root, tmp_path / "hf")
    original, exported = load(hf_model("llama")), load(tmp_path / "hf")
    assert all(torch.equal(exported[key], tensor.bfloat16()) for key, tensor in original.items())


def test_an_export_needs_only_the_iteration_folder(
    hf_model: Callable[[str], Path], megatron_model: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.move(megatron_model("llama") / "release", tmp_path / "alone")
    convert(tmp_path / "alone", tmp_path / "hf")
    assert_same_model(hf_model("llama"), tmp_path / "hf")


def test_what_is_left_out_is_said(
    megatron_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(megatron_model("llama"), tmp_path / "hf")
    said = capsys.readouterr().out
    assert "vocabulary 131 padded to 256" in said
    assert "left out 13 entries of `_extra_state`: not weights" in said


@pytest.mark.parametrize(("variant", "norms"), [("llama", []), ("qwen3", ["q_layernorm", "k_layernorm"])])
def test_extra_state_is_where_transformer_engine_looks_for_it(
    variant: str, norms: list[str], megatron_model: Callable[..., Path]
) -> None:
    """The modules that own one in megatron-core 0.16.1's TransformerEngine spec."""
    attention = [f"self_attention.{name}" for name in ("linear_qkv", "linear_proj", *norms)]
    modules = [f"decoder.layers.{name}" for name in (*attention, "mlp.linear_fc1", "mlp.linear_fc2")]
    expected = {f"{module}._extra_state/shard_{layer}_3" for module in modules for layer in range(3)}
    expected.add("decoder.final_layernorm._extra_state/shard_0_1")
    stored = torch_dist.open_checkpoint(checkpoint.latest(megatron_model(variant)))
    assert set(stored.objects) == expected


class TestTargets:
    def test_a_target_that_is_not_empty(self, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "mine.txt").touch()
        assert "is not empty" in refusal(hf_model("llama"), tmp_path / "there")
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
        convert(hf_model("llama"), tmp_path / "there", options=Options(overwrite=True))
        assert not (tmp_path / "there" / "mine.txt").exists()
        assert checkpoint.is_megatron(tmp_path / "there")
        assert [path.name for path in tmp_path.iterdir()] == ["there"]

    def test_an_empty_target(self, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        convert(hf_model("llama"), tmp_path / "there")
        assert checkpoint.is_megatron(tmp_path / "there")

    def test_a_target_keeps_its_mode_and_group(self, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        if os.geteuid() == 0:  # others may give it only to groups that they are in
            os.chown(tmp_path / "there", -1, 1000)
        (tmp_path / "there").chmod(0o2770)
        before = (tmp_path / "there").stat()
        convert(hf_model("llama"), tmp_path / "there")
        after = (tmp_path / "there").stat()
        assert (after.st_mode, after.st_gid) == (before.st_mode, before.st_gid)
        assert {path.stat().st_gid for path in (tmp_path / "there").rglob("*")} == {before.st_gid}

    def test_the_working_folder_as_target(
        self, hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "there" / "inside").mkdir(parents=True)
        for here in ("there", "there/inside"):
            monkeypatch.chdir(tmp_path / here)
            assert "is the folder that this is run in" in refusal(hf_model("llama"), tmp_path / "there", overwrite=True)
        monkeypatch.chdir(tmp_path / "there")
        assert "is the folder that this is run in" in refusal(hf_model("llama"), Path("."))

    def test_a_file_as_target(self, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
        (tmp_path / "there").touch()
        assert "is a file" in refusal(hf_model("llama"), tmp_path / "there")

    def test_a_mount_as_target(
        self, hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "disk").mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "disk")
        for options in ({}, {"dry_run": True}):
            said = refusal(hf_model("llama"), tmp_path / "disk", **options)
            assert f"Choose a folder inside it, such as {tmp_path}/disk/converted" in said
        assert [path.name for path in tmp_path.rglob("*")] == ["disk"]

    @pytest.mark.parametrize("busy", ["there", ".there.unfinished"])
    def test_a_target_that_cannot_be_renamed(
        self, busy: str, hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was converted stays, complete, and so does what the target held."""
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "mine.txt").touch()
        rename = Path.rename

        def refused(path: Path, target: Path) -> Path:
            if path.name == busy:
                raise OSError(16, "Device or resource busy")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refused)
        said = refusal(hf_model("llama"), tmp_path / "there", overwrite=True)
        assert "there cannot be replaced: Device or resource busy" in said
        assert f"complete in {tmp_path}/.there.unfinished" in said
        assert checkpoint.is_megatron(tmp_path / ".there.unfinished")
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]

    def test_a_forecast_is_of_the_disk_that_is_written(
        self, hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from converters import forecast

        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "real")
        asked: list[Path] = []

        def free(path: Path) -> int:
            asked.append(path)
            return 0

        monkeypatch.setattr(forecast, "disk_speed", asked.append)
        monkeypatch.setattr(forecast, "free_bytes", free)
        convert(hf_model("llama"), tmp_path / "link", options=Options(dry_run=True))
        assert asked == [tmp_path / "elsewhere", tmp_path / "elsewhere" / ".real.unfinished"]

    def test_source_and_target_in_one_another(self, megatron_model: Callable[..., Path]) -> None:
        root = megatron_model("llama")
        for target in (root, root / "release" / "export", root.parent):
            assert "lie in one another" in refusal(root, target, overwrite=True)
        assert checkpoint.is_megatron(root)

    def test_the_same_format_again(self, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
        assert "is a Hugging Face folder of plain weights already" in refusal(
            hf_model("llama"), tmp_path / "x", to="hf"
        )

    def test_no_source(self, tmp_path: Path) -> None:
        assert "nowhere does not exist" in refusal(tmp_path / "nowhere", tmp_path / "x")

    def test_a_source_that_is_neither(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "has no config.json" in refusal(tmp_path / "empty", tmp_path / "x")

    def test_leftovers_of_a_killed_conversion_do_not_stand_in_the_way(
        self, hf_model: Callable[[str], Path], tmp_path: Path
    ) -> None:
        (tmp_path / ".there.unfinished" / "release").mkdir(parents=True)
        convert(hf_model("llama"), tmp_path / "there")
        assert [path.name for path in tmp_path.iterdir()] == ["there"]

    def test_a_target_set_aside_by_a_killed_conversion_comes_back(
        self, hf_model: Callable[[str], Path], tmp_path: Path
    ) -> None:
        (tmp_path / ".there.replaced").mkdir()
        (tmp_path / ".there.replaced" / "mine.txt").touch()
        assert "is not empty" in refusal(hf_model("llama"), tmp_path / "there")
        assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine.txt"]

    def test_the_folder_of_a_run_is_pointed_to_its_checkpoints(
        self, megatron_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        (tmp_path / "run").mkdir()
        shutil.move(megatron_model("llama"), tmp_path / "run" / "checkpoints")
        assert f"Give {tmp_path / 'run' / 'checkpoints'}" in refusal(tmp_path / "run", tmp_path / "x")


class TestFailure:
    """Whatever happens on the way, the target is as it was and nothing lies beside it."""

    @pytest.mark.parametrize("store", [safetensors, torch_dist])
    def test_full_disk_at_the_start(
        self, store: Any, hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        convert(hf_model("llama"), tmp_path / "megatron")
        source = tmp_path / "megatron" if store is safetensors else hf_model("llama")
        monkeypatch.setattr(os, "posix_fallocate", _no_space)
        assert "is full" in refusal(source, tmp_path / "x")
        assert [path.name for path in tmp_path.iterdir()] == ["megatron"]

    def test_full_disk_on_the_way(
        self, hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "copy_file_range", _no_space)
        assert "is full" in refusal(hf_model("llama"), tmp_path / "x")
        assert list(tmp_path.iterdir()) == []

    def test_an_interruption_keeps_what_was_done(
        self, hf_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "mine.txt").touch()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(engine, "finish", _interrupted)
            convert(hf_model("llama"), tmp_path / "x", options=Options(overwrite=True))
        assert [path.name for path in (tmp_path / "x").rglob("*")] == ["mine.txt"]
        copied: list[Any] = []
        monkeypatch.setattr(engine, "copy", lambda *arguments: copied.append(arguments))
        convert(hf_model("llama"), tmp_path / "x", options=Options(overwrite=True))
        assert copied == [] and [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_a_truncated_chunk(self, megatron_model: Callable[..., Path], tmp_path: Path) -> None:
        data = megatron_model("llama") / "release" / "__0_0.distcp"
        os.truncate(data, data.stat().st_size // 2)
        assert "__0_0.distcp is damaged" in refusal(tmp_path / "megatron", tmp_path / "x")
        assert [path.name for path in tmp_path.iterdir()] == ["megatron"]


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


class TestConfigThatCannotBeRead:
    def test_it_is_said_where_it_lies(self, hf_model: Callable[[str], Path], tmp_path: Path) -> None:
        folder = Path(shutil.copytree(hf_model("llama"), tmp_path / "source"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
        assert f"{folder}/config.json: `hidden_act` is 'relu'" in refusal(folder, tmp_path / "x")
        (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BloomForCausalLM"]}))
        assert f"{folder}: the architecture BloomForCausalLM is not supported" in refusal(folder, tmp_path / "x")


class TestCheckpointOfAnotherModel:
    @pytest.fixture
    def with_config(self, megatron_model: Callable[..., Path]) -> Callable[..., Path]:
        def change(**fields: Any) -> Path:
            root = megatron_model("llama")
            file = root / "release" / "hf" / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | fields))
            return root

        return change

    def test_missing_keys(self, with_config: Callable[..., Path], tmp_path: Path) -> None:
        root = with_config(mlp_bias=True)
        assert "missing: `decoder.layers.mlp.linear_fc1.bias`" in refusal(root, tmp_path / "x")

    def test_extra_keys(self, with_config: Callable[..., Path], tmp_path: Path) -> None:
        root = with_config(tie_word_embeddings=True)
        assert "without a place: `output_layer.weight`" in refusal(root, tmp_path / "x")

    def test_shapes(self, with_config: Callable[..., Path], tmp_path: Path) -> None:
        assert "is [3, 160, 48], with hf/config.json it would be [3, 96, 48]" in refusal(
            with_config(intermediate_size=48), tmp_path / "x"
        )

    def test_vocabulary(self, with_config: Callable[..., Path], tmp_path: Path) -> None:
        assert "has 256 rows, the vocabulary of config.json 257" in refusal(with_config(vocab_size=257), tmp_path / "x")

    def test_no_hf_folder(self, megatron_model: Callable[..., Path], tmp_path: Path) -> None:
        shutil.rmtree(megatron_model("llama") / "release" / "hf")
        assert "Megatron checkpoint with its hf/ folder" in refusal(tmp_path / "megatron", tmp_path / "x")

    def test_a_tracker_that_points_nowhere(self, megatron_model: Callable[..., Path], tmp_path: Path) -> None:
        (megatron_model("llama") / checkpoint.TRACKER).write_text("12")
        found = refusal(tmp_path / "megatron", tmp_path / "x")
        assert "points to iter_0000012, which is no finished checkpoint" in found and "release" in found
        (tmp_path / "megatron" / checkpoint.TRACKER).write_text("latest")
        assert "says 'latest'" in refusal(tmp_path / "megatron", tmp_path / "x")


@pytest.mark.usefixtures("megatron")
class TestMegatronCore:
    """megatron-core's own GPTModel and dist_checkpointing, with nothing of ours between."""

    @staticmethod
    def gpt_model(root: Path) -> Any:
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.transformer import TransformerConfig

        config = checkpoint.read_config(root)
        arguments = family_of(config).megatron_arguments(config)
        return GPTModel(
            TransformerConfig(
                num_layers=arguments.num_layers,
                hidden_size=arguments.hidden_size,
                ffn_hidden_size=arguments.ffn_hidden_size,
                num_attention_heads=arguments.num_attention_heads,
                num_query_groups=arguments.num_query_groups,
                kv_channels=arguments.kv_channels,
                normalization=arguments.normalization,
                gated_linear_unit=arguments.gated_linear_unit,
                activation_func=torch.nn.functional.silu,
                add_bias_linear=arguments.add_bias_linear,
                add_qkv_bias=arguments.add_qkv_bias,
                qk_layernorm=arguments.qk_layernorm,
            ),
            get_gpt_layer_local_spec(qk_layernorm=arguments.qk_layernorm, normalization=arguments.normalization),
            vocab_size=256,
            max_sequence_length=arguments.max_position_embeddings,
            share_embeddings_and_output_weights=not arguments.untie_embeddings_and_output_weights,
            position_embedding_type="rope",
        )

    @pytest.mark.parametrize(
        ("variant", "keys"),
        [
            *((variant, None) for variant in ("llama-bias", "llama-tied", "mistral", "qwen2", "qwen3-tied")),
            ("qwen3-tied", "per-layer"),
        ],
    )
    def test_loads_strictly(
        self, variant: str, keys: Any, hf_model: Callable[[str], Path], megatron_model: Callable[..., Path]
    ) -> None:
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing.validation import StrictHandling

        folder = checkpoint.latest(megatron_model(variant, keys=keys))
        model = self.gpt_model(folder)
        state = model.sharded_state_dict(metadata=dist_checkpointing.load_content_metadata(str(folder)))
        loaded = dist_checkpointing.load({"model": state}, str(folder), strict=StrictHandling.RAISE_UNEXPECTED)
        model.load_state_dict(loaded["model"])
        expected = reshaped(load(hf_model(variant)), 3, model.config.num_query_groups, 256)
        qkv, fc1 = (
            [getattr(getattr(layer, part), name).weight for layer in model.decoder.layers]
            for part, name in (("self_attention", "linear_qkv"), ("mlp", "linear_fc1"))
        )
        for layer in range(3):
            assert torch.equal(qkv[layer], expected["decoder.layers.self_attention.linear_qkv.weight"][layer].float())
            assert torch.equal(fc1[layer], expected["decoder.layers.mlp.linear_fc1.weight"][layer].float())

    def test_exports_what_megatron_core_saved(
        self, hf_model: Callable[[str], Path], megatron_model: Callable[..., Path], tmp_path: Path
    ) -> None:
        """A training checkpoint: weights in megatron-core's own chunks, moments and random states beside them."""
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing import ShardedObject, ShardedTensor

        ours = checkpoint.latest(megatron_model("qwen2"))
        model = self.gpt_model(ours)
        model.load_state_dict(dist_checkpointing.load({"model": model.sharded_state_dict()}, str(ours))["model"])
        folder = tmp_path / "trained" / checkpoint.iteration_name(12)
        folder.mkdir(parents=True)
        state = model.sharded_state_dict()
        moment = ShardedTensor.from_rank_offsets(
            "optimizer.state.exp_avg.decoder.final_layernorm.weight", torch.ones(48)
        )
        state |= {"moment": moment, "rng": ShardedObject("rng_state", [1], (1,), (0,)), "iteration": 12}
        dist_checkpointing.save(state, str(folder))
        checkpoint.copy_hf_files(ours / "hf", folder / "hf")
        checkpoint.write_tracker(tmp_path / "trained", 12)
        convert(tmp_path / "trained", tmp_path / "hf")
        assert_same_model(hf_model("qwen2"), tmp_path / "hf")


class TestUnmapped:
    """Tensors that Megatron has no place for."""

    @pytest.fixture
    def with_more(self, hf_model: Callable[[str], Path], tmp_path: Path) -> Path:
        from safetensors.torch import load_file, save_file

        file = Path(shutil.copytree(hf_model("llama"), tmp_path / "source")) / "model.safetensors"
        more = {"vision.tower": torch.rand(3, 5), "vision.scale": torch.tensor(2, dtype=torch.int64)}
        save_file(load_file(file) | more, file, {"format": "pt"})
        return file.parent

    def test_an_error_by_default(self, with_more: Path, tmp_path: Path) -> None:
        assert "without a place: `vision.scale`, `vision.tower`" in refusal(with_more, tmp_path / "x")

    def test_kept_and_put_back(self, with_more: Path, tmp_path: Path) -> None:
        convert(with_more, tmp_path / "megatron", options=Options(allow_unmapped=True))
        convert(tmp_path / "megatron", tmp_path / "hf", options=Options(max_shard_bytes=50_000))
        assert_same_model(with_more, tmp_path / "hf")
        assert main(["convert", "verify", str(with_more), str(tmp_path / "megatron")]) == 0
