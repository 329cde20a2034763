"""The view against an independent reshaping with torch, box by box, and what it refuses.

`reshaped` is written from the definition of Megatron's layers, without the rules; the planted faults
show that a wrong order in the rules makes the comparison fail.
"""

import dataclasses
import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from converters import checkpoint, ranks
from converters.family import Family, family_of, padded_vocab_size
from converters.rules import CONCATENATE, Rule
from converters.stores.safetensors import SINGLE, SafetensorsFolder, create, finish, open_folder
from converters.tensors import CARRIER
from converters.torch_tensors import to_torch
from converters.view import MegatronView, Piece, hf_tensors
from swift_mega.base.errors import UserError

from .conftest import VARIANTS
from .reshape import load, reshaped

QKV = "decoder.layers.self_attention.linear_qkv"
FC1 = "decoder.layers.mlp.linear_fc1.weight"


def view_of(folder: Path, family: Family | None = None) -> MegatronView:
    config = checkpoint.read_config(folder)
    padded = padded_vocab_size(config["vocab_size"])
    return MegatronView(family or family_of(config), config, open_folder(folder), padded)


def whole(view: MegatronView, key: str) -> torch.Tensor:
    spec = view.tensors[key]
    return to_torch(view.read(key, (0,) * len(spec.shape), spec.shape), spec.dtype)


def assert_equals_reshaping(folder: Path, family: Family | None = None) -> None:
    view = view_of(folder, family)
    arguments = view.arguments
    expected = reshaped(
        load(folder), arguments.num_layers, arguments.num_query_groups, padded_vocab_size(arguments.vocab_size)
    )
    assert set(view.tensors) == set(expected)
    for key, tensor in expected.items():
        assert view.tensors[key].shape == tuple(tensor.shape), key
        assert torch.equal(whole(view, key), tensor), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_an_independent_reshaping(variant: str, hf_model: Callable[[str], Path]) -> None:
    assert_equals_reshaping(hf_model(variant))


def with_rule(family: Family, key: str, change: Callable[[Rule], Rule]) -> Family:
    return dataclasses.replace(family, rules=tuple(change(r) if r.megatron == key else r for r in family.rules))


