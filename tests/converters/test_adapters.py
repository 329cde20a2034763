"""LoRA from PEFT to Megatron and back, against peft, against torch alone, and for megatron-core's own loader."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from converters import checkpoint
from converters.convert import convert
from converters.family import family_of
from converters.options import Options
from converters.stores.torch_dist import open_checkpoint
from swift_mega.base.errors import UserError
from swift_mega.cli.main import main
from tests.support import adapters, tiny
from tests.support.adapters import ADAPTERS, Adapter, tiny_name
from tests.support.space import assembled

from .reshape import llama_named, load, reshaped

LAYERS = 4
PATTERNS = (("rank", "r"), ("alpha", "lora_alpha"))


def _logits(base: Path, adapter: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        logits: torch.Tensor = peft.PeftModel.from_pretrained(model, adapter)(torch.arange(16)[None]).logits
    return logits


def _tensors(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(adapter / "adapter_model.safetensors")


def _in_megatron(root: Path) -> dict[str, torch.Tensor]:
    """Every tensor by its key, with the layers in a leading axis."""
    stored = open_checkpoint(checkpoint.latest(root))
    return {key: torch.from_numpy(assembled(stored.stored(key)).copy()) for key in stored.tensors}


def changed(adapter: Path, folder: Path, said: dict[str, Any]) -> Path:
    """A copy in whose adapter_config.json something else is said."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    return folder


@pytest.mark.parametrize("name", ADAPTERS)
def test_there_and_back_is_the_same_file(name: str, adapter: Adapter, tmp_path: Path) -> None:
    convert(adapter(name), tmp_path / "megatron")
    shutil.move(tmp_path / "megatron", tmp_path / "alone")  # nothing but the checkpoint is needed
    convert(tmp_path / "alone", tmp_path / "peft")
    for file in sorted(adapter(name).iterdir()):
        assert (tmp_path / "peft" / file.name).read_bytes() == file.read_bytes(), file.name
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {path.name for path in adapter(name).iterdir()}
    assert main(["convert", "verify", str(adapter(name)), str(tmp_path / "alone")]) == 0


@pytest.mark.parametrize("tensor", ["in_proj_qkvz.weight", "in_proj_ba.lora_A.weight"])
def test_what_megatron_has_in_parts_is_not_adapted(tensor: str, adapter: Adapter, tmp_path: Path) -> None:
    name = f"base_model.model.model.layers.0.linear_attn.{tensor}"
    shutil.copytree(adapter("gated"), tmp_path / "adapter")
    shape = (144, 32) if "qkvz" in tensor else (2, 32)
    tensors = _tensors(adapter("gated")) | {name: torch.ones(shape)}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"holds what Megatron has no place for: `{name}`") as error:
        convert(tmp_path / "adapter", tmp_path / "megatron")
    assert "in parts (in_proj of Mamba and of gated delta nets)" in error.value.fix


@pytest.mark.parametrize(
    ("base", "targets"), [("qwen3-next", ["in_proj_qkvz", "in_proj_ba"]), ("llama", ["embed_tokens"])]
)
def test_what_cannot_be_converted_can_be_merged_as_its_error_says(
    base: str, targets: list[str], tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    import peft
    import transformers

    folder = adapters.adapt(tiny_model(base), tmp_path / "adapter", target_modules=targets, r=2)
    with pytest.raises(UserError, match=rf"--adapter {folder}` merges these, too"):
        convert(folder, tmp_path / "megatron")
    convert(tiny_model(base), tmp_path / "merged", to="hf", options=Options(adapter=folder))
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model(base))
    expected = peft.PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    found = load(tmp_path / "merged")
    for name in (name for name in found if any(target in name for target in targets)):
        torch.testing.assert_close(found[name], expected[name])


