"""The arithmetic of PPO (arXiv 1707.06347). B answers, C tokens of the longest; masks are 1 on tokens of an answer."""

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens of all answers; 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def divergence(logps: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
    """[B, C], of the policy from the reference, of tokens drawn from the policy (Schulman, joschu.net/blog/kl-approx).

    Args:
        estimator: `k1`: log π − log π_ref; `k3`: r − 1 − log r with r = π_ref ÷ π, which is never negative.
    """
    log_ratio = reference - logps
    return -log_ratio if estimator == "k1" else log_ratio.exp() - 1 - log_ratio


def token_rewards(scores: torch.Tensor, penalty: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, C]: −penalty of each token, and at the last one of an answer its score ([B]) besides."""
    last = mask.sum(1).long() - 1
    rewards = -penalty * mask
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, discount: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16): Aₜ = δₜ + γλ·Aₜ₊₁, δₜ = rₜ + γ·Vₜ₊₁ − Vₜ, backwards
    from the last token of an answer, behind which all is 0.

    Returns:
        Advantages, and returns A + V to which values are drawn: [B, C], 0 behind the answers.
    """
    values, rewards = values * mask, rewards * mask
    found = torch.zeros_like(values)
    following = torch.zeros_like(values[:, 0])
    for step in range(values.shape[1] - 1, -1, -1):
        ahead = values[:, step + 1] if step + 1 < values.shape[1] else torch.zeros_like(following)
        following = (rewards[:, step] + discount * ahead - values[:, step] + discount * lam * following) * mask[:, step]
        found[:, step] = following
    return found, (found + values) * mask


def policy_loss(
    logps: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """−min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) with ρ = π ÷ π_old (arXiv 1707.06347, eq. 7), mean over tokens."""
    ratio = (logps - old).exp()
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return masked_mean(torch.maximum(-ratio * advantages, -clipped * advantages), mask)


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> torch.Tensor:
    """½ · max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²), mean over tokens, as OpenAI's baselines have it
    (arXiv 2005.12729, §3, on how it came to PPO)."""
    clipped = old + (values - old).clamp(-cliprange, cliprange)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (clipped - returns) ** 2), mask)