FAULTS: dict[str, tuple[str, Callable[[Rule], Rule]]] = {
    "gate and up swapped": (FC1, lambda rule: dataclasses.replace(rule, sources=rule.sources[::-1])),
    "k and v swapped": (
        QKV + ".weight",
        lambda rule: dataclasses.replace(rule, sources=(rule.sources[0], rule.sources[2], rule.sources[1])),
    ),
    "k and v biases swapped": (
        QKV + ".bias",
        lambda rule: dataclasses.replace(rule, sources=(rule.sources[0], rule.sources[2], rule.sources[1])),
    ),
    "q, k, v not interleaved": (QKV + ".weight", lambda rule: dataclasses.replace(rule, operation=CONCATENATE)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(fault: str, hf_model: Callable[[str], Path]) -> None:
    key, change = FAULTS[fault]
    folder = hf_model("qwen2")
    family = with_rule(family_of(checkpoint.read_config(folder)), key, change)
    with pytest.raises(AssertionError, match=key):
        assert_equals_reshaping(folder, family)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_box(variant: str, hf_model: Callable[[str], Path]) -> None:
    """Random boxes, as tensor parallel ranks of any size ask for them, equal slices of the whole."""
    view = view_of(hf_model(variant))
    rng = random.Random(0)
    for key, spec in view.tensors.items():
        full = view.read(key, (0,) * len(spec.shape), spec.shape)
        for _ in range(20):
            first = tuple(rng.randrange(size) for size in spec.shape)
            shape = tuple(rng.randint(1, size - begin) for begin, size in zip(first, spec.shape, strict=True))
            expected = full[tuple(slice(o, o + s) for o, s in zip(first, shape, strict=True))]
            assert np.array_equal(view.read(key, first, shape), expected)


def assert_pieces_are_the_tensors(view: MegatronView) -> None:
    """Each element is in one piece, and read it is what the piece's source has."""
    for key, spec in view.tensors.items():
        built, count = np.empty(spec.shape, CARRIER[spec.dtype]), np.zeros(spec.shape, int)
        for piece in view.pieces(key):
            place = boxed(piece.offset, piece.shape)
            count[place] += 1
            built[place] = 0 if piece.source is None else source_of(piece, view.store)
        assert (count == 1).all(), key
        assert built.tobytes() == view.read(key, (0,) * len(spec.shape), spec.shape).tobytes(), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_pieces_put_together_are_the_tensor(variant: str, hf_model: Callable[[str], Path]) -> None:
    assert_pieces_are_the_tensors(view_of(hf_model(variant)))


def source_of(piece: Piece, store: SafetensorsFolder) -> np.ndarray:
    """The bits of a piece, from the definition of its fields."""
    assert piece.source is not None
    shape = piece.shape[len(piece.shape) - len(piece.first) :]
    if piece.transposed:
        shape = (*shape[:-2], shape[-1], shape[-2])
    steps = piece.steps or (1,) * len(shape)
    box = (slice(o, o + n * by, by) for o, n, by in zip(piece.first, shape, steps, strict=True))
    found = store.array(piece.source)[tuple(box)]
    return found.swapaxes(-1, -2) if piece.transposed else found


def boxed(offset: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))


@pytest.mark.parametrize("tensor_parallel", [1, 2, 3])
@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3-tied"])
def test_writing_slices_gives_the_source_back(
    variant: str, tensor_parallel: int, hf_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Uneven row blocks, as ranks write them, rebuild the files byte for byte; padding rows vanish."""
    source = view_of(hf_model(variant))
    dtypes = {key: spec.dtype for key, spec in source.tensors.items()}
    store = create(tmp_path, hf_tensors(source.family, source.arguments, dtypes))
    padded = source.tensors["embedding.word_embeddings.weight"].shape[0]
    target = MegatronView(source.family, checkpoint.read_config(hf_model(variant)), store, padded)
    assert target.tensors == source.tensors
    for key, spec in source.tensors.items():
        axis = len(source.rule(key).stack)
        bounds = np.linspace(0, spec.shape[axis], tensor_parallel + 1).astype(int).tolist()
        for begin, end in itertools.pairwise(bounds):
            offset = tuple(begin if number == axis else 0 for number in range(len(spec.shape)))
            shape = tuple(end - begin if number == axis else size for number, size in enumerate(spec.shape))
            target.write(key, offset, source.read(key, offset, shape))
    finish(store)
    written, original = open_folder(tmp_path), source.store
    assert set(written.tensors) == set(original.tensors)
    for name in original.tensors:
        assert written.array(name).tobytes() == original.array(name).tobytes()


def test_chunks_tile_each_tensor(hf_model: Callable[[str], Path]) -> None:
    view = view_of(hf_model("llama"))
    for key, spec in view.tensors.items():
        count = np.zeros(spec.shape, int)
        for offset, shape in ranks.chunks(view.rule(key), spec.shape):
            count[tuple(slice(o, o + s) for o, s in zip(offset, shape, strict=True))] += 1
        assert (count == 1).all()
    assert [(offset, shape) for offset, shape in ranks.chunks(view.rule(FC1), view.tensors[FC1].shape)][:2] == [
        ((0, 0, 0), (1, 80, 48)),
        ((0, 80, 0), (1, 80, 48)),
    ]


def test_a_box_outside_is_our_fault(hf_model: Callable[[str], Path]) -> None:
    view = view_of(hf_model("llama"))
    with pytest.raises(ValueError, match="leaves"):
        view.read(FC1, (0, 0, 0), (4, 1, 1))
    with pytest.raises(ValueError, match="other axes"):
        view.read(FC1, (0, 0), (1, 1))
    with pytest.raises(TypeError, match="float32, got numpy uint16"):
        view.write(FC1, (0, 0, 0), np.zeros((1, 1, 1), np.uint16))


class TestAccounting:
    """Every tensor has a place, or the run stops with its name."""

    @pytest.fixture
    def changed(self, hf_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
        def change(variant: str, edit: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Path:
            folder = Path(shutil.copytree(hf_model(variant), tmp_path / "changed"))
            tensors = load(folder)
            edit(tensors)
            save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
            content = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(content | config))
            return folder

        return change

    @staticmethod
    def refusal(folder: Path) -> str:
        with pytest.raises(UserError) as error:
            view_of(folder)
        return str(error.value)

    def test_missing_tensor(self, changed: Callable[..., Path]) -> None:
        folder = changed("llama", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
        assert "missing: `model.layers.1.mlp.up_proj.weight`" in self.refusal(folder)

    def test_extra_tensor(self, changed: Callable[..., Path]) -> None:
        folder = changed("llama", lambda tensors: tensors.update({"model.layers.3.mlp.x": torch.ones(1)}))
        assert "without a place: `model.layers.3.mlp.x`" in self.refusal(folder)

    def test_fewer_layers_in_the_config(self, changed: Callable[..., Path]) -> None:
        refusal = self.refusal(changed("llama", lambda tensors: None, num_hidden_layers=2))
        assert "without a place: `model.layers.2." in refusal and "and 5 more" in refusal

    def test_bias_that_the_config_does_not_have(self, changed: Callable[..., Path]) -> None:
        folder = changed("llama", lambda tensors: None, attention_bias=False)
        assert "without a place: `model.layers.0.self_attn.k_proj.bias`" in self.refusal(folder)

    def test_wrong_shape(self, changed: Callable[..., Path]) -> None:
        folder = changed("llama", lambda tensors: tensors.update({"model.norm.weight": torch.ones(47)}))
        assert "`model.norm.weight` has shape [47], config.json means [48]" in self.refusal(folder)

    def test_wrong_dtype(self, changed: Callable[..., Path]) -> None:
        int8 = torch.ones(48, dtype=torch.int8)
        folder = changed("llama", lambda tensors: tensors.update({"model.norm.weight": int8}))
        assert "`model.norm.weight` is int8; a weight is one of float32" in self.refusal(folder)

    def test_recomputable_buffers_are_left_out_and_said(self, changed: Callable[..., Path]) -> None:
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        view = view_of(changed("llama", lambda tensors: tensors.update({name: torch.ones(4)})))
        assert view.notes == [f"left out buffers that the config determines: `{name}`"]

    def test_tied_copy_with_the_same_bytes(self, changed: Callable[..., Path]) -> None:
        def copy(tensors: dict[str, torch.Tensor]) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

        view = view_of(changed("llama-tied", copy))
        assert "output_layer.weight" not in view.tensors
        assert "byte for byte the same" in view.notes[0]

    def test_tied_copy_that_differs(self, changed: Callable[..., Path]) -> None:
        def differ(tensors: dict[str, torch.Tensor]) -> None:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
            tensors["lm_head.weight"][130, 47] += 1

        assert "holds both and they differ" in self.refusal(changed("llama-tied", differ))

    def test_untied_without_an_output_layer(self, changed: Callable[..., Path]) -> None:
        refusal = self.refusal(changed("llama-tied", lambda tensors: None, tie_word_embeddings=False))
        assert "missing: `lm_head.weight`" in refusal

    def test_padding_below_the_vocabulary(self, hf_model: Callable[[str], Path]) -> None:
        config = checkpoint.read_config(hf_model("llama"))
        with pytest.raises(UserError, match=r"has 128 rows, the vocabulary of config\.json 131"):
            MegatronView(family_of(config), config, open_folder(hf_model("llama")), 128)


def test_reading_needs_no_torch(hf_model: Callable[[str], Path]) -> None:
    script = (
        "import sys; from converters import checkpoint; from converters.family import family_of\n"
        "from converters.view import MegatronView; from converters.stores.safetensors import open_folder\n"
        "import converters.commands\n"
        "config = checkpoint.read_config(sys.argv[1])\n"
        "view = MegatronView(family_of(config), config, open_folder(sys.argv[1]), 256)\n"
        "view.read('decoder.final_layernorm.weight', (0,), (48,))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, hf_model("llama")], check=True)