def test_only_the_config_of_the_base_is_needed(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    shutil.copy(adapter("attention").parent / "base" / "config.json", tmp_path / "config")
    shutil.copytree(adapter("attention"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"whose config.json is needed.*\n.*--config FOLDER"):
        convert(tmp_path / "adapter", tmp_path / "megatron")
    convert(tmp_path / "adapter", tmp_path / "megatron", options=Options(config=tmp_path / "config"))
    assert "decoder.layers.self_attention.linear_qkv.adapter.adapter_q.linear_in.weight" in _in_megatron(
        tmp_path / "megatron"
    )


def _change(name: str, adapter: Path) -> dict[str, torch.Tensor]:
    """What the adapter adds to Megatron's weights, but for the scale: B·A of every layer, reshaped by torch alone."""
    config = checkpoint.read_config(adapter.parent / "base")
    added = {key: torch.zeros_like(tensor) for key, tensor in load(adapter.parent / "base").items()}
    found = _tensors(adapter)
    for key in found:
        if key.endswith("lora_A.weight"):
            weight = key.removeprefix("base_model.model.").replace(".lora_A", "")
            added[weight] = found[key.replace("lora_A", "lora_B")] @ found[key]
    padded = -(-config["vocab_size"] // 128) * 128
    return reshaped(llama_named(added, config), LAYERS, config["num_key_value_heads"], padded)


@pytest.mark.parametrize("name", ["attention", "every-linear", "in-one"])
def test_fused_factors_multiply_to_the_change_of_the_fused_weight(name: str, adapter: Adapter, tmp_path: Path) -> None:
    convert(adapter(name), tmp_path / "megatron", options=Options(lora="fused"))
    found, expected = _in_megatron(tmp_path / "megatron"), _change(name, adapter(name))
    products = {
        key.replace(".adapter.linear_in", ""): found[key.replace("linear_in", "linear_out")] @ found[key]
        for key in found
        if key.endswith(".adapter.linear_in.weight")
    }
    assert len(products) == len(found) // 2
    for key, product in products.items():
        torch.testing.assert_close(product, expected[key])


@pytest.mark.parametrize("name", ["experts", "experts-interleaved"])
def test_factors_of_experts_multiply_to_what_peft_merges(name: str, adapter: Adapter, tmp_path: Path) -> None:
    base = adapter(name).parent / "base"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(model, adapter(name)).merge_and_unload().state_dict()
    said = json.loads((adapter(name) / "adapter_config.json").read_text())
    convert(adapter(name), tmp_path / "megatron")
    found = _in_megatron(tmp_path / "megatron")
    for module, parameter in (("linear_fc1", "gate_up_proj"), ("linear_fc2", "down_proj")):
        key = f"decoder.layers.mlp.experts.experts.{module}.adapter.linear_"
        rank, alpha = (
            next((value for end, value in said[f"{what}_pattern"].items() if end.endswith(parameter)), said[own])
            for what, own in PATTERNS
        )
        assert found[f"{key}in.weight"].shape[2] == rank
        product = found[f"{key}out.weight"] @ found[f"{key}in.weight"] * alpha / rank
        for layer in range(LAYERS):
            weight = f"model.layers.{layer}.mlp.experts.{parameter}"
            change = merged[weight] - before[weight]
            if name == "experts-interleaved":
                change = change.mT
                if parameter == "gate_up_proj":
                    change = torch.cat([change[:, ::2], change[:, 1::2]], 1)
            torch.testing.assert_close(product[layer], change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["attention", "every-linear"])
def test_fused_factors_come_back_as_the_same_function(name: str, adapter: Adapter, tmp_path: Path) -> None:
    convert(adapter(name), tmp_path / "megatron", options=Options(lora="fused"))
    convert(tmp_path / "megatron", tmp_path / "peft")
    base = adapter(name).parent / "base"
    before, after = _logits(base, adapter(name)), _logits(base, tmp_path / "peft")
    torch.testing.assert_close(after, before)
    assert not torch.allclose(
        before, transformers.AutoModelForCausalLM.from_pretrained(base)(torch.arange(16)[None])[0]
    )


def test_a_shared_input_factor_is_kept_as_one(adapter: Adapter, tmp_path: Path) -> None:
    shutil.copytree(adapter("every-linear"), tmp_path / "adapter")
    tensors = _tensors(tmp_path / "adapter")
    for key in tensors:
        for part, first in (("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj")):
            if key.endswith(f"{part}.lora_A.weight"):
                tensors[key] = tensors[key.replace(part, first)].clone()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "adapter", tmp_path / "megatron", options=Options(lora="fused"))
    qkv = _in_megatron(tmp_path / "megatron")["decoder.layers.self_attention.linear_qkv.adapter.linear_in.weight"]
    assert qkv.shape == (LAYERS, 3, 32)
    convert(tmp_path / "megatron", tmp_path / "peft")
    name = "adapter_model.safetensors"
    assert (tmp_path / "peft" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_each_expert_has_an_adapter_of_its_own(adapter: Adapter, tmp_path: Path) -> None:
    """As transformers 4 has experts: each a module, which peft adapts by itself."""
    base = tiny.save(tiny_name("qwen3_moe"), tmp_path / "base")
    config = checkpoint.read_config(base)
    arguments = family_of(config).megatron_arguments(config)
    experts, wide, narrow = arguments.num_moe_experts, arguments.hidden_size, arguments.moe_ffn_hidden_size
    assert experts and narrow
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{part}_proj.lora_{factor}.weight": torch.randn(
            shape, generator=generator
        )
        for layer in range(LAYERS)
        for expert in range(experts)
        for part, out, into in (("gate", narrow, wide), ("up", narrow, wide), ("down", wide, narrow))
        for factor, shape in (("A", (2, into)), ("B", (out, 2)))
    }
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    convert(tmp_path / "adapter", tmp_path / "megatron")
    found = _in_megatron(tmp_path / "megatron")
    up = found["decoder.layers.mlp.experts.experts.linear_fc1.adapter.adapter_up.linear_out.weight"]
    assert up.shape == (LAYERS, experts, narrow, 2)
    assert torch.equal(up[2, 1], tensors["base_model.model.model.layers.2.mlp.experts.1.up_proj.lora_B.weight"])
    convert(tmp_path / "megatron", tmp_path / "peft")
    name = "adapter_model.safetensors"
    assert (tmp_path / "peft" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()

    some = {key: tensor for key, tensor in tensors.items() if ".1.mlp.experts.2." not in key}
    save_file(some, tmp_path / "adapter" / name, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"adapts {experts - 1} of the {experts} experts"):
        convert(tmp_path / "adapter", tmp_path / "other")


@pytest.mark.usefixtures("megatron")
def test_megatron_core_loads_slices_of_it(adapter: Adapter, tmp_path: Path) -> None:
    """As a column-parallel `linear_out` under TP2 asks for it: half of the rows of every layer."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    key = "decoder.layers.self_attention.linear_qkv.adapter.adapter_q.linear_out.weight"
    convert(adapter("attention"), tmp_path / "megatron")
    state = {
        f"{layer} {half}": ShardedTensor.from_rank_offsets(
            key, torch.zeros(16, 4), (0, layer, LAYERS), (1, half, 2), prepend_axis_num=1
        )
        for layer in range(LAYERS)
        for half in range(2)
    }
    loaded = dist_checkpointing.load(state, str(checkpoint.latest(tmp_path / "megatron")))
    for layer in range(LAYERS):
        whole = _tensors(adapter("attention"))[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_B.weight"]
        assert torch.equal(torch.cat([loaded[f"{layer} 0"], loaded[f"{layer} 1"]]), whole)


def test_what_has_no_place_is_named_or_kept(adapter: Adapter, tmp_path: Path) -> None:
    shutil.copytree(adapter("attention"), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    embedding = {"base_model.model.model.embed_tokens.lora_embedding_A": torch.randn(4, 151)}
    save_file(load_file(file) | embedding, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no place for: .*lora_embedding_A.*\n.*--allow-unmapped"):
        convert(tmp_path / "adapter", tmp_path / "megatron")
    convert(tmp_path / "adapter", tmp_path / "megatron", options=Options(allow_unmapped=True))
    convert(tmp_path / "megatron", tmp_path / "peft")
    assert (tmp_path / "peft" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dora", {"lora": "fused"}, "DoRA, which layers that share"),
        ("bias", {"lora": "fused"}, "LoRA with a bias, which layers that share"),
        ("patterns", {"lora": "fused"}, "different scales: .*k_proj 1, .*q_proj 4"),
    ],
)
def test_what_cannot_be_fused_is_refused(
    name: str, options: dict[str, Any], message: str, adapter: Adapter, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        convert(adapter(name), tmp_path / "megatron", options=Options(**options))
    assert not list(tmp_path.iterdir())


def test_other_mistakes(adapter: Adapter, tmp_path: Path) -> None:
    shutil.copytree(adapter("attention"), tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(config.read_text())

    def refusal(to: Any = None, **options: Any) -> str:
        with pytest.raises(UserError) as error:
            convert(tmp_path / "adapter", tmp_path / "megatron", to=to, options=Options(**options))
        return str(error.value)

    assert "is a PEFT adapter folder of plain weights already" in refusal(to="hf")
    assert "it cannot become --to legacy" in refusal(to="legacy")
    other = adapter("every-linear").parent / "base"  # with larger heads
    assert "q_proj.lora_B.weight` has shape [32, 4]; by the base model's config.json it has [64, 4]" in refusal(
        config=other
    )
    config.write_text(json.dumps(said | {"peft_type": "IA3"}))
    assert "is of peft_type 'IA3'" in refusal()
    config.write_text(json.dumps(said))
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    assert "adapter_model.bin is never opened" in refusal()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"lora_alpha": None}, "lora_alpha: null.*\n.*finite number"),
        ({"lora_alpha": float("nan")}, "lora_alpha: NaN"),
        ({"alpha_pattern": {"(": 3}}, r'alpha_pattern: "\(".*\n.*regular expressions'),
        ({"alpha_pattern": {"q_proj": "3"}}, """alpha_pattern of 'q_proj': "3\""""),
        ({"rank_pattern": [4]}, r"rank_pattern: \[4\]"),
        ({"r": 0}, "r: 0.*\n.*whole number from 1 on"),
    ],
)
def test_ranks_and_alphas_that_are_no_numbers(
    said: dict[str, Any], message: str, adapter: Adapter, tmp_path: Path
) -> None:
    """Whether the adapter becomes one of Megatron or is merged."""
    base, folder = adapter("attention").parent / "base", changed(adapter("attention"), tmp_path / "adapter", said)
    for source, options in ((folder, Options()), (base, Options(adapter=folder))):
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / "out", options=options)


