"""The families whose layers are not all of one kind: config, tensors, keys, and what megatron-core itself stores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from converters import checkpoint
from converters.convert import convert
from converters.family import family_of
from converters.missing import MISSING, check_trainable
from converters.options import Options
from converters.stores.legacy import FILE
from converters.stores.torch_dist import open_checkpoint
from swift_mega.base.errors import UserError
from tests.support import tiny_hybrid

from .both_ways import assert_config_goes_both_ways
from .mamba_without_kernels import mamba_model
from .reshape import load
from .test_convert import assert_same_model
from .test_expert_families import changed, view_of, whole
from .test_view import assert_pieces_are_the_tensors

TinyModel = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
ALL = tiny_hybrid.MODELS | tiny_hybrid.CONVERTED_ONLY
MAMBA = tuple(tiny_hybrid.CONVERTED_ONLY)


@pytest.mark.parametrize("name", ALL)
def test_config_goes_both_ways(name: str, tiny_model: TinyModel) -> None:
    assert_config_goes_both_ways(tiny_model(name))


@pytest.mark.parametrize("name", MAMBA)
def test_what_megatron_lacks_is_named(name: str, tiny_model: TinyModel) -> None:
    arguments = view_of(tiny_model(name)).arguments
    with pytest.raises(UserError, match="lacks what this model needs: Mamba layers outside its MambaModel"):
        check_trainable(arguments)
    assert set(arguments.missing) <= set(MISSING)


@pytest.mark.parametrize("name", ALL)
def test_pieces_put_together_are_the_tensor(name: str, tiny_model: TinyModel) -> None:
    assert_pieces_are_the_tensors(view_of(tiny_model(name)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ALL)
def test_round_trip_is_byte_identical(name: str, dtype: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    convert(tiny_model(name, dtype), tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "hf")
    assert_same_model(tiny_model(name, dtype), tmp_path / "hf")
    assert checkpoint.read_config(tiny_model(name, dtype)) == checkpoint.read_config(tmp_path / "hf")


@pytest.mark.parametrize("name", ALL)
def test_round_trip_by_way_of_ranks(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """Two ranks where the heads allow it; one tensor of a rank is several parts there."""
    config = checkpoint.read_config(tiny_model(name))
    uneven = config.get("n_groups") in (1, 3)
    options = Options(target_tp=1 if uneven else 2, target_pp=1 if uneven else 2)
    convert(tiny_model(name), tmp_path / "legacy", to="legacy", options=options)
    convert(tmp_path / "legacy", tmp_path / "hf")
    assert_same_model(tiny_model(name), tmp_path / "hf")


def test_mamba_has_no_virtual_stages(tiny_model: TinyModel, tmp_path: Path) -> None:
    """megatron.core.ssm.mamba_block asserts that there are none."""
    for name in ("mamba2", "nemotron-h"):
        with pytest.raises(UserError, match="megatron-core's MambaModel has no virtual pipeline stages"):
            convert(tiny_model(name), tmp_path / "x", to="legacy", options=Options(target_pp=2, target_vpp=2))


def test_mtp_of_nemotron_h_is_kept_beside(tiny_model: TinyModel, tmp_path: Path) -> None:
    """transformers leaves these tensors alone, and megatron-core's MambaModel has no such layers."""

    def with_more(tensors: Tensors) -> Tensors:
        return tensors | {
            "mtp.layers.0.enorm.weight": torch.rand(32),
            "mtp.layers.0.eh_proj.weight": torch.rand(32, 64),
        }

    folder = changed(tiny_model("nemotron-h"), tmp_path / "mtp", with_more)
    with pytest.raises(UserError, match=r"without a place: `mtp\.layers\.0\.eh_proj"):
        convert(folder, tmp_path / "megatron")
    convert(folder, tmp_path / "megatron", options=Options(allow_unmapped=True))
    convert(tmp_path / "megatron", tmp_path / "hf")
    assert_same_model(folder, tmp_path / "hf")


