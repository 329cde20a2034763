"""Megatron to Megatron: a checkpoint of a real run written anew, with everything that is in it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters import checkpoint
from converters.convert import convert
from converters.options import Options
from converters.relayout import _renamed
from converters.stores import torch_dist, torch_zip
from converters.stores.torch_dist import open_checkpoint
from swift_mega.base.errors import UserError
from tests.support import cli
from tests.support.place import Place
from tests.support.runs import values
from tests.train.test_resume import tensors

EMBEDDING = "embedding.word_embeddings.weight"


@pytest.fixture
def written(two_steps: Place, tmp_path: Path) -> Callable[..., Path]:
    """The checkpoint of step 2, written anew."""

    def make(name: str = "again", **options: Any) -> Path:
        convert(two_steps.output / "checkpoints", tmp_path / name, to="megatron", options=Options(**options))
        return checkpoint.latest(tmp_path / name)

    return make


def saved(place: Place) -> Path:
    return checkpoint.latest(place.output / "checkpoints")


def objects(folder: Path) -> dict[str, bytes]:
    stored = open_checkpoint(folder)
    return {key: stored.object(key) for key in stored.objects}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not np.array_equal(one[key], other[key])] == []


def test_as_it_is(two_steps: Place, written: Callable[..., Path]) -> None:
    folder, original = written(), saved(two_steps)
    assert folder.name == original.name == "iter_0000002"
    assert any(key.startswith("optimizer.state.exp_avg.decoder.layers.") for key in tensors(original))
    assert_equal(tensors(folder), tensors(original))
    assert objects(folder) == objects(original)
    for name in ("common.pt", "run.yaml", "hf/config.json", "hf/tokenizer.json"):
        assert (folder / name).read_bytes() == (original / name).read_bytes()


def test_another_padding(two_steps: Place, written: Callable[..., Path]) -> None:
    """Weights, fp32 copies and moments alike; there and back only padding is gone."""
    folder, original = written(vocab_divisible_by=8), saved(two_steps)
    mine, theirs = tensors(folder), tensors(original)
    padded = [key for key in mine if key.endswith((EMBEDDING, "output_layer.weight"))]
    assert len(padded) == 8 and mine.keys() == theirs.keys()
    for key in padded:
        assert open_checkpoint(folder).tensors[key].shape == (304, 32)
        assert np.array_equal(mine[key], theirs[key][:304])
    assert_equal(*({key: own[key] for key in own if key not in padded} for own in (mine, theirs)))
    convert(folder, folder.parents[1] / "wide", to="megatron", options=Options(vocab_divisible_by=128))
    wide = tensors(checkpoint.latest(folder.parents[1] / "wide"))
    for key in padded:
        assert len(wide[key]) == 384 and np.array_equal(wide[key][:304], mine[key]) and not wide[key][304:].any()


def test_keys_of_layers_apart_and_back(two_steps: Place, written: Callable[..., Path]) -> None:
    folder, original = written(keys="per-layer"), saved(two_steps)
    mine, theirs = tensors(folder), tensors(original)
    for prefix in ("", "optimizer.state.exp_avg_sq."):
        key = "mlp.linear_fc2.weight"
        stacked = theirs[f"{prefix}decoder.layers.{key}"]
        assert np.array_equal(np.stack([mine[f"{prefix}decoder.layers.{n}.{key}"] for n in range(4)]), stacked)
    assert open_checkpoint(folder).common()["content_metadata"] == {
        "distrib_optim_sharding_type": "fully_reshardable",
        "non_homogeneous_layers": True,
        "singleton_local_shards": False,
    }
    convert(folder, folder.parents[1] / "back", to="megatron", options=Options(keys="stacked"))
    back = checkpoint.latest(folder.parents[1] / "back")
    assert_equal(tensors(back), theirs)
    assert objects(back) == objects(original)


@pytest.mark.parametrize(
    ("stacked", "apart"),
    [
        (
            "decoder.layers.mlp.linear_fc1._extra_state/shard_2_4",
            "decoder.layers.2.mlp.linear_fc1._extra_state/shard_0_1",
        ),
        (
            "decoder.layers.mlp.experts.experts.linear_fc1._extra_state/shard_2.5_4.8",
            "decoder.layers.2.mlp.experts.experts.linear_fc1._extra_state/shard_5_8",
        ),
        ("decoder.final_layernorm._extra_state/shard_0_1", "decoder.final_layernorm._extra_state/shard_0_1"),
        ("rng_state/shard_0.0.0_1.1.1", "rng_state/shard_0.0.0_1.1.1"),
    ],
)
def test_names_of_objects(stacked: str, apart: str) -> None:
    assert _renamed(stacked, "per-layer", 4, 8) == apart == _renamed(apart, "per-layer", 4, 8)
    assert _renamed(apart, "stacked", 4, 8) == stacked == _renamed(stacked, "stacked", 4, 8)
    singleton = "decoder.layers.2.mlp.experts.experts.5.linear_fc1._extra_state/shard_0_1"
    assert _renamed(singleton, "stacked", 4, 8).endswith("experts.linear_fc1._extra_state/shard_2.5_4.8")


def test_another_dtype_is_of_the_weights_alone(two_steps: Place, written: Callable[..., Path]) -> None:
    folder, original = written(dtype="bfloat16"), saved(two_steps)
    mine, theirs = tensors(folder), tensors(original)
    state = {key for key in mine if key.startswith("optimizer.")}
    assert_equal(*({key: own[key] for key in state} for own in (mine, theirs)))
    for key in mine.keys() - state:
        expected = torch.from_numpy(theirs[key]).view(torch.float32).bfloat16().view(torch.uint8)
        assert torch.equal(torch.from_numpy(mine[key]), expected)


def test_weights_only(two_steps: Place, written: Callable[..., Path]) -> None:
    folder, theirs = written(weights_only=True), tensors(saved(two_steps))
    assert folder.name == "release" and not (folder / "run.yaml").exists()
    assert_equal(tensors(folder), {key: own for key, own in theirs.items() if not key.startswith("optimizer.")})


def test_layers_of_several_kinds_stay_apart(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not all of one kind"):
        convert(tiny_model("qwen3-moe-dense-layers"), tmp_path / "x", options=Options(keys="stacked"))


def test_layers_apart_from_hugging_face(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    convert(tiny_model("qwen3-moe"), tmp_path / "one", options=Options(keys="per-layer"))
    convert(tiny_model("qwen3-moe"), tmp_path / "two")
    convert(tmp_path / "one", tmp_path / "again", to="megatron", options=Options(keys="stacked"))
    one, two = (checkpoint.latest(tmp_path / name) for name in ("again", "two"))
    assert "decoder.layers.3.mlp.router.weight" in tensors(checkpoint.latest(tmp_path / "one"))
    assert_equal(tensors(one), tensors(two))
    assert objects(one) == objects(two)


def test_state_that_fits_one_layout_only(two_steps: Place, tmp_path: Path) -> None:
    """Optimizer state in buckets comes along as it is, and forbids what would change the buckets."""
    stored = open_checkpoint(saved(two_steps))
    bucket = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(torch.float32, torch.float32).bucket_idx_0.exp_avg"
    kept = {key: stored.stored(key) for key in stored.tensors if not key.startswith("optimizer.")}
    moved = stored.stored("optimizer.state.exp_avg.decoder.final_layernorm.weight")
    write(tmp_path / "old" / "iter_0000002", {**kept, bucket: moved}, saved(two_steps))
    convert(tmp_path / "old" / "iter_0000002", tmp_path / "same", to="megatron", options=Options(dtype="bfloat16"))
    assert bucket in tensors(checkpoint.latest(tmp_path / "same"))
    for options in (Options(vocab_divisible_by=8), Options(keys="per-layer")):
        with pytest.raises(UserError, match="not stored by the names of the weights"):
            convert(tmp_path / "old" / "iter_0000002", tmp_path / "x", to="megatron", options=options)
    weights = Options(keys="per-layer", weights_only=True)
    convert(tmp_path / "old" / "iter_0000002", tmp_path / "x", to="megatron", options=weights)


def write(folder: Path, space: dict[str, Any], like: Path) -> None:
    """A checkpoint of these tensors."""
    from converters import engine
    from converters.plan import make_plan

    boxes = [(key, one.offset, one.shape) for key, stored in space.items() for one in stored.placements]
    specs = {key: stored.spec for key, stored in space.items()}
    target = torch_dist.layout(folder, specs, boxes, {}, (like / "common.pt").read_bytes())
    folder.mkdir(parents=True)
    engine.reserve(target)
    plan = make_plan(space, target.space)
    engine.run([plan.moves], [0], folder / ".journal.0", 1, lambda count: None)
    engine.finish(target)
    checkpoint.copy_hf_files(like / "hf", folder / "hf")


def test_an_entry_is_set_without_building_the_others(tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    torch.save({"a": torch.arange(3), "b": torch.bfloat16, "said": 1}, file)
    file.write_bytes(torch_zip.with_entry(file.read_bytes(), "said", {"x": [True, None]}))
    loaded = torch.load(file)
    assert loaded["said"] == {"x": [True, None]} and loaded["b"] is torch.bfloat16
    assert torch.equal(loaded["a"], torch.arange(3))


@pytest.mark.slow
def test_a_run_goes_on_from_it(two_steps: Place, tmp_path: Path) -> None:
    """To the bit where nothing but the files changed; on another padding, sums over it round otherwise."""
    run = Place(tmp_path / "run", two_steps.model, two_steps.data)
    options = ("--steps", "4", "--save-interval-steps", "2")
    assert cli.in_process(run.argv(*options)).code == 0
    straight, middle = run.output, run.output / "checkpoints" / "iter_0000002"
    series = {}
    for divisor in (128, 4):
        convert(middle, tmp_path / f"by {divisor}", to="megatron", options=Options(vocab_divisible_by=divisor))
        run.output = tmp_path / f"resumed {divisor}"
        resume = ("--model.make-vocab-size-divisible-by", str(divisor), "--resume", str(tmp_path / f"by {divisor}"))
        assert cli.in_process(run.argv(*options, *resume)).code == 0
        series[divisor] = [values(run.output, name) for name in ("loss", "grad_norm")]
    expected = [values(straight, name)[2:] for name in ("loss", "grad_norm")]
    assert series[128] == expected
    assert series[4] == [pytest.approx(own, rel=1e-6) for own in expected]


def test_a_checkpoint_that_does_not_say_which_model_it_is_of(two_steps: Place, tmp_path: Path) -> None:
    """As Megatron-LM writes them, with config.json elsewhere."""
    folder = Path(shutil.copytree(saved(two_steps), tmp_path / "iter_0000002"))
    shutil.rmtree(folder / "hf")
    with pytest.raises(UserError, match="hf/ folder"):
        convert(folder, tmp_path / "x")
    convert(folder, tmp_path / "one", options=Options(config=two_steps.model))
    convert(saved(two_steps), tmp_path / "two")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