def test_factors_that_are_not_what_is_said(adapter: Adapter, tmp_path: Path) -> None:
    base = adapter("attention").parent / "base"

    def refusals(folder: Path, source: Path) -> list[str]:
        """As it becomes one of Megatron and is merged, or comes from there."""
        found = []
        for one, options in (
            (source, Options(config=folder if source != folder else None)),
            (base, Options(adapter=folder)),
        ):
            with pytest.raises(UserError) as error:
                convert(one, tmp_path / "out", options=options)
            found.append(str(error.value))
        return found

    cases: list[dict[str, Any]] = [{"r": 3}, {"rank_pattern": {"layers.1.self_attn.q_proj": 3}}]
    for number, said in enumerate(cases):
        folder = changed(adapter("attention"), tmp_path / f"rank-{number}", said)
        for message in refusals(folder, folder):
            assert ".self_attn.q_proj the rank 3; its factors have 4" in message
    convert(adapter("attention"), tmp_path / "megatron")
    shutil.copy(base / "config.json", tmp_path / "rank-0" / "config.json")
    assert "the rank 3; its factors have 4" in refusals(tmp_path / "rank-0", tmp_path / "megatron")[0]

    folder = changed(adapter("attention"), tmp_path / "one", {})
    tensors = _tensors(folder)
    del tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    alone, merged = refusals(folder, folder)
    assert "but not `model.layers.2.self_attn.q_proj.lora_B.weight`" in alone
    assert "no layer of the base with both factors" in merged
