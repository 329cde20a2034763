"""Hugging Face folders with quantised weights, as the plain ones that transformers makes of them when it dequantises.

    fp8     X [rows, columns] float8_e4m3fn, X_scale_inv [⌈rows / block⌉, ⌈columns / block⌉]
    mxfp4   X_blocks [experts, columns, rows / 32, 16] uint8, X_scales [experts, columns, rows / 32] uint8: X transposed

A matrix that blocks do not divide has smaller ones at its lower and right edges, as in DeepSeek-V3's files;
transformers divides it evenly, or refuses it. Nothing is decoded here: a tensor says how it is encoded, and is decoded
as it is read.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from converters.config_table import Config
from converters.decoding import E4M3, MXFP4
from converters.quantisation import Quantisation, quantisation
from converters.space import Box, Encoding, Placement, Scales, Space, Stored, row_major
from converters.stores.anywhere import Anywhere
from converters.stores.safetensors import Place, SafetensorsFolder, open_folder
from converters.tensors import CARRIER, TensorSpec
from swift_mega.base.errors import UserError

SCALE = "_scale_inv"
"""Of fp8: what the name of a tensor's scales ends with, after its own."""
BLOCKS, EXPONENTS = "_blocks", "_scales"
"""Of MXFP4: after the name of the tensor that both make together."""
ACTIVATION_SCALE = "activation_scale"
"""Of fp8: how the names end of what scales a layer's inputs and is no weight; transformers drops it, too."""
SCALE_DTYPES = ("float32", "bfloat16", "float16", "uint8")
"""`uint8` is an exponent of two."""
IN_BLOCK = 32
"""Numbers of MXFP4 that share an exponent."""


def open_weights(path: str | Path, config: Config) -> SafetensorsFolder:
    """The weights of a Hugging Face folder, quantised or not.

    Args:
        path: the folder.
        config: its config.json.

    Raises:
        UserError: see `open_folder`; and scales that are missing or are not those of their tensor.
    """
    store, said = open_folder(path), quantisation(config)
    if said is None:
        return store
    found, used = _DECODED[said.method](store, said)
    left = {name for name in store.tensors if said.method == "fp8" and name.endswith(ACTIVATION_SCALE)}
    plain = {name: stored for name, stored in store.space().items() if name not in used | left}
    notes = [f"left out {len(left):,} scales of activations, such as `{min(left)}`: not weights"] if left else []
    return Anywhere(store.path, plain | found, notes)


def _fp8(store: SafetensorsFolder, said: Quantisation) -> tuple[Space, set[str]]:
    """The decoded tensors, and the names of those that they are made of."""
    names = [name for name, spec in store.tensors.items() if spec.dtype == E4M3]
    return {name: _in_blocks(store, name, said) for name in names}, {*names, *(name + SCALE for name in names)}


def _in_blocks(store: SafetensorsFolder, name: str, said: Quantisation) -> Stored:
    place = store.places[name]
    spec = TensorSpec(place.spec.shape, said.dtype)
    *matrices, rows, columns = (1,) * (2 - len(spec.shape)) + spec.shape
    if said.block is None:
        matrices, rows = [], math.prod(matrices) * rows
    block = said.block or (rows, columns)
    scales = _scales(store, name, name + SCALE, (*matrices, -(-rows // block[0]), -(-columns // block[1])))
    factors = Scales(scales.file, scales.offset, scales.spec.dtype, block, rows)
    encoding = Encoding(E4M3, place.offset, columns, columns, said.dtype, factors)
    return _stored(spec, place, encoding, row_major(spec.shape, CARRIER[spec.dtype].itemsize))


def _mxfp4(store: SafetensorsFolder, said: Quantisation) -> tuple[Space, set[str]]:
    """The decoded tensors, and the names of those that they are made of."""
    names = [name.removesuffix(BLOCKS) for name in store.tensors if name.endswith(BLOCKS)]
    found = {name: _of_exponents(store, name) for name in names}
    return found, {name + suffix for name in names for suffix in (BLOCKS, EXPONENTS)}


def _of_exponents(store: SafetensorsFolder, name: str) -> Stored:
    place = store.places[name + BLOCKS]
    shape = place.spec.shape
    if place.spec.dtype != "uint8" or len(shape) < 3 or 2 * shape[-1] != IN_BLOCK:
        raise UserError(
            f"{place.file}: `{name + BLOCKS}` is {place.spec.dtype} {list(shape)}.",
            f"MXFP4 is uint8 with {IN_BLOCK // 2} bytes for {IN_BLOCK} numbers along its last axis.",
        )
    scales = _scales(store, name + BLOCKS, name + EXPONENTS, shape[:-1], ("uint8",))
    *matrices, rows, blocks, _ = shape
    columns = blocks * IN_BLOCK
    factors = Scales(scales.file, scales.offset, scales.spec.dtype, (1, IN_BLOCK), rows)
    encoding = Encoding(MXFP4, place.offset, columns // 2, columns, "bfloat16", factors)
    *others, row, column = row_major((*matrices, rows, columns), CARRIER[encoding.dtype].itemsize)
    # transformers turns every matrix over.
    return _stored(TensorSpec((*matrices, columns, rows), encoding.dtype), place, encoding, (*others, column, row))


_DECODED = {"fp8": _fp8, "mxfp4": _mxfp4}


def _stored(spec: TensorSpec, place: Place, encoding: Encoding, strides: Box) -> Stored:
    return Stored(spec, [Placement((0,) * len(spec.shape), spec.shape, place.file, 0, strides, encoding)])


def _scales(
    store: SafetensorsFolder, name: str, scales: str, shape: Sequence[int], dtypes: Sequence[str] = SCALE_DTYPES
) -> Place:
    """Where the scales of a tensor are. Axes of length one may be there or not.

    Raises:
        UserError: they are not there, or not what they must be.
    """
    of = store.places[name]
    if scales not in store.places:
        raise UserError(
            f"{store.path} has `{name}`, {of.spec.dtype} {list(of.spec.shape)}, but no `{scales}`, which scales it.",
            "Copy or download the folder again; numbers without their scales mean nothing.",
        )
    found = store.places[scales]
    if _long(found.spec.shape) != _long(shape) or found.spec.dtype not in dtypes:
        raise UserError(
            f"{found.file}: `{scales}` is {found.spec.dtype} {list(found.spec.shape)}; `{name}` of shape "
            f"{list(of.spec.shape)} needs {list(shape)} in {' or '.join(dtypes)}.",
            "Are weights and config.json (`quantization_config`) of the same model?",
        )
    return found


def _long(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]