def test_a_rank_has_its_share_of_each_part(tiny_model: TinyModel, tmp_path: Path) -> None:
    """Order of a rank's projection: megatron.core.ssm.mamba_mixer, `# z x B C dt`."""
    convert(tiny_model("mamba2"), tmp_path / "legacy", to="legacy", options=Options(target_tp=2))
    z, x, b, c, dt = load(tiny_model("mamba2"))["backbone.layers.1.mixer.in_proj.weight"].split([64, 64, 10, 10, 8])
    for rank in range(2):
        state = torch.load(tmp_path / "legacy" / "release" / f"mp_rank_{rank:02d}" / FILE, weights_only=False)["model"]
        own = torch.cat([part.chunk(2)[rank] for part in (z, x, b, c, dt)])
        assert torch.equal(state["decoder.layers.1.mixer.in_proj.weight"], own)
        assert "decoder.layers.1.mixer.in_proj._extra_state" in state
        assert "decoder.layers.1.mixer.norm._extra_state" not in state


def test_a_cast_leaves_what_megatron_has_in_fp32(tiny_model: TinyModel, tmp_path: Path) -> None:
    convert(tiny_model("nemotron-h"), tmp_path / "megatron", options=Options(dtype="bfloat16"))
    tensors = open_checkpoint(checkpoint.latest(tmp_path / "megatron")).tensors
    wide = {key.rpartition(".")[2] for key, spec in tensors.items() if spec.dtype == "float32"}
    assert wide == {"A_log", "D", "expert_bias"}


def test_gated_delta_net_is_taken_apart_as_transformers_does(tiny_model: TinyModel) -> None:
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    folder = tiny_model("qwen3-next")
    tensors, view = load(folder), view_of(folder)
    net = Qwen3NextGatedDeltaNet(transformers.AutoConfig.from_pretrained(folder), layer_idx=1)
    hf, own = "model.layers.1.linear_attn.", "decoder.layers.1.self_attention."
    mixed = (tensors[f"{hf}in_proj_{name}.weight"].T.unsqueeze(0) for name in ("qkvz", "ba"))
    parts = net.fix_query_key_value_ordering(*mixed)
    for name, part in zip(("query", "key", "value", "z", "beta", "alpha"), parts, strict=True):
        assert torch.equal(whole(view, f"{own}in_proj.weight.{name}"), part.reshape(part.size(1), -1).T), name
    for name, part in zip(("query", "key", "value"), tensors[hf + "conv1d.weight"].split([12, 12, 60]), strict=True):
        assert torch.equal(whole(view, f"{own}conv1d.weight.{name}"), part), name
    for name, theirs in {
        "A_log": "linear_attn.A_log",
        "dt_bias": "linear_attn.dt_bias",
        "out_norm.weight": "linear_attn.norm.weight",
        "out_proj.weight": "linear_attn.out_proj.weight",
        "in_proj.layer_norm_weight": "input_layernorm.weight",
    }.items():
        assert torch.equal(whole(view, own + name), tensors["model.layers.1." + theirs]), name


