"""What training on preferences and rewards is told. Torch-free: `--help` reads it.

Options are null, empty or false until they are given; then the method's own default holds, which `options.py` has where
it is not TRL's. What a method does not read is refused by name.
"""

from dataclasses import dataclass, field
from typing import Literal

from hf_bridge.methods.config import TuneConfig

MethodName = Literal["dpo", "ipo", "cpo", "simpo", "orpo", "kto", "rm", "gkd", "grpo", "ppo"]


@dataclass(kw_only=True)
class ObjectiveConfig:
    """The loss."""

    beta: float | None = None
    """DPO, IPO (its τ), KTO, CPO, SimPO, ORPO: how strongly the policy is held; GRPO, PPO: weight of the divergence
    from the reference; GKD: 0 is KL(teacher‖student), 1 KL(student‖teacher), between them Jensen-Shannon's."""

    loss_type: list[str] = field(default_factory=list)
    """Variants of the method's loss; DPO takes several, which are added: `sigmoid bco_pair sft`."""

    loss_weights: list[float] = field(default_factory=list)
    """DPO: of each of several `loss_type`."""

    label_smoothing: float | None = None
    """Share of pairs that are taken to be the wrong way round."""

    sft_weight: float | None = None
    """DPO, IPO, CPO, SimPO: times the cross entropy of the chosen answers, added (RPO's term)."""

    gamma: float | None = None
    """SimPO: margin by which the chosen answer's reward has to be larger."""

    alphapo: float | None = None
    """CPO, SimPO: shape of AlphaPO's reward; 0 is the log-probability itself."""

    ld_alpha: float | None = None
    """DPO: weight of the tokens by which one answer is longer than the other (LD-DPO)."""

    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] | None = None
    """DPO: what holds the policy to the reference (f-DPO)."""

    f_alpha: float | None = None
    """DPO: α of `alpha_divergence`."""

    discopop_tau: float | None = None
    """DPO: temperature of `discopop`."""

    wpo: bool = False
    """DPO: weight pairs by how likely the policy would write them (WPO)."""

    desirable_weight: float | None = None
    """KTO: of wanted answers."""

    undesirable_weight: float | None = None
    """KTO: of unwanted ones."""

    center_rewards: float | None = None
    """RM: times the square of a pair's sum of rewards, which keeps them about 0."""

    teacher: str | None = None
    """GKD: the model that is imitated, folder or id; it must have the student's vocabulary."""

    lmbda: float | None = None
    """GKD: share of steps that are taken on the student's own answers."""

    seq_kd: bool = False
    """GKD: the other steps are taken on the teacher's answers, not on those of the data."""


@dataclass(kw_only=True)
class ReferenceConfig:
    """The model that the policy is compared with."""

    ref_model: str | None = None
    """Folder or id. null: the model itself as it is before training; with PEFT tuners it is the same one with these
    switched off, otherwise a second one."""

    reference_free: bool = False
    """DPO: every answer is equally likely under the reference."""

    precompute_ref: bool = False
    """DPO: compute the reference's log-probabilities once, before training, and keep them on disk."""

    ref_sync_steps: int | None = None
    """DPO, IPO, KTO with a second model: steps after which the reference moves towards the policy (TR-DPO)."""

    ref_sync_alpha: float | None = None
    """By this share of the way."""


@dataclass(kw_only=True)
class SamplingConfig:
    """How answers are drawn."""

    max_completion_length: int | None = None
    """Tokens of the longest answer."""

    num_generations: int | None = None
    """GRPO: answers to each question, whose rewards are compared."""

    temperature: float | None = None
    """Logits are divided by it."""

    top_p: float | None = None
    """Draw from the most likely tokens that have this probability together."""

    top_k: int | None = None
    """Draw from this many of the most likely tokens. 0: from all."""

    min_p: float | None = None
    """Leave out tokens less likely than this share of the most likely one."""

    repetition_penalty: float | None = None
    """Divides the logits of tokens that are there already."""


@dataclass(kw_only=True)
class RewardsConfig:
    """What makes an answer good."""

    rewards: list[str] = field(default_factory=list)
    """`accuracy`, `format`, `length:limit=512,cache=128`, `cosine:limit=512`, `repetition`, `tools:format=hermes`,
    `code:run=true`, or a function of your own: `my.py:brevity` with `def brevity(answer, row): return
    -len(answer.text)`."""

    reward_weights: list[float] = field(default_factory=list)
    """Of each of `rewards`, and then of `reward_model`. Empty: 1."""

    reward_model: str | None = None
    """A reward model, as `--method rm` makes them: its folder or id. It sees the conversation in its own template."""

    scale_rewards: Literal["group", "batch", "none"] | None = None
    """GRPO: what rewards are divided by: their standard deviation among answers to one question, or in the batch."""

    missing_end_penalty: float | None = None
    """PPO: taken off the reward of an answer that did not end by itself."""


@dataclass(kw_only=True)
class GrpoConfig:
    """Group relative policy optimisation."""

    epsilon: float | None = None
    """GRPO: the ratio of probabilities counts down to 1 − ε."""

    epsilon_high: float | None = None
    """And up to 1 + this. null: ε."""

    delta: float | None = None
    """Upper bound of the ratio where the advantage is negative."""

    num_iterations: int | None = None
    """Passes over each batch of answers."""

    steps_per_generation: int | None = None
    """Forward passes for which answers are drawn at once. null: those of one optimizer step."""

    importance_sampling_level: Literal["token", "sequence"] | None = None
    """`sequence`: one ratio for an answer (GSPO)."""

    mask_truncated_completions: bool = False
    """Answers that did not end by themselves do not count."""

    top_entropy_quantile: float | None = None
    """Train on this share of tokens, the most uncertain ones."""

    entropy_coef: float | None = None
    """Weight of a bonus for uncertainty."""

    log_completions: bool = False
    """Keep questions, answers and rewards of each step under `completions/` in the output folder."""


@dataclass(kw_only=True)
class PpoConfig:
    """Proximal policy optimisation."""

    num_ppo_epochs: int | None = None
    """Passes over each batch of answers. null: 4."""

    num_mini_batches: int | None = None
    """Optimizer steps of one pass. null: 1."""

    cliprange: float | None = None
    """The ratio of probabilities counts from 1 − this to 1 + this. null: 0.2."""

    cliprange_value: float | None = None
    """Values move by at most this from those at which answers were drawn. null: 0.2."""

    vf_coef: float | None = None
    """Weight of the value's loss. null: 0.1."""

    discount: float | None = None
    """γ of generalised advantage estimation. null: 1."""

    lam: float | None = None
    """λ of generalised advantage estimation. null: 0.95."""

    kl_estimator: Literal["k1", "k3"] | None = None
    """log r, or r − 1 − log r, which is never negative. null: k1."""

    whiten_rewards: bool = False
    """Divide the rewards of a batch by their standard deviation."""

    value_model: str | None = None
    """Model that the values come from, folder or id, trained whole. null: a head on the policy itself."""

    value_learning_rate: float | None = None
    """Of the head, or of the value model. null: the policy's."""


@dataclass(kw_only=True)
class RlhfConfig(TuneConfig):
    """Train on preferences, on rewards, or on a teacher."""

    method: MethodName = "dpo"
    """`dpo`, `ipo`, `cpo`, `simpo`, `orpo`: pairs of answers, `kto`: answers with a label, `rm`: a reward model from
    pairs, `gkd`: a teacher, `grpo`, `ppo`: rewards."""

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardsConfig = field(default_factory=RewardsConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
