"""A Hugging Face folder in Megatron's address space: where each canonical tensor's boxes lie in its files."""

from collections.abc import Iterator

from converters.plan import Move
from converters.space import Box, Placement, Space, Stored
from converters.view import MegatronView, Piece


def canonical(view: MegatronView) -> Space:
    """Canonical key → its placements in the files of the view's store."""
    space = view.store.space()
    return {
        key: Stored(spec, [one for piece in view.pieces(key) for one in _placements(piece, space, spec.dtype)])
        for key, spec in view.tensors.items()
    }


def _placements(piece: Piece, space: Space, dtype: str) -> Iterator[Placement]:
    """The placements of a piece of a tensor of `dtype`: what it shares with those of its source."""
    if piece.source is None:
        yield Placement(piece.offset, piece.shape, None, 0, (0,) * len(piece.shape))
        return
    depth = len(piece.shape) - len(piece.first)
    sizes = _turned(piece.shape[depth:], piece.transposed)
    steps = piece.steps or (1,) * len(piece.first)
    stored = space[piece.source]
    own_dtype = None if stored.spec.dtype == dtype else stored.spec.dtype
    for one in stored.placements:
        # Along each axis, those of the piece's elements that lie in the placement.
        lows = tuple(max(0, -((f - o) // s)) for f, s, o in zip(piece.first, steps, one.offset, strict=True))
        ends = (
            min(size, -((f - o - length) // s))
            for f, s, o, length, size in zip(piece.first, steps, one.offset, one.shape, sizes, strict=True)
        )
        shape = tuple(end - low for low, end in zip(lows, ends, strict=True))
        if min(shape, default=1) <= 0:
            continue
        at = tuple(f + low * s for f, low, s in zip(piece.first, lows, steps, strict=True))
        strides = tuple(stride * step for stride, step in zip(one.strides, steps, strict=True))
        lows, shape, own = (_turned(box, piece.transposed) for box in (lows, shape, strides))
        offset = tuple(a + b for a, b in zip(piece.offset, _padded(lows, piece), strict=True))
        box, begin = (*piece.shape[:depth], *shape), one.inside(at)
        yield Placement(offset, box, one.file, begin, _padded(own, piece), one.encoding, own_dtype)


def _turned(box: Box, turned: bool) -> Box:
    return (*box[:-2], box[-1], box[-2]) if turned else box


def _padded(box: Box, piece: Piece) -> Box:
    """With zeros for the stacked axes, which have size one in a piece."""
    return (0,) * (len(piece.shape) - len(box)) + box


def repeated(moves: list[Move], view: MegatronView) -> Iterator[Move]:
    """The moves that fill the tensors which repeat another: those of the other, a fixed distance on."""
    places = view.store.places
    for copy, name in view.copies.items():
        original, again = places[name], places[copy]
        end = original.offset + original.spec.nbytes
        for move in moves:
            if move.target == original.file and original.offset <= move.at < end:
                yield move._replace(target=again.file, at=move.at - original.offset + again.offset)
