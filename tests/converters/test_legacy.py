"""Checkpoints with a file for each rank: megatron-core's own are read, and megatron-core loads ours."""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from converters import checkpoint, engine
from converters.convert import convert
from converters.options import Options
from converters.ranks import Grid, layer_places
from converters.stores import legacy
from converters.stores.safetensors import open_folder
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.converters import legacy_cases
from tests.support.distributed import ROOT, Workers

TP2 = {"tensor_model_parallel_size": 2}
PP2 = {"pipeline_model_parallel_size": 2}
VPP2 = {"virtual_pipeline_model_parallel_size": 2}
SP = {"sequence_parallel": True}
EP2 = {"expert_model_parallel_size": 2}

CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("llama", 2, TP2),
    ("llama3-tied-bias", 2, PP2),
    ("qwen3-bias", 4, TP2 | PP2),
    ("qwen2-tied", 2, PP2 | VPP2),
    ("qwen3-moe", 2, EP2),
    ("qwen2-moe-sparse-steps", 4, TP2 | SP | PP2),
    ("mixtral", 4, EP2 | PP2),
    ("deepseek-v3", 2, TP2 | SP),
    ("gemma2", 4, TP2 | PP2),
    ("nemotron-bias", 2, TP2),
    ("qwen3-next", 4, TP2 | SP | PP2),
    ("qwen3-next-dense-layers", 2, TP2 | SP),
]

TinyModel = Callable[..., Path]


def options(layout: dict[str, Any], **more: Any) -> Options:
    """Of a conversion to files for the ranks of this layout, in the words of the layers that tests build."""
    return Options(
        target_tp=layout.get("tensor_model_parallel_size", 1),
        target_pp=layout.get("pipeline_model_parallel_size", 1),
        target_vpp=layout.get("virtual_pipeline_model_parallel_size", 1),
        target_ep=layout.get("expert_model_parallel_size", 1),
        layer_spec="local",
        **more,
    )


def assert_same_model(one: Path, other: Path) -> None:
    ours, theirs = open_folder(one), open_folder(other)
    assert ours.tensors == theirs.tensors
    for name in theirs.tensors:
        assert ours.array(name).tobytes() == theirs.array(name).tobytes(), name


@pytest.mark.parametrize(
    ("name", "world_size", "layout"),
    # Experts that are not cut, beside an attention that is: the files are no full grid.
    [*CASES, ("qwen3-moe", 2, TP2 | SP | EP2 | {"expert_tensor_parallel_size": 1})],
)
def test_what_megatron_core_saved_is_exported(
    name: str, world_size: int, layout: dict[str, Any], tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    distributed(legacy_cases.save, world_size, tiny_model(name), layout, tmp_path / "legacy")
    convert(tmp_path / "legacy", tmp_path / "hf")
    assert_same_model(tmp_path / "hf", tiny_model(name))


@pytest.mark.parametrize(("name", "world_size", "layout"), CASES)
def test_megatron_core_loads_ours_strictly(
    name: str, world_size: int, layout: dict[str, Any], tiny_model: TinyModel, distributed: Workers, tmp_path: Path
) -> None:
    convert(tiny_model(name), tmp_path / "legacy", to="legacy", options=options(layout))
    assert min(distributed(legacy_cases.loads_strictly, world_size, tiny_model(name), layout, tmp_path / "legacy")) > 10
    convert(tmp_path / "legacy", tmp_path / "hf")
    assert_same_model(tmp_path / "hf", tiny_model(name))


@pytest.fixture
def ranks_of(tiny_model: TinyModel, tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of ours for the ranks of a layout."""

    def make(name: str, **chosen: Any) -> Path:
        convert(tiny_model(name), tmp_path / "legacy", to="legacy", options=Options(**chosen))
        return tmp_path / "legacy" / "release"

    return make


def tensors(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(file / legacy.FILE, weights_only=False)["model"]
    return found


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the content of a rank's file."""
    content = torch.load(folder / legacy.FILE, weights_only=False)
    edit(content)
    torch.save(content, folder / legacy.FILE)


def refusal(source: Path, target: Path, **chosen: Any) -> str:
    with pytest.raises(UserError) as error:
        convert(source, target, **chosen)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("llama", {"target_tp": 4}),
        ("qwen3-moe", {"target_tp": 2, "target_ep": 3, "target_pp": 2}),
        ("deepseek-v3", {"target_tp": 2, "target_pp": 4, "target_ep": 2}),
        ("qwen2-moe", {"target_tp": 4, "target_pp": 2, "target_vpp": 2}),
    ],
)
def test_words_of_transformer_engine(
    name: str, chosen: dict[str, Any], ranks_of: Callable[..., Path], tiny_model: TinyModel, tmp_path: Path
) -> None:
    convert(ranks_of(name, **chosen), tmp_path / "hf")
    assert_same_model(tmp_path / "hf", tiny_model(name))


