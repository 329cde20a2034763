"""Rows that are too long: what is left, and that all of it is counted."""

from typing import Any

import pytest

from hf_bridge.templates.encoding import IGNORED, Encoded, EncodedPair
from hf_bridge.templates.truncation import Fitting
from swift_mega.base.errors import UserError


def example(labelled: str) -> Encoded:
    """One token a letter; `x` is trained on."""
    ids = list(range(len(labelled)))
    trained = [letter == "x" for letter in labelled]
    return Encoded(
        input_ids=ids,
        labels=[token if label else IGNORED for token, label in zip(ids, trained, strict=True)],
        loss_weights=[float(label) for label in trained],
        kinds=["assistant" if label else "user" for label in trained],
    )


@pytest.mark.parametrize(
    ("policy", "labelled", "left", "counts"),
    [
        ("drop", "..xx", [[0, 1, 2, 3]], {"fits": 1}),
        ("drop", "..xxx", [], {"dropped": 1}),
        ("truncate", "..xxx", [[0, 1, 2, 3]], {"truncated": 1}),
        ("truncate", "....x", [], {"unlabelled": 1}),
        ("split", "..xx.x", [[0, 1, 2, 3], [4, 5]], {"split": 1}),
        ("split", "....xxxx....x", [[4, 5, 6, 7], [12]], {"split": 1, "unlabelled": 2}),
        ("raise", "..xx", [[0, 1, 2, 3]], {"fits": 1}),
    ],
)
def test_policies(policy: Any, labelled: str, left: list[list[int]], counts: dict[str, int]) -> None:
    fitting = Fitting(4, policy)
    made = fitting.fit(example(labelled))
    assert [one.input_ids for one in made] == left
    assert all(one.trained and len(one.kinds) == len(one.loss_weights) == len(one) for one in made)
    assert {name: count for name, count in fitting.counts.items() if count} == counts


def test_raise_says_by_how_much() -> None:
    with pytest.raises(UserError, match="has 6 tokens, 2 more than 4"):
        Fitting(4, "raise").fit(example("xxxxxx"))


@pytest.mark.parametrize(
    ("policy", "rejected", "kept", "counted"),
    [
        ("drop", "..x", True, "fits"),
        ("drop", "..xxx", False, "dropped"),
        ("truncate", "..xxx", True, "truncated"),
        ("truncate", "....x", False, "unlabelled"),
    ],
)
def test_pairs(policy: Any, rejected: str, kept: bool, counted: str) -> None:
    fitting = Fitting(4, policy)
    pair = fitting.fit_pair(EncodedPair(example("..x"), example(rejected), prompt=2))
    assert (pair is not None) == kept
    assert pair is None or len(pair.rejected) <= 4
    assert fitting.counts == {counted: 1}


def test_pairs_are_not_split() -> None:
    with pytest.raises(UserError, match="cannot be split"):
        Fitting(4, "split").fit_pair(EncodedPair(example("..x"), example("..xxx"), prompt=2))


def test_wrong_policies() -> None:
    wrong: Any = "trunkate"
    with pytest.raises(UserError, match="did you mean `truncate`"):
        Fitting(4, wrong)
    with pytest.raises(UserError, match="at least 1 token"):
        Fitting(0)
