"""Which options each method reads, and what its Trainer calls them. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_bridge.methods.rlhf.config import RlhfConfig
from swift_mega.base.config import leaves
from swift_mega.base.errors import UserError, nearest

SECTIONS = ("objective", "reference", "sampling", "reward", "grpo", "ppo")
"""Whose options only some methods read."""

OURS = ""
"""The name of an option that the Trainer's arguments do not have: our own code reads it."""


@dataclass(frozen=True)
class Options:
    """What a method reads.

    Attributes:
        reads: option → name in the arguments of its Trainer.
        defaults: arguments of its Trainer that hold where nothing is given.
        losses: that `loss_type` may be; where there are none the method does not read it.
        needs: options without which it cannot work; of each tuple one.
    """

    reads: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    losses: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()


def _named(section: str, *names: str, **renamed: str) -> dict[str, str]:
    return {f"{section}.{name}": theirs for name, theirs in {**dict(zip(names, names, strict=True)), **renamed}.items()}


_REFERENCE = _named("reference", ref_model=OURS)
_FOLLOWING = _named("reference", ref_sync_steps="ref_model_sync_steps", ref_sync_alpha="ref_model_mixup_alpha")
_PAIRED = {
    **_named("objective", "beta", "label_smoothing", "ld_alpha", sft_weight=OURS, loss_type="loss_type"),
    **_REFERENCE,
    **_FOLLOWING,
    **_named("reference", reference_free=OURS, precompute_ref=OURS),
}
_FREE = _named("objective", "beta", "label_smoothing", sft_weight="cpo_alpha", alphapo="alpha")
_DRAWN = _named("sampling", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_REWARDED = _named("reward", "reward_weights", rewards=OURS, reward_model=OURS)

DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
GRPO_LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")

OPTIONS = {
    "dpo": Options(
        _PAIRED
        | _named("objective", "loss_weights", "discopop_tau")
        | _named("objective", f_divergence="f_divergence_type", f_alpha="f_alpha_divergence_coef", wpo="use_weighting"),
        losses=DPO_LOSSES,
    ),
    "ipo": Options(
        {
            option: name
            for option, name in _PAIRED.items()
            if option not in ("objective.loss_type", "objective.ld_alpha")
        },
        defaults={"loss_type": ["ipo"]},
    ),
    "cpo": Options(_FREE | _named("objective", "loss_type"), losses=("sigmoid", "hinge", "ipo")),
    # β and γ as the paper has them for Llama-3-Base (arXiv 2405.14734); it has no term of cross entropy.
    "simpo": Options(
        _FREE | _named("objective", gamma="simpo_gamma"),
        defaults={"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    ),
    "orpo": Options(_named("objective", "beta")),
    "kto": Options(
        _named("objective", "beta", "loss_type", "desirable_weight", "undesirable_weight") | _REFERENCE | _FOLLOWING,
        losses=("kto", "apo_zero_unpaired"),
    ),
    "rm": Options(_named("objective", center_rewards="center_rewards_coefficient")),
    "gkd": Options(
        _named("objective", "beta", "lmbda", "seq_kd", teacher=OURS)
        | _named("sampling", "temperature", max_completion_length="max_new_tokens"),
        needs=(("objective.teacher",),),
    ),
    "grpo": Options(
        _named("objective", "beta", "loss_type")
        | _REFERENCE
        | _DRAWN
        | _REWARDED
        | _named("sampling", "num_generations")
        | _named("reward", "scale_rewards")
        | _named("grpo", "epsilon", "epsilon_high", "delta", "num_iterations", "steps_per_generation")
        | _named("grpo", "importance_sampling_level", "mask_truncated_completions", "top_entropy_quantile")
        | _named("grpo", "entropy_coef", "log_completions"),
        # With it a token's probability would not be that with which it was drawn.
        defaults={"disable_dropout": True},
        losses=GRPO_LOSSES,
        needs=(("reward.rewards", "reward.reward_model"),),
    ),
    "ppo": Options(
        _named("objective", "beta")
        | _named("reference", ref_model=OURS)
        | _DRAWN
        | _REWARDED
        | _named("reward", "missing_end_penalty")
        | _named("ppo", "num_ppo_epochs", "num_mini_batches", "cliprange", "cliprange_value", "vf_coef", "discount")
        | _named("ppo", "lam", "kl_estimator", "whiten_rewards", "value_learning_rate", value_model=OURS),
        needs=(("reward.rewards", "reward.reward_model"),),
    ),
}
"""By method."""


def arguments(config: RlhfConfig) -> dict[str, Any]:
    """What the method's Trainer is told, apart from what every Trainer is.

    Raises:
        UserError: an option that the method does not read, a loss that it has not, or one without which it cannot work.
    """
    check(config)
    options = OPTIONS[config.method]
    found = dict(options.defaults)
    for option, name in options.reads.items():
        if name != OURS and _given(config, option):
            found[name] = _value(config, option)
    if "loss_type" in found and config.method != "dpo" and isinstance(found["loss_type"], list) and options.losses:
        found["loss_type"] = found["loss_type"][0]
    if config.reference.ref_sync_steps is not None:
        found["sync_ref_model"] = True
    if config.objective.sft_weight is not None and config.method in ("dpo", "ipo"):
        losses = [*found.get("loss_type", ["sigmoid"]), "sft"]
        weights = found.get("loss_weights", [1.0] * (len(losses) - 1))
        found |= {"loss_type": losses, "loss_weights": [*weights, config.objective.sft_weight]}
    return found


def check(config: RlhfConfig) -> None:
    """Refuse what the method cannot use.

    Raises:
        UserError: as `arguments`.
    """
    options = OPTIONS[config.method]
    for leaf in leaves(RlhfConfig):
        if leaf.path.partition(".")[0] in SECTIONS and _given(config, leaf.path):
            if leaf.path not in options.reads:
                readers = [name for name, other in OPTIONS.items() if leaf.path in other.reads]
                raise UserError(
                    f"`--{leaf.path}` is given, and `--method {config.method}` does not read it.",
                    f"It is for {', '.join(readers)}; leave it out.",
                )
    for needed in options.needs:
        if not any(_given(config, option) for option in needed):
            raise UserError(
                f"`--method {config.method}` needs {' or '.join(f'`--{option}`' for option in needed)}.",
                "`--help` says what it may be.",
            )
    _check_losses(config, options)
    if config.reference.ref_sync_steps and (config.reference.precompute_ref or config.reference.reference_free):
        raise UserError("the reference cannot both follow the policy and stay as it is.", "Drop `ref_sync_steps`.")
    _check_general(config)


def _value(config: RlhfConfig, option: str) -> Any:
    section, _, name = option.partition(".")
    return getattr(getattr(config, section), name)


def _given(config: RlhfConfig, option: str) -> bool:
    value = _value(config, option)
    return value is not None and value is not False and value != []


def _check_losses(config: RlhfConfig, options: Options) -> None:
    given = config.objective.loss_type
    for loss in given:
        if loss not in options.losses:
            raise UserError(f"`--method {config.method}` has no loss `{loss}`.", nearest(loss, options.losses))
    if len(given) > 1 and config.method != "dpo":
        raise UserError(f"`--method {config.method}` takes one loss, not {len(given)}.", "Choose one of them.")
    weights = config.objective.loss_weights
    if weights and len(weights) != len(given):
        raise UserError(f"there are {len(weights)} `loss_weights` and {len(given)} `loss_type`.", "Give one for each.")


def _check_general(config: RlhfConfig) -> None:
    """What all Trainers are told, and these cannot do."""
    refused = {
        "--length.packing": config.length.packing,
        "--train.predict_with_generate": config.train.predict_with_generate,
        "--parallel.sequence_parallel_size": config.parallel.sequence_parallel_size > 1,
        "--length.long_rows split": config.length.long_rows == "split" and config.method != "gkd",
        "--length.long_rows truncate": config.length.long_rows == "truncate" and config.method in ("grpo", "ppo"),
    }
    for option, given in refused.items():
        if given:
            raise UserError(f"`{option}` cannot be had with `--method {config.method}`.", "Leave it out.")
