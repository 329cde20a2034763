"""Losses of all methods that are trained on data, against their formulae on texts without padding, one at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_bridge.methods.rlhf.config import ObjectiveConfig, ReferenceConfig
from hf_bridge.methods.rlhf.examples import Tokens
from hf_bridge.models.load import load_model
from tests.hf_bridge.methods.rlhf.conftest import Made, moved

Make = Callable[..., Made]
sigmoid, logsigmoid = torch.sigmoid, torch.nn.functional.logsigmoid


def logits(model: Any, text: Tokens) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.from_numpy(text.input_ids)[None]).logits[0].double()
    return found


def logps(model: Any, text: Tokens, all_tokens: bool = False) -> torch.Tensor:
    """Of each token of the answer."""
    each = logits(model, text)[:-1].log_softmax(-1).gather(-1, torch.from_numpy(text.input_ids)[1:, None])[:, 0]
    return each if all_tokens else each[torch.from_numpy(text.mask.copy())[1:]]


def reference_of(made: Made) -> Any:
    """The untouched model."""
    return load_model(made.setup.config.model).model


def both(made: Made, mean: bool = False) -> tuple[torch.Tensor, ...]:
    """log π of chosen and rejected answers, and log π_ref of them: [B] each."""
    compared = reference_of(made)
    return tuple(
        torch.stack(
            [(each := logps(model, getattr(pair, name))).sum() / (len(each) if mean else 1) for pair in made.examples]
        )
        for model in (made.setup.model, compared)
        for name in ("chosen", "rejected")
    )


def bare_dpo(made: Made, loss: str, beta: float, smoothing: float) -> torch.Tensor:
    chosen, rejected, ref_chosen, ref_rejected = both(made, mean=loss in ("ipo", "sigmoid_norm"))
    up, down = chosen - ref_chosen, rejected - ref_rejected
    return {
        "sigmoid": lambda: -logsigmoid(beta * (up - down)),
        "sigmoid_norm": lambda: -logsigmoid(beta * (up - down)),
        "hinge": lambda: (1 - beta * (up - down)).clamp(min=0),
        "ipo": lambda: (up - down - 1 / (2 * beta)) ** 2,
        "robust": lambda: (
            (-(1 - smoothing) * logsigmoid(beta * (up - down)) + smoothing * logsigmoid(-beta * (up - down)))
            / (1 - 2 * smoothing)
        ),
        "bco_pair": lambda: -logsigmoid(beta * up) - logsigmoid(-beta * down),
        "apo_zero": lambda: 1 - sigmoid(beta * up) + sigmoid(beta * down),
        "apo_down": lambda: sigmoid(beta * up) + 1 - sigmoid(beta * (up - down)),
        "sppo_hard": lambda: (up - 0.5 / beta) ** 2 + (down + 0.5 / beta) ** 2,
        "nca_pair": lambda: -logsigmoid(beta * up) - 0.5 * logsigmoid(-beta * up) - 0.5 * logsigmoid(-beta * down),
    }[loss]().mean()


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_the_first_loss_of_dpo_is_ln_2(make: Make, lora: bool) -> None:
    made = make("dpo", lora)
    assert made.loss() == pytest.approx(math.log(2), abs=1e-6)
    made.trainer.train()
    log = made.trainer.state.log_history
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and log[1]["loss"] != log[0]["loss"]
    assert made.loss() < math.log(2)


@pytest.mark.parametrize(
    "loss",
    [
        *("sigmoid", "hinge", "ipo", "robust", "bco_pair", "apo_zero", "apo_down", "sppo_hard", "nca_pair"),
        "sigmoid_norm",
    ],
)
def test_dpo(make: Make, loss: str) -> None:
    smoothing = 0.1 if loss == "robust" else None
    made = make(
        "dpo", lora=loss != "sigmoid", objective=ObjectiveConfig(beta=0.3, loss_type=[loss], label_smoothing=smoothing)
    )
    moved(made.setup.model)
    assert made.loss() == pytest.approx(float(bare_dpo(made, loss, 0.3, 0.1)), rel=1e-6, abs=1e-6)


def test_ipo_and_the_term_of_cross_entropy(make: Make) -> None:
    made = make("ipo", objective=ObjectiveConfig(beta=0.3, sft_weight=0.5))
    moved(made.setup.model)
    entropy = -torch.cat([logps(made.setup.model, pair.chosen) for pair in made.examples]).mean()
    assert made.loss() == pytest.approx(float(bare_dpo(made, "ipo", 0.3, 0) + 0.5 * entropy), rel=1e-6)


def test_a_reference_that_is_named_or_left_out_or_computed_before(make: Make, other_model: Any) -> None:
    named = make("dpo", reference=ReferenceConfig(ref_model=str(other_model)))
    other = load_model(str(other_model)).model
    pair = [
        [(logps(model, getattr(each, name))).sum() for each in named.examples]
        for model in (named.setup.model, other)
        for name in ("chosen", "rejected")
    ]
    chosen, rejected, ref_chosen, ref_rejected = map(torch.stack, pair)
    wanted = -logsigmoid(0.1 * (chosen - ref_chosen - rejected + ref_rejected)).mean()
    assert named.loss() == pytest.approx(float(wanted), rel=1e-6)

    free = make("dpo", reference=ReferenceConfig(reference_free=True))
    assert free.loss() == pytest.approx(float(-logsigmoid(0.1 * (chosen - rejected)).mean()), rel=1e-6)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_reference_that_is_computed_before_is_kept_on_disk(make: Make, lora: bool, tmp_path: Any) -> None:
    options = {"reference": ReferenceConfig(precompute_ref=True)}
    before = make("dpo", lora, **options)
    (kept,) = (tmp_path / "reference").glob("*.npy")
    written = kept.stat().st_mtime_ns
    again = make("dpo", lora, **options)
    assert kept.stat().st_mtime_ns == written
    for made in (before, again):
        moved(made.setup.model)
        assert made.trainer.ref_model is None
        assert made.loss() == pytest.approx(float(bare_dpo(made, "sigmoid", 0.1, 0)), rel=1e-6)


def test_cpo(make: Make) -> None:
    made = make("cpo", objective=ObjectiveConfig(beta=0.2, sft_weight=0.7))
    chosen, rejected, *_ = both(made)
    entropy = -torch.cat([logps(made.setup.model, pair.chosen) for pair in made.examples]).mean()
    assert made.loss() == pytest.approx(float(-logsigmoid(0.2 * (chosen - rejected)).mean() + 0.7 * entropy), rel=1e-6)


def test_simpo(make: Make) -> None:
    made = make("simpo", objective=ObjectiveConfig(gamma=0.9))
    chosen, rejected, *_ = both(made, mean=True)
    assert made.loss() == pytest.approx(float(-logsigmoid(2.0 * (chosen - rejected) - 0.9).mean()), rel=1e-6)


def test_orpo(make: Make) -> None:
    made = make("orpo", objective=ObjectiveConfig(beta=0.2))
    chosen, rejected, *_ = both(made, mean=True)
    odds = [value - torch.log1p(-value.exp()) for value in (chosen, rejected)]
    entropy = -torch.cat([logps(made.setup.model, pair.chosen, all_tokens=True) for pair in made.examples]).mean()
    assert made.loss() == pytest.approx(float(entropy - 0.2 * logsigmoid(odds[0] - odds[1]).mean()), rel=1e-6)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_kto(make: Make, lora: bool) -> None:
    made = make("kto", lora, objective=ObjectiveConfig(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5))
    moved(made.setup.model)
    policy, compared, examples = made.setup.model, reference_of(made), list(made.examples)[:4]
    texts = [example.text for example in examples]
    assert [example.label for example in examples] == [True, False, True, False]
    wrong = [made.trainer.data_collator._mismatched(text, texts[n - 1]) for n, text in enumerate(texts)]
    for text, before, mixed in zip(texts, texts[-1:] + texts[:-1], wrong, strict=True):
        parts = text.input_ids[: text.prompt].tolist(), before.input_ids[before.prompt :].tolist()
        assert mixed.input_ids.tolist() == [*parts[0], *parts[1]]
    z = torch.stack([(logps(policy, text) - logps(compared, text)).sum() for text in wrong]).mean().clamp(min=0)
    ratios = torch.stack([(logps(policy, text) - logps(compared, text)).sum() for text in texts])
    signs = torch.tensor([1, -1, 1, -1])
    weights = torch.tensor([1.5, 0.5, 1.5, 0.5])
    wanted = (weights * (1 - sigmoid(0.3 * signs * (ratios - z)))).mean()
    assert made.loss() == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_reward_model(make: Make, lora: bool) -> None:
    made = make("rm", lora, objective=ObjectiveConfig(center_rewards=0.1))
    moved(made.setup.model)
    score = [
        [logits(made.setup.model, getattr(pair, name))[0] for pair in made.examples] for name in ("chosen", "rejected")
    ]
    chosen, rejected = map(torch.stack, score)
    margins = torch.tensor([0.0, 0.5, 0.0, 1.5])
    wanted = -logsigmoid(chosen - rejected - margins) + 0.1 * (chosen + rejected) ** 2
    assert made.loss() == pytest.approx(float(wanted.mean()), rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gkd(make: Make, other_model: Any, beta: float) -> None:
    made = make("gkd", objective=ObjectiveConfig(teacher=str(other_model), beta=beta, lmbda=0.0))
    teacher, parts = load_model(str(other_model)).model, []
    for text in made.examples:
        at = torch.from_numpy(text.mask.copy())[1:]
        p, q = (logits(model, text)[:-1][at].softmax(-1) for model in (teacher, made.setup.model))
        m = beta * p + (1 - beta) * q if 0 < beta < 1 else None
        kl = [(one * (one / (other if m is None else m)).log()).sum(-1) for one, other in ((p, q), (q, p))]
        parts.append(beta * kl[0] + (1 - beta) * kl[1] if m is not None else kl[int(beta)])
    assert made.loss() == pytest.approx(float(torch.cat(parts).mean()), rel=1e-6)


def test_gkd_on_the_students_own_answers(make: Make, other_model: Any) -> None:
    made = make("gkd", objective=ObjectiveConfig(teacher=str(other_model), lmbda=1.0))
    made.trainer.generation_config.max_new_tokens = 4
    made.trainer.train()
    losses = [line["loss"] for line in made.trainer.state.log_history if "loss" in line]
    assert len(losses) == 2 and all(map(math.isfinite, losses)) and losses[0] > 0
