"""Models of llama.cpp: a GGUF file, or one split into several, as tensors under Hugging Face names and a config.json.

F32, F16 and BF16 are bytes that can be copied; numbers packed into blocks (Q4_0, Q6_K, …) are decoded to float32 on the
way, and then so is everything in the file, as half precision beside it would only mix dtypes.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.config_table import Config
from converters.decoding import PLUS_ONE
from converters.space import Box, Encoding, Placement, Space, Stored, row_major
from converters.stores.torch_dist import BROKEN, damaged
from converters.tensors import CARRIER, TensorSpec
from swift_mega.base.errors import UserError

SUFFIX = ".gguf"
BYTES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Types whose numbers lie as they are → dtype."""


@dataclass(frozen=True)
class Architecture:
    """What is to be known of one of GGUF's architectures."""

    pairs: bool = False
    """Rows of query and key heads are ordered for a rotation of neighbours: 0, d/2, 1, d/2 + 1, …"""
    model_type: str | None = None
    """Hugging Face's name, where the file says all that config.json needs."""
    architecture: str = ""
    plus_one: bool = False
    """The weights of norms are stored plus one."""


ARCHITECTURES = {
    "llama": Architecture(True, "llama", "LlamaForCausalLM"),
    "qwen2": Architecture(False, "qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture(False, "qwen3", "Qwen3ForCausalLM"),
    "qwen2moe": Architecture(),
    "qwen3moe": Architecture(),
    "phi3": Architecture(),
    "minimax-m2": Architecture(),
    "gemma2": Architecture(plus_one=True),
    "gemma3": Architecture(plus_one=True),
    "nemotron": Architecture(plus_one=True),
}
"""Those whose tensors are Hugging Face's but for the order of rows."""

FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
NOT_SAID = ("rope.scaling.", "attention.sliding_window", "expert_count")
"""Begins of fields of models that config.json says more about than the file."""
ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Factors of the rotary frequencies, which config.json determines."""
CORRECTION = "e_score_correction"
"""Its bias has no layer of that name in Hugging Face's models."""
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
"""Name of one file of several."""


class GgufFile:
    """An opened file, or all of the files that it is one of."""

    def __init__(self, path: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise UserError("GGUF files are read with the package gguf, which is not installed.", "pip install gguf")
        self.paths = _parts(path)
        self.path = self.paths[0]
        """With the metadata."""
        readers = [_read(part) for part in self.paths]
        self.fields: dict[str, Any] = readers[0][1]
        count = int(self.fields.get("split.count", 0)) or 1
        if count != len(self.paths):
            raise UserError(
                f"{path} is one of {count} files, by whose name the others are not found.",
                "Give one whose name ends like -00001-of-00003.gguf, the others beside it.",
            )
        self.tensors = {tensor.name: tensor for reader, _ in readers for tensor in reader.tensors}
        self.files = {
            tensor.name: part
            for part, (reader, _) in zip(self.paths, readers, strict=True)
            for tensor in reader.tensors
        }
        """Of a tensor."""
        self.architecture = str(self.fields.get("general.architecture"))
        self._quantised = any(tensor.tensor_type.name not in BYTES for tensor in self.tensors.values())

    def check_convertible(self) -> None:
        """Raises:
        UserError: an architecture whose names and order of rows are not known.
        """
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"{self.path} is of GGUF architecture {self.architecture}.",
                f"Those that can be converted: {', '.join(ARCHITECTURES)}.",
            )

    def config(self) -> Config:
        """What the file says, as config.json.

        Raises:
            UserError: the model is of a kind of which the file does not say everything.
        """
        self.check_convertible()
        known = ARCHITECTURES[self.architecture]
        own = {
            name.removeprefix(f"{self.architecture}."): value
            for name, value in self.fields.items()
            if name.startswith(f"{self.architecture}.")
        }
        more = [name for name in own if name.startswith(NOT_SAID)] + [
            name for name in ROPE_FACTORS if name in self.tensors
        ]
        if known.model_type is None or more:
            why = f"`{more[0]}`" if more else f"architecture {self.architecture}"
            raise UserError(
                f"{self.path} does not say all that config.json has to say of this model ({why}).",
                "Give the folder of the original model's config.json and tokenizer with --config FOLDER.",
            )
        found = {theirs: own[name] for name, theirs in FIELDS.items() if name in own}
        if known.pairs:
            found.setdefault("head_dim", own.get("rope.dimension_count"))
        tokens = {theirs: self.fields.get(f"tokenizer.ggml.{name}") for name, theirs in TOKENS.items()}
        return {
            "architectures": [known.architecture],
            "model_type": known.model_type,
            **{name: _as_written(value) for name, value in found.items() if value is not None},
            **{name: value for name, value in tokens.items() if value is not None},
            "vocab_size": int(self.tensors["token_embd.weight"].shape[1]),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            "dtype": "float32",
        }

    def chat_template(self) -> dict[str, bytes]:
        """The file that Hugging Face's folders have it in."""
        template = self.fields.get("tokenizer.chat_template")
        return {"chat_template.jinja": str(template).encode()} if template else {}

    @property
    def has_tokenizer(self) -> bool:
        """Whether it has one that transformers may build."""
        return "tokenizer.ggml.tokens" in self.fields

    def space(self, wanted: Mapping[str, Box], config: Config) -> Space:
        """The tensors under Hugging Face names; those that are none of `wanted` under their own.

        Args:
            wanted: name → shape.
            config: of the model.

        Raises:
            UserError: see `check_convertible`.
        """
        self.check_convertible()
        found: Space = {}
        taken = set(ROPE_FACTORS)
        for name, (own, expert) in self._names(wanted).items():
            if own in self.tensors:
                found[name] = self._stored(own, expert, wanted[name], self._heads(own, config))
                taken.add(own)
        rest = self.tensors.keys() - taken
        return found | self._as_named(rest)

    def own_space(self) -> Space:
        """All tensors of any architecture under the file's own names."""
        return self._as_named(self.tensors)

    def _as_named(self, names: Iterable[str]) -> Space:
        return {own: self._stored(own, None, self._shape(own), None) for own in sorted(names)}

    def _names(self, wanted: Iterable[str]) -> dict[str, tuple[str, int | None]]:
        """Hugging Face name → the file's, and which of the experts that it has in one tensor."""
        import gguf

        numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
        layers = int(self.fields.get(f"{self.architecture}.block_count", 0))
        table = gguf.get_tensor_name_map(numbers[self.architecture], layers)
        found = {}
        for name in wanted:
            expert = re.search(r"\.experts\.(\d+)\.", name)
            plain = name.replace(expert[0], ".experts.") if expert else name
            plain = plain.replace(f"{CORRECTION}_bias", f"{CORRECTION}.bias")
            if own := table.get_name(plain, try_suffixes=(".weight", ".bias")):
                found[name] = own, int(expert[1]) if expert else None
        return found

    def _shape(self, own: str) -> Box:
        return tuple(int(size) for size in reversed(self.tensors[own].shape))

    def _heads(self, own: str, config: Config) -> int | None:
        """How many heads have their rows in pairs."""
        if not ARCHITECTURES[self.architecture].pairs:
            return None
        fields = {".attn_q.": ("num_attention_heads",), ".attn_k.": ("num_key_value_heads", "num_attention_heads")}
        names = next((names for part, names in fields.items() if part in own), ())
        return next((int(config[name]) for name in names if config.get(name)), None)

    def _stored(self, own: str, expert: int | None, shape: Box, heads: int | None) -> Stored:
        tensor, whole = self.tensors[own], self._shape(own)
        kind, begin = tensor.tensor_type.name, int(tensor.data_offset)
        if expert is not None:
            whole = whole[1:]
        if int(np.prod(whole)) != int(np.prod(shape)):
            shape = whole  # of another model; whoever wants it says so
        encoding = None
        dtype = BYTES.get(kind, "float32")
        if self._quantised and kind != "F32":
            dtype, row = "float32", self._shape(own)[-1]
            rows = int(np.prod(self._shape(own))) // row
            encoding, begin = Encoding(kind, begin, int(tensor.n_bytes) // rows, row), 0
        if self._plus_one(own, kind):
            encoding, begin = Encoding(PLUS_ONE, begin, 4 * whole[-1], whole[-1]), 0
        spec = TensorSpec(shape, dtype)
        begin += (expert or 0) * spec.nbytes
        file = self.files[own]
        size = file.stat().st_size
        if int(tensor.data_offset) + int(tensor.n_bytes) > size:
            raise damaged(file, f"`{own}` ends behind the end of the file, byte {size:,}")
        strides = row_major(shape, CARRIER[dtype].itemsize)
        boxes = _halves(shape, heads) if heads else [((0,) * len(shape), shape, 0, 1)]
        return Stored(
            spec,
            [
                Placement(offset, box, file, begin + first * strides[0], (strides[0] * step, *strides[1:]), encoding)
                for offset, box, first, step in boxes
            ],
        )

    def _plus_one(self, own: str, kind: str) -> bool:
        """Whether a tensor's numbers are stored plus one."""
        known = ARCHITECTURES.get(self.architecture)
        if known is None or not known.plus_one or not own.endswith("norm.weight"):
            return False
        if kind != "F32":
            raise damaged(self.files[own], f"`{own}` is {kind}, where llama.cpp has F32")
        return True


def _parts(path: Path) -> list[Path]:
    """All files of the model, the first one first.

    Raises:
        UserError: one is missing.
    """
    found = PART.fullmatch(path.name)
    if not found:
        return [path]
    parts = [path.with_name(f"{found[1]}-{number:05d}-of-{found[3]}.gguf") for number in range(1, int(found[3]) + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise UserError(
            f"{path} is one of {len(parts)} files, of which {len(missing)} are not beside it, such as {missing[0]}.",
            "Copy all of them into one folder.",
        )
    return parts


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """gguf's reader, and the metadata."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, *BROKEN) as error:
        raise damaged(path, str(error) or type(error).__name__) from None


def _halves(shape: Box, heads: int) -> Iterator[tuple[Box, Box, int, int]]:
    """(offset, shape, first row in the file, step) of each half of each head, whose rows take turns in the file."""
    rows, *columns = shape
    half = rows // heads // 2
    for head in range(heads):
        for number in range(2):
            offset = (head * 2 * half + number * half, *(0,) * len(columns))
            yield offset, (half, *columns), head * 2 * half + number, 2


def _as_written(value: Any) -> Any:
    """A float32 as the decimal number that it was made of."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