@pytest.mark.parametrize(
    ("name", "kind", "layer", "groups", "head"),
    [
        ("qwen3-next", "weight", 3, 2, 16),
        ("qwen3-next-dense-layers", "weight", 2, 1, 8),
        ("qwen3-next-dense-layers", "bias", 2, 1, 8),
    ],
)
def test_gates_stand_behind_the_queries_of_their_group(
    name: str, kind: str, layer: int, groups: int, head: int, tiny_model: TinyModel
) -> None:
    tensors, view = load(tiny_model(name)), view_of(tiny_model(name))
    q, k, v = (tensors[f"model.layers.{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv")
    per_group, rows = q.size(0) // (2 * head * groups), []
    for group in range(groups):
        heads = [q[2 * head * number :] for number in range(group * per_group, (group + 1) * per_group)]
        rows += [own[:head] for own in heads] + [own[head : 2 * head] for own in heads]
        rows += [k[group * head : (group + 1) * head], v[group * head : (group + 1) * head]]
    assert torch.equal(whole(view, f"decoder.layers.{layer}.self_attention.linear_qkv.{kind}"), torch.cat(rows))


def with_mtp(tensors: Tensors) -> Tensors:
    """Qwen3-Next with the layer that its own files have and transformers does not load."""
    generator = torch.Generator().manual_seed(0)
    block = {
        name.replace("model.layers.3.", "mtp.layers.0."): -tensor
        for name, tensor in tensors.items()
        if name.startswith("model.layers.3.")
    }
    norms = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    own = {f"mtp.{name}.weight": torch.randn(32, generator=generator) for name in norms}
    return tensors | block | own | {"mtp.fc.weight": torch.randn(32, 64, generator=generator)}


def test_the_layer_that_predicts_a_further_token(tiny_model: TinyModel, tmp_path: Path) -> None:
    folder = changed(tiny_model("qwen3-next"), tmp_path / "mtp", with_mtp)
    view = view_of(folder)
    last, mtp = "decoder.layers.3.", "mtp.layers.0."
    assert {key.removeprefix(mtp) for key in view.tensors if key.startswith(mtp)} == {
        *("enorm.weight", "hnorm.weight", "eh_proj.weight", "final_layernorm.weight"),
        *(key.replace(last, "transformer_layer.") for key in view.tensors if key.startswith(last)),
    }
    qkv = "self_attention.linear_qkv.weight"
    assert torch.equal(whole(view, f"{mtp}transformer_layer.{qkv}"), -whole(view, last + qkv))
    assert torch.equal(whole(view, mtp + "enorm.weight"), load(folder)["mtp.pre_fc_norm_embedding.weight"])
    convert(folder, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "hf")
    assert_same_model(folder, tmp_path / "hf")


def fused(tensors: Tensors) -> Tensors:
    """Nemotron-H's experts as transformers has them in memory."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for name in ("up_proj", "down_proj"):
        experts = [tensors[f"backbone.layers.3.mixer.experts.{expert}.{name}.weight"] for expert in range(2)]
        found[f"backbone.layers.3.mixer.experts.{name}"] = torch.stack(experts)
    return found


def test_fused_experts_are_the_same_tensors(tiny_model: TinyModel, tmp_path: Path) -> None:
    apart = view_of(tiny_model("nemotron-h"))
    view = view_of(changed(tiny_model("nemotron-h"), tmp_path / "fused", fused))
    assert view.tensors == apart.tensors
    for key in view.tensors:
        assert torch.equal(whole(view, key), whole(apart, key)), key


PATTERNS: dict[str, dict[str, Any]] = {
    "letters": {"hybrid_override_pattern": "M*-E"},
    "names": {"layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"]},
    "old names": {"layers_block_type": ["mamba", "attention", "mlp", "moe"]},
}


@pytest.mark.parametrize("spelling", PATTERNS)
def test_spellings_of_a_pattern(spelling: str) -> None:
    config = {"architectures": ["NemotronHForCausalLM"], "num_attention_heads": 8, **PATTERNS[spelling]}
    arguments = family_of(config).megatron_arguments(config)
    assert (arguments.hybrid_override_pattern, arguments.num_layers) == ("M*-E", 4)
    kinds = [arguments.layers(kind) for kind in ("mamba", "attention", "dense", "moe", "linear attention")]
    assert kinds == [[0], [1], [2], [3], []]
    theirs = transformers.CONFIG_MAPPING["nemotron_h"](**PATTERNS[spelling])
    assert theirs.hybrid_override_pattern == "M*-E"


def test_every_fourth_layer_has_full_attention(tiny_model: TinyModel) -> None:
    config = checkpoint.read_config(tiny_model("qwen3-next")) | {"num_hidden_layers": 6}
    del config["layer_types"]
    arguments = family_of(config).megatron_arguments(config)
    assert (arguments.layers("attention"), arguments.layers("linear attention")) == ([3], [0, 1, 2, 4, 5])
    every_second = family_of(config).megatron_arguments(config | {"full_attention_interval": 2})
    assert every_second.layers("attention") == [1, 3, 5]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown kind": ("nemotron-h", {"layers_block_type": ["mamba", "conv"]}, "do not say what each layer is"),
    "bias of the mixer": ("mamba2", {"use_bias": True}, "`use_bias` is True"),
    "no bias of the convolution": ("nemotron-h", {"use_conv_bias": False}, "`use_conv_bias` is False"),
    "bias of the MLP": ("nemotron-h", {"mlp_bias": True}, "`mlp_bias` is True"),
    "too few layer types": ("qwen3-next", {"layer_types": ["full_attention"]}, "1 entries for 4 layers"),
    "layer type": ("qwen3-next", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
    "MTP layers": ("qwen3-next", {"num_nextn_predict_layers": 2}, "`num_nextn_predict_layers` is 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_said_is_refused(case: str, tiny_model: TinyModel) -> None:
    name, own, message = REFUSED[case]
    config = checkpoint.read_config(tiny_model(name)) | own
    with pytest.raises(UserError) as error:
        family_of(config).megatron_arguments(config)
    assert message in str(error.value)


def load_strictly(model: Any, folder: Path) -> None:
    """With megatron-core's own dist_checkpointing; what the model has no place for is an error, too."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedObject, apply_factories
    from megatron.core.dist_checkpointing.validation import StrictHandling

    stored = open_checkpoint(folder)
    state = model.sharded_state_dict()
    apply_factories(state)
    values = list(nested_values(state))
    tensors = {value.key: value for value in values if not isinstance(value, ShardedObject)}
    assert set(tensors) == set(stored.tensors)
    for key, spec in stored.tensors.items():
        assert tuple(tensors[key].global_shape) == spec.shape, key
    assert {value.unique_key for value in values if isinstance(value, ShardedObject)} <= set(stored.objects)
    for parameter in model.parameters():
        parameter.data.fill_(7)
    loaded = dist_checkpointing.load(
        {"model": model.sharded_state_dict()}, str(folder), strict=StrictHandling.RAISE_UNEXPECTED
    )
    model.load_state_dict(loaded["model"])


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize("name", [name for name in MAMBA if name != "nemotron-h-experts"])
def test_megatrons_mamba_model_loads_strictly(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    """On one rank its tensors are Hugging Face's. (Latents of experts it builds with TransformerEngine alone.)"""
    convert(tiny_model(name), tmp_path / "megatron")
    arguments = view_of(tiny_model(name)).arguments
    model = mamba_model(arguments, vocab_size=128)
    load_strictly(model, checkpoint.latest(tmp_path / "megatron"))
    wanted = load(tiny_model(name))
    compared = 0
    for number in arguments.layers("mamba"):
        own, theirs = model.decoder.layers[number], f"backbone.layers.{number}."
        for parameter, tensor in own.mixer.named_parameters():
            assert torch.equal(tensor, wanted[f"{theirs}mixer.{parameter}"]), parameter
            compared += 1
        assert torch.equal(own.norm.weight, wanted[theirs + "norm.weight"])
    assert compared == 8 * len(arguments.layers("mamba"))
    assert torch.equal(model.decoder.final_norm.weight, wanted["backbone.norm_f.weight"])


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize("name", tiny_hybrid.MODELS)
def test_megatrons_gated_delta_net_loads_strictly(name: str, tiny_model: TinyModel, tmp_path: Path) -> None:
    from megatron.core.ssm.gated_delta_net import GatedDeltaNet

    from swift_mega.model.build import build_model
    from swift_mega.model.config import ModelConfig
    from swift_mega.parallel.config import ParallelConfig
    from swift_mega.train.config import TrainConfig

    folder = tiny_model(name)
    convert(folder, tmp_path / "megatron")
    options = ModelConfig(path=str(folder), precision="fp32")
    (model,) = build_model(checkpoint.read_config(folder), options, ParallelConfig(), TrainConfig(steps=1), 16)
    load_strictly(model, checkpoint.latest(tmp_path / "megatron"))
    view, found = view_of(folder), 0
    for number, layer in enumerate(model.decoder.layers):
        if isinstance(layer.self_attention, GatedDeltaNet):
            own = f"decoder.layers.{number}.self_attention."
            names = ("query", "key", "value", "z", "beta", "alpha")
            parts = [whole(view, f"{own}in_proj.weight.{part}") for part in names]
            assert torch.equal(layer.self_attention.in_proj.weight, torch.cat(parts))
            found += 1
    assert found == len(view.arguments.layers("linear attention")) > 0
