"""Row maps: the way back rebuilds every row, and a map that loses or doubles one is caught."""

import random

import numpy as np
import pytest

from converters.family import registry
from converters.rules import (
    CONCATENATE,
    COPY,
    DE_INTERLEAVE,
    INTERLEAVE_GATED,
    INTERLEAVE_GROUPS,
    PAD_VOCABULARY,
    Operation,
    Rule,
    Segment,
    check_parts,
    hf,
    inverse,
    take,
)

OPERATIONS = [COPY, CONCATENATE, INTERLEAVE_GROUPS, INTERLEAVE_GATED, PAD_VOCABULARY, DE_INTERLEAVE]


def random_case(operation: Operation, rng: random.Random) -> tuple[list[int], dict[str, int]]:
    groups, size, per_group = rng.randint(1, 5), rng.randint(1, 4), rng.randint(1, 4)
    vocab = rng.randint(1, 50)
    sizes = {"group": groups, "head": size, "heads": groups * per_group, "padded_vocab": vocab + rng.randint(0, 20)}
    rows = {
        COPY: [rng.randint(1, 9)],
        CONCATENATE: [rng.randint(1, 9) for _ in range(rng.randint(1, 4))],
        INTERLEAVE_GROUPS: [groups * per_group * size, groups * size, groups * size],
        INTERLEAVE_GATED: [2 * groups * per_group * size, groups * size, groups * size],
        PAD_VOCABULARY: [vocab],
        DE_INTERLEAVE: [2 * rng.randint(1, 9)],
    }[operation]
    return rows, sizes


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_inverse_rebuilds_every_source(operation: Operation) -> None:
    rng = random.Random(0)
    for _ in range(200):
        rows, sizes = random_case(operation, rng)
        sources = [np.arange(count) + 1000 * (number + 1) for number, count in enumerate(rows)]
        segments = operation.segments(rows, sizes)
        target = np.concatenate(
            [
                np.zeros(segment.rows, int)
                if segment.source is None
                else sources[segment.source][segment.first :: segment.step][: segment.rows]
                for segment in segments
            ]
        )
        for source, moves in zip(sources, inverse(segments, rows), strict=True):
            rebuilt = np.full_like(source, -1)
            for move in moves:
                rebuilt[move.first : move.first + move.rows] = target[move.target : move.target + move.rows]
            assert np.array_equal(rebuilt, source)


@pytest.mark.parametrize(
    ("segments", "fault"),
    [
        ([Segment(0, 0, 4)], "4 of the 6 rows"),
        ([Segment(0, 0, 6), Segment(0, 2, 1)], "row 2 of source 0 is used twice"),
        ([Segment(0, 1, 5)], "row 0 of source 0 is used twice or never"),
        ([Segment(0, 0, 2), Segment(0, 3, 3)], "row 2 of source 0"),
        ([Segment(0, 0, 8)], "8 of the 6 rows"),
        ([Segment(0, 0, 6), Segment(None, 0, -1)], "negative"),
    ],
)
def test_a_map_without_a_way_back_is_refused(segments: list[Segment], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        inverse(segments, [6])


def test_a_rule_checks_its_own_map() -> None:
    """Planted fault: an operation that forgets the last row of every source."""
    forgetful = Operation("forgetful", lambda rows, sizes: [Segment(0, 0, rows[0] - 1)])
    with pytest.raises(ValueError, match="3 of the 4 rows of source 0"):
        Rule("target", (hf("source", "hidden"),), forgetful).segments({"hidden": 4})


SIZES = {"a": 4, "b": 6, "rows": 10, "block": 2, "one": 1}


def parts(*lengths: str, blocks: str = "one") -> list[Rule]:
    rules = [Rule(f"in.{name}", (hf("in", "rows"),), take(n, lengths, blocks)) for n, name in enumerate("pqr")]
    return rules[: len(lengths)]


def test_parts_of_each_block() -> None:
    first, second = (rule.segments(SIZES) for rule in parts("a", "b", blocks="block"))
    assert first == [Segment(0, 0, 2), Segment(0, 5, 2)]
    assert second == [Segment(0, 2, 3), Segment(0, 7, 3)]
    check_parts(parts("a", "b", blocks="block"), SIZES)
    assert [rule.whole for rule in parts("a", "b")] == ["in", "in"]


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (parts("a", "b")[:1], "4 of the 10 rows"),
        (parts("a", "b")[1:], "row 0 of source 0 is used twice or never"),
        (parts("a", "b") + parts("a", "b")[:1], "row 0 of source 0 is used twice"),
        (parts("a", "a"), "8 of the 10 rows"),
    ],
)
def test_parts_that_are_not_the_whole_are_refused(rules: list[Rule], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        check_parts(rules, SIZES)


def test_stack_comes_from_the_names() -> None:
    assert Rule("decoder.w", (hf("layers.{layer}.w", "hidden"),)).stack == ("layer",)
    assert Rule("decoder.experts.w", (hf("layers.{layer}.experts.{expert}.w", "hidden"),)).stack == ("layer", "expert")
    assert Rule("decoder.{layer}.w", (hf("layers.{layer}.w", "hidden"),)).stack == ()
    assert Rule("decoder.w", (hf("layers.{layer}.w", "{expert}", "hidden"),)).stack == ("layer", "expert")


def test_a_rule_without_stacked_layers() -> None:
    rule = Rule("decoder.layers.experts.w", (hf("layers.{layer}.{expert}.w", "hidden"),)).apart()
    assert (rule.megatron, rule.stack) == ("decoder.layers.{layer}.experts.w", ("expert",))
    third = rule.at(layer=3)
    assert (third.megatron, third.sources[0].name) == ("decoder.layers.3.experts.w", "layers.3.{expert}.w")
    assert third.stack == ("expert",)


def test_no_two_rules_of_a_family_share_a_tensor() -> None:
    for family in registry().values():
        for form in family.forms or (None,):
            rules = [rule for rule in (*family.rules, *family.mtp) if rule.form in (None, form)]
            megatron = [(rule.megatron, rule.layers) for rule in rules]
            own = [rule for rule in family.rules if not rule.operation.partial]
            sources = [(source.name, rule.layers) for rule in own for source in rule.sources]
            assert len(set(megatron)) == len(megatron)
            assert len(set(sources)) == len(sources)
