"""Where a policy stands: answers to prompts that it is not trained on, their proxies, gold and divergence, from the same samples."""

# B answers, T tokens of the longest.
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewardproof.artifacts import n_processes, process_number
from rewardproof.losses import sampled_kl
from rewardproof.models.precision import computing_in
from rewardproof.policy.policy import Policy, divergence, evaluating
from rewardproof.policy.rewards import Moment, raw_scores
from rewardproof.policy.rollouts import Prompt, Rollouts, roll_out
from rewardproof.policy.sampling import Sampling
from rewardproof.policy.streams import Passes, Stream
from rewardproof.scoring import Scorer
from rewardproof.training.processes import gathered


def evaluate_policy(
    policy: Policy,
    reference: Policy,
    sampler: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    judges: Mapping[str, Scorer],
    *,
    answers: int,
    sampling: Sampling,
    passes: Passes,
    exact: bool,
    states: bool = False,
    step: int,
    steps: int,
) -> list[dict[str, Any]]:
    """Sample, judge and measure; with several processes each takes its share of the prompts, and all get all rows.

    Args:
        policy: Whose answers they are.
        reference: What divergences are from.
        sampler: The copy of the policy that samples.
        tokenizer: The policy's.
        prompts: At least one for each process.
        judges: Who judges, by the name of their column.
        answers: Answers a prompt.
        sampling: How to draw; the same seed gives the same random numbers to every policy.
        passes: How passes over the answers are made.
        exact: Measure the divergence over the whole vocabulary at each token too.
        states: Keep the mean of the policy's final hidden states over each answer's tokens.
        step: Updates that the policy has had.
        steps: Updates of the whole run.

    Returns:
        A row a prompt: its key and text, and by answer its text, tokens, whether it was finished, each judge's number, its log-ratio
        (`kl`), `kl_k3`, and where asked `kl_exact` and `entropy`, sums over its tokens in nats, and `states`, four digits a number.
    """
    sampler.follow(policy)
    own = range(process_number(), len(prompts), n_processes())
    rollouts = roll_out(sampler.model, tokenizer, [prompts[place] for place in own], list(own), answers=answers, sampling=sampling)
    streams = passes.streams(policy, rollouts, range(len(rollouts.encoded)))
    moment = Moment(step, steps, functools.cache(lambda: passes.states(policy, streams)))
    columns: dict[str, Sequence[Any]] = {name: raw_scores(judge, rollouts, moment, name=name).tolist() for name, judge in judges.items()}
    columns |= {name: values_B.tolist() for name, values_B in _distances(policy, reference, rollouts, streams, passes, exact=exact).items()}
    columns |= {"tokens": rollouts.lengths_B.tolist(), "finished": rollouts.finished_B.tolist()}
    if states:
        columns["states"] = _answer_means(rollouts, moment.policy_states())
    rows = {
        place: {
            "prompt": group.prompt_key,
            "text": group.prompt_text,
            "answers": list(group.answer_texts),
            **{name: values[number * answers : (number + 1) * answers] for name, values in columns.items()},
        }
        for number, (place, group) in enumerate(zip(own, rollouts.groups, strict=True))
    }
    everything = {place: row for part in gathered(rows) for place, row in part.items()}
    return [everything[place] for place in range(len(prompts))]


def _answer_means(rollouts: Rollouts, states: Sequence[Tensor]) -> list[list[float]]:
    starts = [start for group in rollouts.encoded for start in group.answer_starts]
    means = (states_TD[start:].float().mean(dim=0).tolist() for states_TD, start in zip(states, starts, strict=True))
    return [[float(f"{value:.4g}") for value in mean] for mean in means]


def _distances(
    policy: Policy, reference: Policy, rollouts: Rollouts, streams: Sequence[Stream], passes: Passes, *, exact: bool
) -> dict[str, Tensor]:
    own_L, other_L = (passes.over(one, streams, lambda out: out.log_probs_L).double() for one in (policy, reference))
    found = {"kl": sampled_kl(own_L, other_L, "k1"), "kl_k3": sampled_kl(own_L, other_L, "k3")}
    if exact:
        with evaluating(policy, reference), computing_in(passes.precision, policy.model.device):
            both = [divergence(policy, reference, stream.batch, stream.trunk_TD) for stream in streams]
        found["kl_exact"], found["entropy"] = (torch.cat([parts[place].double().cpu() for parts in both]) for place in (0, 1))
    return {name: rollouts.table(values_L).sum(dim=1) for name, values_L in found.items()}
