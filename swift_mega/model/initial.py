"""Fresh weights that do not depend on the layout.

megatron draws each rank's part from that rank's generator, so a model on two pipeline stages starts from
other numbers than on one. Here every matrix is drawn whole, from a generator seeded by its name and
layer, and each rank keeps its part: the same seed gives the same model on every layout.
"""

import hashlib
import math

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from converters.config_table import MegatronArguments
from converters.families._common import EMBEDDING, OUTPUT
from swift_mega.model.weights import Piece, pieces

SCALED = ("self_attention.linear_proj.weight", "self_attention.out_proj.weight", "linear_fc2.weight")
"""What adds to the residual stream: drawn narrower by √(2 · layers), as in Megatron and GPT-2."""


CONSTANT = {"dt_bias": 1.0, "out_norm.weight": 1.0, "bias": 0.0, "softmax_offset": 0.0}
"""End of a key → what the tensor is filled with; the first that fits. Other vectors are norms, but for `DECAYS`."""

DECAYS = ("A_log", 1.0, 16.0)
"""Logarithms of the decays of a gated delta net, drawn between these two as megatron-core does."""


def initialize_weights(chunks: list[MegatronModule], arguments: MegatronArguments, seed: int) -> None:
    """Norms to one, biases to zero, matrices normal with `init_method_std`; padding rows to zero."""
    with torch.no_grad():
        for piece in pieces(chunks):
            value = _constant(piece, arguments)
            if value is None:
                piece.data.copy_(_part(piece, arguments, seed))
            else:
                piece.data.fill_(value)


def _constant(piece: Piece, arguments: MegatronArguments) -> float | None:
    """What all elements of the piece are. None: they are drawn."""
    for end, value in CONSTANT.items():
        if piece.key.endswith(end):
            return value
    if piece.data.dim() > 1 or piece.key.endswith(DECAYS[0]):
        return None
    return 0.0 if arguments.layernorm_zero_centered_gamma else 1.0


def _part(piece: Piece, arguments: MegatronArguments, seed: int) -> Tensor:
    """The piece's part of the tensor of its layer."""
    depth = len(piece.whole) - piece.data.dim()
    whole = torch.zeros(piece.whole[depth:], device=piece.data.device)
    generator = _generator(piece, depth, seed)
    if piece.key.endswith(DECAYS[0]):
        whole.uniform_(*DECAYS[1:], generator=generator).log_()
    else:
        std = arguments.init_method_std
        if piece.key.endswith(SCALED):
            std /= math.sqrt(2 * arguments.num_layers)
        drawn = arguments.vocab_size if piece.key in (EMBEDDING, OUTPUT) else len(whole)
        whole[:drawn].normal_(std=std, generator=generator)
    box = zip(piece.offset[depth:], piece.shape[depth:], strict=True)
    return whole[tuple(slice(first, first + size) for first, size in box)]


def _generator(piece: Piece, depth: int, seed: int) -> torch.Generator:
    name = f"{seed} {piece.key} {piece.offset[:depth]}"
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return torch.Generator(piece.data.device).manual_seed(number)
