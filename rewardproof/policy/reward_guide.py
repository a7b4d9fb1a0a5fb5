"""A reward model beside a policy that writes: it scores every candidate for the next token, in one pass over all rows.

The reward model keeps keys and values of every answer as it grows, as the policy does. The candidates of a row are read as siblings: each
attends to the row's text and to itself, none to another, and all have the position after the text. What the reward model made of the one
that is taken stays; nothing is computed twice.

A reward on the way is what the head says at the last token of prompt and answer, without what a template writes after an answer. The
token that ends an answer adds nothing to it: as a candidate it has the reward of the answer that it ends.
"""

# R rows, K candidates of each, V vocabulary, T text positions, P prompts, D hidden width.
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rewardproof.errors import ModelError
from rewardproof.models.packed import head_rewards
from rewardproof.models.upcycling import is_upcycled
from rewardproof.policy.guidance import Direction, Guidance, guided_choice
from rewardproof.policy.row_cache import Step, in_rows, longest_row, row_cache
from rewardproof.policy.sampling import Answer, Request, Row, Sampling, end_tokens, iterate

PREFILL_PROMPTS = 32
"""Prompts that the reward model reads at once."""


def refuse_unguided(model: PreTrainedModel, longest: int, *, what: str, name: str) -> None:
    """Refuse a model that cannot be run on rows of a cache, or not that far.

    Args:
        model: A policy or a reward model.
        longest: Tokens of the longest conversation, candidates included.
        what: What the model is, for the message.
        name: The user's word for it.

    Raises:
        ModelError: Says why.
    """
    kind = model.config.model_type
    if is_upcycled(model):
        raise ModelError(
            f"{name} is a mixture, expected a dense {what}: the search computes with stock layers alone. Merge its experts first "
            "(rewardproof merge MOE OUT)."
        )
    if getattr(model.config, "attn_logit_softcapping", None):
        raise ModelError(
            f"{name} ({kind}) bends its attention scores (soft-capping), expected a {what} that does not: attention over rows of a cache "
            "would give other rewards than the model's own. Take another."
        )
    limit = longest_row(model)
    if limit is not None and longest > limit[0]:
        raise ModelError(
            f"Got conversations of up to {longest} tokens for {name} ({kind}), expected at most {limit[0]}: it has {limit[0]} {limit[1]}. "
            "Lower max_new_tokens, or leave out long prompts by max_length."
        )