def test_names_of_transformer_engine(ranks_of: Callable[..., Path]) -> None:
    """Those of the modules in megatron-core 0.16.1's TransformerEngine spec, extra states included."""
    folder = ranks_of("qwen3-moe", target_pp=4, target_ep=2)
    last = tensors(folder / "mp_rank_00_003_001")
    layer = "decoder.layers.0."
    assert {name for name, value in last.items() if value is not None} == {
        *(layer + f"self_attention.{name}" for name in ("linear_qkv.weight", "linear_qkv.layer_norm_weight")),
        *(layer + f"self_attention.{name}.weight" for name in ("linear_proj", "q_layernorm", "k_layernorm")),
        *(layer + f"mlp.experts.linear_fc{number}.weight{expert}" for number in (1, 2) for expert in range(3)),
        *(layer + name for name in ("pre_mlp_layernorm.weight", "mlp.router.weight")),
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    }
    assert {name.removesuffix("._extra_state") for name, value in last.items() if value is None} == {
        *(layer + f"self_attention.{name}" for name in ("linear_qkv", "linear_proj", "q_layernorm", "k_layernorm")),
        *(layer + name for name in ("mlp.experts.linear_fc1", "mlp.experts.linear_fc2", "pre_mlp_layernorm")),
        "decoder.final_layernorm",
        "output_layer",
    }


