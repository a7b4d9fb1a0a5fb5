"""A reward model that reads the policy: its final state attends to the policy's states, and a schedule mixes what it finds in.

    Ĥ = CrossAttention(H, h)        w(t) = max(½ cos(π t / T) + ½, Ω)        r = φ((1 − w) Ĥ + w H)

H is the reward model's own final state, h the policy's states of prompt and answer, t the policy's step of T. Nothing of the reward model
below the head φ ever changes. Without a policy, in an evaluation or on a server, w is 1: `score` gives the reward model's own reward,
the head as it stands.

Reference:
    R2M, arXiv:2601.22664, eq. 3 and 4.
"""

# B answers, D reward model's width, P policy's width, S tokens of one text.
from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rewardproof.config import parse
from rewardproof.data.group import Group
from rewardproof.errors import CheckpointError, EvaluationError
from rewardproof.models.checkpoints import forget_reward_scale
from rewardproof.models.cross_attention import AttentionShape, CrossAttention
from rewardproof.models.packed import RewardsAndStates
from rewardproof.models.precision import Precision
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.tensor_files import save_whole

log = logging.getLogger(__name__)
Feedback = Literal["policy", "noise"]
FEEDBACK_FILE = "policy_feedback.safetensors"
"""Beside a saved reward model: the attention to the policy, its shape and what it was trained with in the header."""


@runtime_checkable
class PolicyMoment(Protocol):
    """What has to be known of a policy to read it; the on-policy loop's `Moment` is one."""

    @property
    def step(self) -> int:
        """Updates that it has had."""
        ...

    @property
    def steps(self) -> int:
        """Updates of its whole run."""
        ...

    @property
    def policy_states(self) -> Callable[[], Sequence[Tensor]]:
        """Gives its final hidden states of every conversation, prompt and answer, `(S, P)` each."""
        ...


def own_weight(step: int, steps: int, *, floor: float) -> float:
    """w(t), the weight of the reward model's own state: 1 at first, along half a cosine down to its floor.

    Example:
        >>> [own_weight(step, 100, floor=0.6) for step in (0, 50, 100)]
        [1.0, 0.6, 0.6]
    """
    return max(0.5 * math.cos(math.pi * step / max(steps, 1)) + 0.5, floor)


