"""A Hugging Face folder in Megatron's address space: where each canonical tensor's boxes lie in its files."""

from collections.abc import Iterator, Mapping

from converters.plan import Move
from converters.space import Placement, Space, Stored, row_major
from converters.stores.safetensors import Place
from converters.tensors import CARRIER
from converters.view import MegatronView, Piece


def canonical(view: MegatronView) -> Space:
    """Canonical key → its placements in the files of the view's store."""
    places = view.store.places
    return {
        key: Stored(spec, [_placement(piece, places) for piece in view.pieces(key)])
        for key, spec in view.tensors.items()
    }


def _placement(piece: Piece, places: Mapping[str, Place]) -> Placement:
    if piece.source is None:
        return Placement(piece.offset, piece.shape, None, 0, (0,) * len(piece.shape))
    place = places[piece.source]
    strides = row_major(place.spec.shape, CARRIER[place.spec.dtype].itemsize)
    begin = place.offset + sum(first * stride for first, stride in zip(piece.first, strides, strict=True))
    steps = piece.steps or (1,) * len(piece.first)
    own = tuple(stride * step for stride, step in zip(strides, steps, strict=True))
    if piece.transposed:
        own = (*own[:-2], own[-1], own[-2])
    # The stacked axes have size one here; a fused source has some of them, too.
    own = ((0,) * len(piece.shape) + own)[-len(piece.shape) :]
    return Placement(piece.offset, piece.shape, place.file, begin, own)


def repeated(moves: list[Move], view: MegatronView) -> Iterator[Move]:
    """The moves that fill the tensors which repeat another: those of the other, a fixed distance on."""
    places = view.store.places
    for copy, name in view.copies.items():
        original, again = places[name], places[copy]
        end = original.offset + original.spec.nbytes
        for move in moves:
            if move.target == original.file and original.offset <= move.at < end:
                yield move._replace(target=again.file, at=move.at - original.offset + again.offset)