def test_shards_are_slices(ranks_of: Callable[..., Path], tiny_model: TinyModel) -> None:
    """Against slices taken with torch: rows of gate and up, columns of what gives back, rows of the vocabulary."""
    from safetensors.torch import load_file

    folder, hf = ranks_of("llama", target_tp=2), load_file(tiny_model("llama") / "model.safetensors")
    for rank in range(2):
        own = tensors(folder / f"mp_rank_{rank:02d}")
        gate, up, down = (hf[f"model.layers.2.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        expected = torch.cat([gate.chunk(2)[rank], up.chunk(2)[rank]])
        assert torch.equal(own["decoder.layers.2.mlp.linear_fc1.weight"], expected)
        assert torch.equal(own["decoder.layers.2.mlp.linear_fc2.weight"], down.chunk(2, dim=1)[rank])
        padded = torch.nn.functional.pad(hf["model.embed_tokens.weight"], (0, 0, 0, 256 - 101))
        assert torch.equal(own["embedding.word_embeddings.weight"], padded.chunk(2)[rank])


def test_another_layout_another_dtype_another_padding(
    ranks_of: Callable[..., Path], tiny_model: TinyModel, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    first = ranks_of("qwen2-tied", target_tp=2, target_pp=2)
    changed = Options(target_tp=1, target_pp=4, vocab_divisible_by=8, dtype="bfloat16")
    convert(first, tmp_path / "other", to="legacy", options=changed)
    assert (
        tensors(tmp_path / "other" / "release" / "mp_rank_00_000")["embedding.word_embeddings.weight"].shape[0] == 152
    )
    assert torch.equal(
        tensors(tmp_path / "other" / "release" / "mp_rank_00_003")["output_layer.weight"],
        tensors(tmp_path / "other" / "release" / "mp_rank_00_000")["embedding.word_embeddings.weight"],
    )
    convert(tmp_path / "other", tmp_path / "hf")
    expected = load_file(tiny_model("qwen2-tied") / "model.safetensors")
    for name, tensor in load_file(tmp_path / "hf" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name].bfloat16()), name


def test_to_torch_dist_it_is_the_checkpoint_of_the_hugging_face_folder(
    ranks_of: Callable[..., Path], tiny_model: TinyModel, tmp_path: Path
) -> None:
    from converters.stores.torch_dist import open_checkpoint
    from tests.support.space import assembled

    convert(ranks_of("qwen3-moe-dense-layers", target_tp=2, target_pp=2, target_ep=2), tmp_path / "one", to="megatron")
    convert(tiny_model("qwen3-moe-dense-layers"), tmp_path / "other", options=Options(target_tp=2))
    one, other = (open_checkpoint(checkpoint.latest(tmp_path / name)) for name in ("one", "other"))
    assert one.tensors == other.tensors and set(one.objects) == set(other.objects)
    for key in one.tensors:
        assert assembled(one.stored(key)).tobytes() == assembled(other.stored(key)).tobytes(), key


def test_uneven_stages_and_what_is_no_weight(
    ranks_of: Callable[..., Path], tiny_model: TinyModel, tmp_path: Path
) -> None:
    """One layer on the first stage, three on the second; extra states that are bytes in memory; an optimizer."""
    import io

    whole = tensors(ranks_of("llama") / "mp_rank_00")
    first = {name: value for name, value in whole.items() if name.startswith(("embedding.", "decoder.layers.0."))}
    last = {name: value for name, value in whole.items() if name not in first}
    for layer in (1, 2, 3):
        last = {name.replace(f"layers.{layer}.", f"layers.{layer - 1}."): value for name, value in last.items()}
    last |= {name: io.BytesIO(b"fp8") for name, value in last.items() if value is None}
    for stage, model in enumerate((first, last)):
        folder = tmp_path / "uneven" / "iter_0000100" / f"mp_rank_00_{stage:03d}"
        folder.mkdir(parents=True)
        args = argparse.Namespace(params_dtype=torch.bfloat16, step=100)
        torch.save({"model": model, "args": args, "optimizer": {"a": torch.ones(2)}}, folder / legacy.FILE)
    checkpoint.write_tracker(tmp_path / "uneven", 100)
    convert(tmp_path / "uneven", tmp_path / "hf", options=Options(config=tiny_model("llama")))
    assert_same_model(tmp_path / "hf", tiny_model("llama"))


def cut_by_megatron_core(num_layers: int, grid: Grid) -> list[tuple[int, int, int]]:
    """(stage, virtual stage, number there) of each layer, by megatron-core's own functions."""
    from megatron.core.transformer.transformer_block import get_num_layers_to_build
    from megatron.core.transformer.transformer_config import TransformerConfig
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    config = TransformerConfig(
        num_layers=num_layers,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_model_parallel_size=grid.pipeline,
        pipeline_dtype=torch.float32,
        virtual_pipeline_model_parallel_size=grid.virtual if grid.virtual > 1 else None,
        num_layers_in_first_pipeline_stage=grid.first,
        num_layers_in_last_pipeline_stage=grid.last,
    )
    found: dict[int, tuple[int, int, int]] = {}
    for stage, virtual in product(range(grid.pipeline), range(grid.virtual)):
        place = {"vp_stage": virtual if grid.virtual > 1 else None, "pp_rank": stage}
        begin = get_transformer_layer_offset(config, **place)
        for number in range(get_num_layers_to_build(config, **place)):
            assert found.setdefault(begin + number, (stage, virtual, number)) == (stage, virtual, number)
    return [found[layer] for layer in range(num_layers)]


@pytest.mark.parametrize(
    ("num_layers", "grid"),
    [
        (61, Grid(pipeline=4, last=16)),
        (61, Grid(pipeline=4, first=13)),
        (61, Grid(pipeline=8, first=13, last=12)),
        (61, Grid(pipeline=2, first=31, last=30)),
        (62, Grid(pipeline=4, virtual=2, last=14)),
        (62, Grid(pipeline=4, virtual=2, first=14, last=16)),
        (48, Grid(pipeline=2, virtual=4, first=20)),
        (48, Grid(pipeline=4, virtual=3)),
    ],
)
def test_stages_have_the_layers_that_megatron_core_gives_them(num_layers: int, grid: Grid) -> None:
    grid.stages.check(num_layers)
    assert layer_places(num_layers, grid) == cut_by_megatron_core(num_layers, grid)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("llama", {"target_pp": 2, "target_tp": 2, "target_first_stage_layers": 1}),
        ("qwen2-tied", {"target_pp": 3, "target_last_stage_layers": 2}),
        ("qwen3-moe", {"target_pp": 3, "target_ep": 2, "target_first_stage_layers": 1, "target_last_stage_layers": 1}),
        ("deepseek-v3", {"target_pp": 3, "target_first_stage_layers": 2, "target_last_stage_layers": 1}),
    ],
)
def test_uneven_stages_there_and_back(
    name: str, chosen: dict[str, Any], ranks_of: Callable[..., Path], tiny_model: TinyModel, tmp_path: Path
) -> None:
    folder = ranks_of(name, **chosen)
    first, last = chosen.get("target_first_stage_layers"), chosen.get("target_last_stage_layers")
    expected = cut_by_megatron_core(4, Grid(pipeline=chosen["target_pp"], first=first, last=last))
    for file in legacy.open_ranks(folder):
        own = {int(key.split(".")[2]) for key in file.chunks[0] if key.startswith("decoder.layers.")}
        assert own == {number for stage, _, number in expected if stage == file.rank.pipeline}
        args = torch.load(file.path, weights_only=False)["args"]
        assert (args.decoder_first_pipeline_num_layers, args.decoder_last_pipeline_num_layers) == (first, last)
    convert(folder, tmp_path / "hf")
    assert_same_model(tmp_path / "hf", tiny_model(name))


