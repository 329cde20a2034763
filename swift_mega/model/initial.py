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

SCALED = ("self_attention.linear_proj.weight", "linear_fc2.weight")
"""What adds to the residual stream: drawn narrower by √(2 · layers), as in Megatron and GPT-2."""


def initialize_weights(chunks: list[MegatronModule], arguments: MegatronArguments, seed: int) -> None:
    """Norms to one, biases to zero, matrices normal with `init_method_std`; padding rows to zero."""
    of_norms = 0.0 if arguments.layernorm_zero_centered_gamma else 1.0
    with torch.no_grad():
        for piece in pieces(chunks):
            if piece.key.endswith(("bias", "softmax_offset")):
                piece.data.zero_()
            elif piece.data.dim() == 1:
                piece.data.fill_(of_norms)
            else:
                piece.data.copy_(_part(piece, arguments, seed))


def _part(piece: Piece, arguments: MegatronArguments, seed: int) -> Tensor:
    """The piece's rows and columns of the matrix of its layer."""
    rows, columns = piece.whole[-2:]
    matrix = torch.zeros(rows, columns, device=piece.data.device)
    drawn = arguments.vocab_size if piece.key in (EMBEDDING, OUTPUT) else rows
    std = arguments.init_method_std
    if piece.key.endswith(SCALED):
        std /= math.sqrt(2 * arguments.num_layers)
    matrix[:drawn].normal_(std=std, generator=_generator(piece, seed))
    (row, column), (height, width) = piece.offset[-2:], piece.shape[-2:]
    return matrix[row : row + height, column : column + width]


def _generator(piece: Piece, seed: int) -> torch.Generator:
    name = f"{seed} {piece.key} {piece.offset[:-2]}"
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return torch.Generator(piece.data.device).manual_seed(number)