class RewardAsGiven:
    """A reward model with the head that it has now, whatever that one learns later; a `Scorer`."""

    def __init__(self, model: RewardModel) -> None:
        """Keep a copy of the head."""
        self.model = model
        self.head = copy.deepcopy(model.model.get_submodule("score")).requires_grad_(False)

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Rewards of every answer of every group; the policy is not read. Raises as the reward model."""
        learnt = self.model.model.get_submodule("score")
        self.model.model.score = self.head
        try:
            return self.model.score(groups)
        finally:
            self.model.model.score = learnt


class PolicyFeedbackReward:
    """A reward model with the policy's states in its reward; a `Scorer` whose context is the policy's moment.

    The head is the reward model's own module: who trains it trains the reward model's.
    """

    def __init__(
        self, model: RewardModel, policy_width: int, shape: AttentionShape, *, floor: float, feedback: Feedback = "policy", seed: int = 0
    ) -> None:
        """Join a reward model and an attention that has not learnt yet.

        Args:
            model: The reward model.
            policy_width: Hidden width of the policy.
            shape: Of the attention.
            floor: Ω, the least weight of the reward model's own state; with 1 the policy is never read.
            feedback: `noise` puts Gaussian noise with the mean and variance of each text's states in their place.
            seed: Of the attention's start and of the noise.
        """
        self.model = model
        self.policy_width = policy_width
        self.floor = floor
        self.feedback: Feedback = feedback
        self.seed = seed
        self.head = model.model.get_submodule("score")
        self.as_given = RewardAsGiven(model)
        self.attention = CrossAttention(model.model.config.hidden_size, policy_width, shape, seed=seed).to(model.model.device)
        self.latest: RewardsAndStates | None = None
        self.without_policy = 0

    @classmethod
    def load(cls, folder: str | Path, *, precision: Precision = "fp32", device: torch.device | None = None) -> PolicyFeedbackReward:
        """Load what `save` wrote.

        Args:
            folder: Of the reward model; `OUT/reward` of a run.
            precision: Of the reward model's forward pass.
            device: Where to put it; the accelerator if there is one.

        Raises:
            CheckpointError: The attention is missing, damaged, or of another reward model.
            ModelError: The reward model cannot be loaded.
        """
        model, path = RewardModel.load(folder, precision=precision, device=device), Path(folder) / FEEDBACK_FILE
        try:
            with safe_open(path, "pt") as file:
                told: dict[str, Any] = json.loads(file.metadata()["policy_feedback"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shape = parse(AttentionShape, told.pop("attention"))
            one = cls(model, told.pop("policy_width"), shape, **told)
            one.attention.load_state_dict(tensors)
        except (OSError, RuntimeError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({str(error).strip().splitlines()[0]}), expected the attention by which this reward model read a "
                "policy, as `align r2m` leaves it. Copy the folder again, or score without a policy: RewardModel.load."
            ) from error
        return one

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Write the reward model, its head as it stands, as any reward model is written, and the attention beside it.

        Raises:
            CheckpointError: It cannot be written.
        """
        forget_reward_scale(self.model.model)
        path = self.model.save(folder, dtype=dtype)
        told = {
            "policy_width": self.policy_width, "attention": self.attention.shape.model_dump(), "floor": self.floor,
            "feedback": self.feedback, "seed": self.seed,
        }  # fmt: skip
        save_whole(path / FEEDBACK_FILE, self.attention.state_dict(), metadata={"policy_feedback": json.dumps(told)})
        return path

    @property
    def parts(self) -> nn.ModuleDict:
        """What may learn: attention and head."""
        return nn.ModuleDict({"attention": self.attention, "head": self.head})

    def weight(self, step: int, steps: int) -> float:
        """The weight of the reward model's own state."""
        return own_weight(step, steps, floor=self.floor)

    def score(self, groups: Sequence[Group], context: object = None) -> list[tuple[float, ...]]:
        """Rewards of every answer of every group; what they are made from is kept in `latest` until the next call.

        Args:
            groups: The groups of answers that the policy's states belong to.
            context: The policy's moment; without one w is 1, which is logged once and counted in `without_policy`.

        Raises:
            DataError: A conversation has more tokens than the reward model has positions.
            EvaluationError: The context is no moment, its states are not of these answers, or a reward is not finite.
        """
        read = self.model.rewards_and_states(groups)
        weight = self._weight_at(context, answers=len(read.rewards_B))
        if isinstance(context, PolicyMoment) and weight < 1:
            states = self.fed(groups, context.policy_states(), step=context.step)
            with torch.no_grad():
                read = read._replace(rewards_B=self.rewards(read.states_BD, states, weight).cpu())
        self.latest = read
        return [tuple(part.tolist()) for part in read.rewards_B.split([len(group.answers) for group in groups])]

    def rewards(self, own_BD: Tensor, policy_states: Sequence[Tensor], weight: float) -> Tensor:
        """Rewards with a gradient for attention and head, in float32, shape `(B,)`.

        Args:
            own_BD: The reward model's states, as `latest` has them.
            policy_states: The policy's, one tensor `(S, P)` an answer; not looked at where the weight is 1.
            weight: Of the reward model's own states.
        """
        with torch.autocast(own_BD.device.type, enabled=False):
            mixed_BD = own_BD
            if weight < 1:
                texts = [states_SP.to(own_BD) for states_SP in policy_states]
                mixed_BD = (1 - weight) * self.attention(own_BD, texts) + weight * own_BD
            return self.head(mixed_BD.to(next(self.head.parameters()).dtype))[:, 0].float()

    def fed(self, groups: Sequence[Group], policy_states: Sequence[Tensor], *, step: int) -> list[Tensor]:
        """What is read in the policy's place: its states, or noise that depends on seed, step, prompt and answer alone.

        Raises:
            EvaluationError: There are not as many states as answers, or they are of another width.
        """
        answers = [(group, index) for group in groups for index in range(len(group.answers))]
        widths = {states_SP.shape[-1] for states_SP in policy_states}
        if len(policy_states) != len(answers) or widths - {self.policy_width}:
            raise EvaluationError(
                f"Got states of {len(policy_states)} texts, of width {', '.join(map(str, sorted(widths)))}, for {len(answers)} answers and "
                f"a policy of width {self.policy_width}: expected one text an answer, in order. A reward would be read from another "
                "text. Give the moment whose policy wrote these answers."
            )
        if self.feedback == "policy":
            return list(policy_states)
        return [self._noise(group, index, states_SP, step) for (group, index), states_SP in zip(answers, policy_states, strict=True)]

    def _noise(self, group: Group, index: int, states_SP: Tensor, step: int) -> Tensor:
        """Every process and every run again draws the same, whatever else it scores."""
        name = hashlib.sha256(f"{self.seed} {step} {group.prompt_key} {index}".encode()).digest()
        draw_SP = torch.randn(states_SP.shape, generator=torch.Generator().manual_seed(int.from_bytes(name[:8], "big") >> 1))
        std, mean = torch.std_mean(states_SP.float())
        return draw_SP.to(states_SP.device) * std + mean

    def _weight_at(self, context: object, *, answers: int) -> float:
        if isinstance(context, PolicyMoment):
            return self.weight(context.step, context.steps)
        if context is not None:
            raise EvaluationError(
                f"Got a {type(context).__name__} as context, expected the policy's moment (step, steps, policy_states) or nothing: with "
                "it the reward reads the policy, with nothing it is the reward model's own. Pass one of the two."
            )
        if not self.without_policy:
            log.warning("scoring without a policy: its states are left out, rewards are the reward model's own (w = 1)")
        self.without_policy += answers
        return 1.0