class RewardGuide:
    """Chooses tokens by a policy's likelihood and a reward model's scores; a `Chooser`."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        guidance: Guidance,
        direction: Direction,
        *,
        ends: set[int],
        max_new_tokens: int,
    ) -> None:
        """Guide the answers to some prompts.

        Args:
            model: A classification model with one label, on rows of a cache (`in_rows`); it reads the tokens that the policy writes.
            prompts: What it reads before an answer, for each request of the policy in order; at least one token each.
            guidance: How tokens are chosen.
            direction: Whether rewards are to be low or high.
            ends: Tokens that end an answer.
            max_new_tokens: Tokens of the longest answer.
        """
        self.model, self.prompts, self.guidance = model, prompts, guidance
        self.direction: Direction = direction
        self.ends_E = torch.tensor(sorted(ends), dtype=torch.long, device=model.device)
        self.length = max(map(len, prompts), default=0) + max_new_tokens + guidance.top_k
        self.vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]

    def open(self, rows: int) -> None:
        """Make room for so many rows."""
        device, layers = self.model.device, self.model.config.num_hidden_layers
        self.step = Step()
        self.cache, self.layers = row_cache(self.step, layers=layers, rows=rows, length=self.length)
        self.length_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.reward_R = torch.zeros(rows, device=device)

    def start(self, first: int, places: Sequence[int]) -> None:
        """Read the prompts of rows that begin."""
        wanted = list(dict.fromkeys(places))
        for begin in range(0, len(wanted), PREFILL_PROMPTS):
            read = wanted[begin : begin + PREFILL_PROMPTS]
            stored, reward_P = self._read_prompts(read)
            for offset, place in enumerate(places):
                if place not in read:
                    continue
                prompt = read.index(place)
                for mine, (keys, values) in zip(self.layers, stored, strict=True):
                    mine.place(first + offset, keys[prompt : prompt + 1], values[prompt : prompt + 1])
                self.length_R[first + offset] = len(self.prompts[place])
                self.reward_R[first + offset] = reward_P[prompt]

    def move(self, source_R: Tensor, target_R: Tensor) -> None:
        """Rows take others' places."""
        for layer in self.layers:
            layer.move(source_R, target_R)
        self.length_R[target_R], self.reward_R[target_R] = self.length_R[source_R], self.reward_R[source_R]

    def choose(self, logits_RV: Tensor, uniforms: np.ndarray, first: int, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Next tokens of the rows from `first` on, and their log-probabilities under the policy."""
        of_rows = slice(first, first + len(rows))
        log_probs_RV = logits_RV.float().log_softmax(dim=-1)[:, : self.vocabulary]
        log_probs_RK, tokens_RK = log_probs_RV.topk(self.guidance.top_k, dim=-1)
        rewards_RK = self._rewards(tokens_RK, of_rows)
        uniform_R = torch.from_numpy(uniforms[:, 0].copy()).to(rewards_RK.device)
        chosen_R1 = guided_choice(log_probs_RK, rewards_RK, uniform_R, self.guidance, self.direction)[:, None]
        self._keep(chosen_R1[:, 0], of_rows, alive_R=torch.tensor([row.alive for row in rows], device=chosen_R1.device))
        self.reward_R[of_rows] = rewards_RK.gather(1, chosen_R1)[:, 0]
        return tokens_RK.gather(1, chosen_R1)[:, 0], log_probs_RK.gather(1, chosen_R1)[:, 0]

    def _rewards(self, tokens_RK: Tensor, of_rows: slice) -> Tensor:
        """Reward of each row's answer up to each candidate, shape `(R, K)`."""
        count, width = tokens_RK.shape
        length_R = self.length_R[of_rows]
        places_RK = length_R[:, None] + torch.arange(width, device=length_R.device)
        self.step.rows, self.step.place_RW, self.step.span = of_rows, places_RK, int(length_R.max()) + width
        position_T = torch.arange(self.step.span, device=length_R.device)
        # A candidate sees its row's text and itself, at the place where the cache holds it beside its siblings.
        seen_RKT = (position_T < length_R[:, None, None]) | (position_T == places_RK[:, :, None])
        mask_RKT = torch.zeros(seen_RKT.shape, dtype=self.model.dtype, device=length_R.device).masked_fill_(~seen_RKT, -torch.inf)
        states_RKD = self.model.base_model(
            input_ids=tokens_RK,
            position_ids=length_R[:, None].expand(count, width),
            attention_mask=mask_RKT[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        rewards_RK = head_rewards(self.model, states_RKD.flatten(0, 1)).view(count, width)
        return torch.where(torch.isin(tokens_RK, self.ends_E), self.reward_R[of_rows, None], rewards_RK)

    def _keep(self, chosen_R: Tensor, of_rows: slice, *, alive_R: Tensor) -> None:
        """Make the chosen candidates part of their rows' text; finished rows wait as they are."""
        rows_R = torch.arange(of_rows.start, of_rows.stop, device=chosen_R.device)
        length_R = self.length_R[of_rows]
        for layer in self.layers:
            layer.keep(rows_R, length_R + chosen_R, length_R)
        self.length_R[of_rows] = length_R + alive_R

    def _read_prompts(self, places: Sequence[int]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Keys and values of prompts, and the reward at each one's end."""
        prompts = [torch.tensor(self.prompts[place]) for place in places]
        ids_PT = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(self.model.device)
        out = self.model.base_model(input_ids=ids_PT, past_key_values=DynamicCache(config=self.model.config), use_cache=True)
        ends_P = torch.tensor([len(prompt) - 1 for prompt in prompts], device=ids_PT.device)
        states_PD = out.last_hidden_state[torch.arange(len(places), device=ids_PT.device), ends_P]
        return [(keys, values) for keys, values, *_ in out.past_key_values], head_rewards(self.model, states_PD)


def guided_answers(
    policy: PreTrainedModel,
    judge: PreTrainedModel,
    prompts: Sequence[tuple[Sequence[int], Sequence[int]]],
    guidance: Guidance,
    direction: Direction,
    *,
    sampling: Sampling,
    answers: int = 1,
) -> Iterator[tuple[int, list[Answer]]]:
    """Yields `(place of the prompt, answers to it)` as each is complete, in any order.

    Args:
        policy: A causal model, whose likeliest tokens are the candidates.
        judge: A classification model with one label and the policy's vocabulary.
        prompts: What the policy and what the judge read before an answer, at least one token each.
        guidance: How tokens are chosen.
        direction: Whether rewards are to be low or high.
        sampling: Length, seed and rows at once; temperature and nucleus have no part in it.
        answers: To each prompt.
    """
    requests = [Request(tuple(of_policy), range(answers), stream) for stream, (of_policy, _) in enumerate(prompts)]
    guide = RewardGuide(
        judge,
        [of_judge for _, of_judge in prompts],
        guidance,
        direction,
        ends=end_tokens(policy),
        max_new_tokens=sampling.max_new_tokens,
    )
    with in_rows(judge):
        yield from iterate(policy, requests, sampling, guide)
