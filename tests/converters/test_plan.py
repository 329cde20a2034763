"""Plans on random placements, carried out and compared with numpy; what a plan refuses; how it is cut."""

from pathlib import Path

import numpy as np
import pytest

from converters import engine
from converters.plan import RUN_BYTES, SLAB_BYTES, Move, Target, make_plan
from converters.space import Box, Placement, Stored, check_tiling, row_major, shared
from converters.tensors import CARRIER, TensorSpec
from tests.support.space import assembled


def random_tiling(random: np.random.Generator, shape: Box) -> list[tuple[Box, Box]]:
    """A box halved again and again, at random."""
    boxes = [((0,) * len(shape), shape)]
    for _ in range(random.integers(0, 6)):
        offset, size = boxes.pop(random.integers(len(boxes)))
        axis = int(random.integers(len(shape)))
        if size[axis] < 2:
            boxes.append((offset, size))
            continue
        first = int(random.integers(1, size[axis]))
        rest = (*offset[:axis], offset[axis] + first, *offset[axis + 1 :])
        boxes.append((offset, (*size[:axis], first, *size[axis + 1 :])))
        boxes.append((rest, (*size[:axis], size[axis] - first, *size[axis + 1 :])))
    return boxes


def stored(random: np.random.Generator, shape: Box, dtype: str, file: Path) -> tuple[Stored, int]:
    """A tensor in random boxes one after another in `file`, some of them transposed; and the file's size."""
    itemsize, begin, placements = CARRIER[dtype].itemsize, 0, []
    for offset, size in random_tiling(random, shape):
        strides = row_major(size, itemsize)
        if random.integers(2):
            turned = row_major((*size[:-2], size[-1], size[-2]), itemsize)
            strides = (*turned[:-2], turned[-1], turned[-2])
        placements.append(Placement(offset, size, file, begin, strides))
        begin += int(np.prod(size)) * itemsize
    return Stored(TensorSpec(shape, dtype), placements), begin


@pytest.mark.parametrize("seed", range(40))
def test_any_layout_becomes_any_other(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    shape = tuple(int(size) for size in random.integers(1, 7, random.integers(2, 5)))
    dtype = str(random.choice(["bfloat16", "float32", "uint8", "int64"]))
    source, size = stored(random, shape, dtype, tmp_path / "source")
    (tmp_path / "source").write_bytes(random.integers(0, 256, size, np.uint8).tobytes())
    wanted, size = stored(random, shape, dtype, tmp_path / "target")
    target = Target({"x": wanted}, {tmp_path / "target": size})

    plan = make_plan({"x": source}, target.space)
    assert plan.nbytes == size and not plan.unused and not plan.zeros
    engine.reserve(target)
    engine.run(
        engine.parts(plan), range(len(engine.parts(plan))), engine.journal_of(tmp_path, 0), 2, lambda count: None
    )
    assert assembled(wanted).tobytes() == assembled(source).tobytes()


def contiguous(shape: Box, file: str | None, dtype: str = "bfloat16", offset: Box | None = None) -> Placement:
    strides = row_major(shape, CARRIER[dtype].itemsize)
    return Placement(offset or (0,) * len(shape), shape, None if file is None else Path(file), 0, strides)


def test_padding_is_counted_on_both_sides() -> None:
    spec = TensorSpec((6, 4), "bfloat16")
    short = Stored(spec, [contiguous((4, 4), "a"), contiguous((2, 4), None, offset=(4, 0))])
    whole = Stored(spec, [contiguous((6, 4), "b")])
    assert make_plan({"x": short}, {"x": whole}).zeros == {"x": 8}
    assert make_plan({"x": whole}, {"x": short}).unused == {"x": 8}


def test_a_hole_in_the_source_is_found() -> None:
    spec = TensorSpec((6, 4), "bfloat16")
    with pytest.raises(ValueError, match="16 of 24 elements would be produced"):
        make_plan({"x": Stored(spec, [contiguous((4, 4), "a")])}, {"x": Stored(spec, [contiguous((6, 4), "b")])})


def test_long_runs_are_the_kernels_and_short_ones_share_a_move() -> None:
    rows, row = 10, RUN_BYTES // 2
    spec = TensorSpec((rows, row), "bfloat16")
    whole = Stored(spec, [contiguous(spec.shape, "a")])
    apart = Stored(spec, [contiguous((1, row), f"b{n % 2}", offset=(n, 0)) for n in range(rows)])
    assert all(move.is_run for move in make_plan({"x": whole}, {"x": apart}).moves)
    sides = [contiguous((rows, row), f"b{n}", offset=(0, n * row)) for n in range(2)]
    wide = TensorSpec((rows, 2 * row), "bfloat16")
    plan = make_plan({"x": Stored(wide, [contiguous(wide.shape, "a")])}, {"x": Stored(wide, sides)})
    assert len(plan.moves) == 2 * rows and all(move.is_run for move in plan.moves)
    halves = [contiguous((rows, row // 2), f"b{n}", offset=(0, n * row // 2)) for n in range(2)]
    plan = make_plan({"x": whole}, {"x": Stored(spec, halves)})
    assert len(plan.moves) == 2 and not any(move.is_run for move in plan.moves)


def test_what_passes_through_memory_is_cut() -> None:
    spec = TensorSpec((4096, 8192), "float32")
    wanted = Stored(TensorSpec(spec.shape, "bfloat16"), [contiguous(spec.shape, "b")])
    plan = make_plan({"x": Stored(spec, [contiguous(spec.shape, "a", "float32")])}, {"x": wanted})
    assert plan.casts == {("float32", "bfloat16"): 4096 * 8192}
    assert plan.largest_in_memory <= 2 * SLAB_BYTES and sum(move.nbytes for move in plan.moves) == plan.nbytes


def test_moves_are_in_the_order_of_the_source() -> None:
    spec = TensorSpec((4, 3), "bfloat16")
    turned = [Placement((n, 0), (1, 3), Path("a"), 6 * (3 - n), (6, 2)) for n in range(4)]
    plan = make_plan({"x": Stored(spec, turned)}, {"x": Stored(spec, [contiguous(spec.shape, "b")])})
    assert [move.begin for move in plan.moves] == sorted(move.begin for move in plan.moves)
    assert all(isinstance(move, Move) for move in plan.moves)


def test_tilings() -> None:
    spec = TensorSpec((4, 4), "uint8")
    check_tiling("x", spec, [((0, 0), (4, 2)), ((0, 2), (4, 2))])
    for boxes in (
        [((0, 0), (4, 2))],
        [((0, 0), (4, 2)), ((0, 1), (4, 2))],
        [((0, 0), (4, 4)), ((0, 0), (4, 4))],
        [((0, 0), (4, 5))],
    ):
        with pytest.raises(ValueError, match="`x`"):
            check_tiling("x", spec, boxes)


def test_only_equal_leading_indices_are_compared() -> None:
    experts = [contiguous((1, 1, 2, 2), "a", offset=(layer, expert, 0, 0)) for layer in range(3) for expert in range(4)]
    assert [(one.offset, offset) for one, other, offset, _ in shared(experts, experts[::-1])] == [
        (one.offset, one.offset) for one in experts
    ]