def test_uneven_stages_in_virtual_ones(tmp_path: Path) -> None:
    """Six layers: two and two on the first stage, one and one on the second."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 128}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=6, **size))
    model.save_pretrained(tmp_path / "model")
    words = ["--to", "legacy", "--target-pp", "2", "--target-vpp", "2", "--target-first-stage-layers", "4"]
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "legacy"), *words]) == 0
    proj, theirs = "decoder.layers.{}.self_attention.linear_proj.weight", "model.layers.{}.self_attn.o_proj.weight"
    whole = model.state_dict()
    for layer, (stage, virtual, number) in enumerate(cut_by_megatron_core(6, Grid(pipeline=2, virtual=2, first=4))):
        file = tmp_path / "legacy" / "release" / f"mp_rank_00_{stage:03d}" / legacy.FILE
        own = torch.load(file, weights_only=False)[f"model{virtual}"]
        assert torch.equal(own[proj.format(number)], whole[theirs.format(layer)])
    convert(tmp_path / "legacy", tmp_path / "hf")
    assert_same_model(tmp_path / "hf", tmp_path / "model")


@pytest.mark.parametrize("num_layers", [3, 61, 62])
@pytest.mark.parametrize(("pipeline", "virtual"), [(2, 1), (3, 1), (4, 2), (8, 1), (2, 2)])
def test_the_numbers_that_the_refusal_names_work(num_layers: int, pipeline: int, virtual: int) -> None:
    with pytest.raises(UserError) as error:
        Grid(pipeline=pipeline, virtual=virtual, first=num_layers, last=None).stages.check(num_layers)
    named = {end: int(number) for end, number in re.findall(r"-(first|last)-stage-layers (\d+)", error.value.fix)}
    if not named:
        even = num_layers % (pipeline * virtual) == 0
        assert error.value.fix.startswith("Leave out" if even else "Choose")
        assert even or num_layers % virtual or num_layers < pipeline * virtual
        return
    grid = Grid(pipeline=pipeline, virtual=virtual, first=named.get("first"), last=named.get("last"))
    grid.stages.check(num_layers)
    assert layer_places(num_layers, grid) == cut_by_megatron_core(num_layers, grid)


class TestRefused:
    def test_copies_that_differ(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        folder = ranks_of("llama", target_tp=2)
        change(folder / "mp_rank_01", lambda content: content["model"]["decoder.final_layernorm.weight"].add_(1))
        assert "`decoder.final_layernorm.weight` should be the same on all ranks" in refusal(folder, tmp_path / "x")

    def test_a_missing_rank(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        folder = ranks_of("llama", target_tp=4)
        shutil.rmtree(folder / "mp_rank_01")
        assert "no files of tensor-parallel rank 1" in refusal(folder, tmp_path / "x")

    def test_a_missing_last_rank(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        folder = ranks_of("llama", target_tp=2)
        shutil.rmtree(folder / "mp_rank_01")
        assert "Copy the folders of all ranks" in refusal(folder, tmp_path / "x")

    def test_one_place_of_the_grid_is_missing(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        folder = ranks_of("llama", target_tp=2, target_pp=2)
        shutil.rmtree(folder / "mp_rank_01_001")
        assert "elements of" in refusal(folder, tmp_path / "x")

    def test_tied_weights_that_differ(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        folder = ranks_of("qwen2-tied", target_pp=2)
        change(folder / "mp_rank_00_001", lambda content: content["model"]["output_layer.weight"].add_(1))
        assert "should be the same on all ranks" in refusal(folder, tmp_path / "x")

    def test_a_tensor_without_a_place(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        folder = ranks_of("llama")
        change(folder / "mp_rank_00", lambda content: content["model"].update(strange=torch.ones(2)))
        assert "without a place: `strange`" in refusal(folder, tmp_path / "x")

    def test_another_models_config(self, ranks_of: Callable[..., Path], tiny_model: TinyModel, tmp_path: Path) -> None:
        folder = ranks_of("llama")
        other = Options(config=tiny_model("mistral-head-dim"))
        assert "with config.json the whole tensor is" in refusal(folder, tmp_path / "x", options=other)
        other = Options(config=tiny_model("qwen3-tied"))
        assert "= 128, the vocabulary of config.json 300" in refusal(folder, tmp_path / "x", options=other)

    def test_no_config(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        folder = ranks_of("llama")
        shutil.rmtree(folder / "hf")
        assert "--config FOLDER" in refusal(folder, tmp_path / "x")

    def test_a_hostile_class(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        folder = ranks_of("llama")
        change(folder / "mp_rank_00", lambda content: content.update(rng=shutil.rmtree))
        assert "it names shutil.rmtree, which has no business there" in refusal(folder, tmp_path / "x")

    def test_a_truncated_file(self, ranks_of: Callable[..., Path], tmp_path: Path) -> None:
        file = ranks_of("llama") / "mp_rank_00" / legacy.FILE
        file.write_bytes(file.read_bytes()[:-1000])
        assert f"{file} is damaged" in refusal(file.parents[1], tmp_path / "x")

    @pytest.mark.parametrize(
        ("chosen", "says"),
        [
            ({"target_pp": 3}, "4 layers cannot be cut into PP 3 × VPP 1 = 3 equal runs: 4 = 3 × 1 + 1."),
            ({"target_pp": 3}, "Give --target-last-stage-layers 2, for stages of 1, 1, 2"),
            (
                {"target_pp": 3, "target_first_stage_layers": 1},
                "4 - 1 = 3 are left for 2 other stages to share equally",
            ),
            ({"target_pp": 2, "target_last_stage_layers": 4}, "Leave out --target-last-stage-layers"),
            ({"target_first_stage_layers": 4}, "--target-first-stage-layers 4 needs a pipeline"),
            (
                {"target_pp": 2, "target_vpp": 2, "target_first_stage_layers": 2, "target_last_stage_layers": 2},
                "Give one of the two",
            ),
            ({"target_pp": 2, "target_vpp": 4}, "Choose PP × VPP of at most 4"),
            ({"target_vpp": 2}, "needs a pipeline"),
            ({"target_ep": 2}, "has no experts"),
            ({"target_tp": 3}, "cannot share 4 attention heads"),
            ({"target_tp": 16}, "cannot share 4 attention heads"),
        ],
    )
    def test_a_grid_that_does_not_fit(
        self, chosen: dict[str, Any], says: str, tiny_model: TinyModel, tmp_path: Path
    ) -> None:
        assert says in refusal(tiny_model("llama"), tmp_path / "x", to="legacy", options=Options(**chosen))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [("qwen3-next", 4, "heads of linear attention"), ("mamba2", 4, "2 groups of Mamba layers")],
)
def test_heads_that_ranks_cannot_share(
    name: str, tensor: int, says: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    """megatron-core refuses them when it builds the model."""
    assert says in refusal(tiny_model(name), tmp_path / "x", to="legacy", options=Options(target_tp=tensor))


def test_needs_no_torch(ranks_of: Callable[..., Path], tmp_path: Path) -> None:
    """Reading and writing files of `torch.save`."""
    code = (
        "import sys; from pathlib import Path; from converters.convert import convert\n"
        "from converters.options import Options\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), to='legacy', options=Options(target_pp=2))\n"
        "assert 'torch' not in sys.modules"
    )
    source = ranks_of("qwen3-moe", target_tp=2)
    subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "x")], check=True, cwd=ROOT)


def test_verify_and_inspect(
    ranks_of: Callable[..., Path], tiny_model: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ranks_of("llama", target_tp=2, target_pp=2)
    assert main(["convert", "verify", str(tiny_model("llama")), str(folder.parent)]) == 0
    capsys.readouterr()
    assert main(["convert", "inspect", str(folder.parent)]) == 0
    said = capsys.readouterr().out
    assert "with 4 files, one for each rank" in said
    assert re.search(
        r" 8 × mp_rank_\*_\*/decoder\.layers\.\*\.mlp\.linear_fc2\.weight +24.6 kB +float32 +32 × 24\n", said
    )


def test_a_forecast(ranks_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(ranks_of("llama", target_tp=2), tmp_path / "x", to="legacy", options=Options(dry_run=True, target_pp=2))
    assert "2 files" in capsys.readouterr().out and not (tmp_path / "x").exists()


def test_from_the_command_line(tiny_model: TinyModel, tmp_path: Path) -> None:
    words = ["--to", "legacy", "--target-tp", "2", "--target-pp", "2", "--target-vpp", "2", "--layer-spec", "local"]
    assert main(["convert", str(tiny_model("llama")), str(tmp_path / "legacy"), *words]) == 0
    assert len(list((tmp_path / "legacy" / "release").glob("mp_rank_0?_00?/model_optim_rng.pt"))) == 4
    shutil.move(tmp_path / "legacy" / "release" / "hf", tmp_path / "elsewhere")
    back = ["convert", str(tmp_path / "legacy"), str(tmp_path / "hf"), "--config", str(tmp_path / "elsewhere")]
    assert main(back) == 0
    assert_same_model(tmp_path / "hf", tiny_model("llama"))


def test_an_interruption_is_gone_on_from(
    tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Options(target_tp=2, target_pp=2)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "finish", interrupted)
        convert(tiny_model("llama"), tmp_path / "x", to="legacy", options=chosen)
    assert legacy.find(tmp_path / "x") is None
    copied: list[Any] = []
    monkeypatch.setattr(engine, "copy", lambda *arguments: copied.append(arguments))
    convert(tiny_model("llama"), tmp_path / "x", to="legacy", options=chosen)
    assert copied == []
    monkeypatch.undo()
    convert(tmp_path / "x", tmp_path / "hf")
    assert_same_model(tmp_path / "hf", tiny_model("llama"))
