r"""HaF-RM's second loss: the language model's head learns the same preferences from the same pass as the reward head.

.. math:: L = L_\text{pair}(r_w, r_l) + \alpha \, L_\text{policy}\big(\log \pi(y_w | x), \log \pi(y_l | x)\big)

The head is dropped in the end: what is delivered is a reward model like any other.

Reference:
    HaF-RM, arXiv:2407.04185.
"""

# C conversations of a stream, P ordered pairs, L answer tokens.
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewardproof.config import Section
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch
from rewardproof.losses import dpo, ipo, policy_hinge
from rewardproof.models.cost import products_per_token
from rewardproof.models.language_head import HeadKind, LanguageHead
from rewardproof.models.packed import Auxiliary, PackedRewards
from rewardproof.training.answer_pairs import AnswerPairs, Answers, doubted, gap_of, wins
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batches import Collator, Stream
from rewardproof.training.fit import Fit
from rewardproof.training.objective import PairIndex
from rewardproof.training.reference import FILE, Reference, answer_keys, summed, values_of
from rewardproof.training.trainer import PackedRewardModule

JUDGES = ("reward", "implicit", "log_prob")
"""What orders held-out answers: the reward; the log-ratio to the reference, DPO's implicit reward; the plain log-probability."""

METRICS: tuple[str, ...] = ("loss/policy", "policy/implicit_accuracy", "policy/log_prob_accuracy", "policy/implicit_gap")
"""In the log, means over groups: the loss before its weight, both accuracies of the language model's head, and the gap in nats."""

Said = Mapping[str, Sequence[Sequence[float]]]
"""What each of `JUDGES` says of every answer of the judged groups."""


class PolicyLoss(Section):
    """The loss of the language model's head on the same pairs, beside the reward head's (HaF-RM)."""

    form: Literal["dpo", "hinge", "ipo", "ipo_sqrt", "ipo_full", "slic", "simpo"] = "dpo"
    """A name of `POLICY_LOSSES`: a function of the pair's log-probabilities, summed over tokens (`simpo`: averaged)."""
    weight: Annotated[float, Field(ge=0)] = 0.2
    """Weight beside the pairs' loss. Its gradient grows with the answers' length, since log-probabilities are sums over tokens."""
    tau: Annotated[float, Field(gt=0)] = 0.1
    """Scale of the log-ratios (DPO's beta)."""
    lm_head: HeadKind = "auto"
    """The language model's head: `tied` to the input embedding, weights of its `own` that train, or `frozen` as it was; `auto` is what
    training the language model itself would do where all layers train, and `frozen` with `layers=top:K` or `lora`."""
    alternate: Annotated[int, Field(ge=0)] = 0
    """Train by turns, so many steps by this loss alone, then as many by the pairs' alone; 0 takes their sum in every step."""


ScaledForm = Callable[[Answers, Answers, float], Tensor]
"""The preferred answers, the others, and tau, to one loss a pair, `(P,)`."""


def _simpo(chosen: Answers, rejected: Answers, tau: float) -> Tensor:
    means = [answers.log_prob_P / answers.length_P.clamp_min(1) for answers in (chosen, rejected)]
    return dpo(means[0] - means[1], beta=tau, reduction="none")


POLICY_LOSSES: Mapping[str, ScaledForm] = {
    "dpo": lambda chosen, rejected, tau: dpo(gap_of(chosen, rejected), beta=tau, reduction="none"),
    "hinge": lambda chosen, rejected, tau: policy_hinge(gap_of(chosen, rejected), beta=tau, reduction="none"),
    "ipo": lambda chosen, rejected, tau: ipo(gap_of(chosen, rejected), tau=tau, reduction="none"),
    "ipo_sqrt": lambda chosen, rejected, tau: ipo(gap_of(chosen, rejected), tau=tau, scale=tau, reduction="none"),
    "ipo_full": lambda chosen, rejected, tau: ipo(gap_of(chosen, rejected), tau=tau, scale=tau**2, reduction="none"),
    "slic": lambda chosen, _rejected, _tau: -chosen.log_prob_P,
    "simpo": _simpo,
}


class PolicyTerm(AuxiliaryTerm):
    """The policy's loss on each stream's ordered pairs, from the pass that gives their rewards."""

    needs_answers = True
    can_be_sharded = False

    def __init__(
        self,
        settings: PolicyLoss,
        head: LanguageHead,
        *,
        label_smoothing: float = 0.0,
        judge: Callable[[Said], Mapping[str, Any]] = lambda _: {},
    ) -> None:
        """Join a head and the loss.

        Args:
            settings: Form and weights.
            head: The language model's head.
            label_smoothing: Probability that a pair's label is wrong, where the pair does not say it itself.
            judge: Makes plain values for the report of what is said of the run's judged groups.
        """
        super().__init__()
        self.settings = settings
        self.head = head
        self.label_smoothing = label_smoothing
        self.judge = judge
        self.reference = Reference()
        self.resting: Literal["", "pairs", "policy"] = ""

    def answer_log_probs(self, output: PackedRewards, batch: PackedBatch) -> Tensor:
        """Log-probability of each conversation's answer, summed over `batch.target_L`, shape `(C,)`."""
        assert output.answer_states_LD is not None
        return summed(self.head.log_probs(output.answer_states_LD, batch.target_L), batch)

    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        """The loss, averaged over each group's pairs, and how the answers are ordered by both kinds of log-probability."""
        log_prob_C = self.answer_log_probs(output, stream.batch)
        index = PairIndex.of(stream.batch, log_prob_C.device)
        pairs = AnswerPairs.of(log_prob_C, self.reference.of(stream.groups), stream.batch, index)
        losses_P = self._losses(pairs, index.doubt_P)
        loss = (index.weight_P * losses_P).sum()
        plain_P, implicit_P = pairs.chosen.log_prob_P - pairs.rejected.log_prob_P, gap_of(*pairs)
        with torch.no_grad():
            # Not a matrix product, which autocast would round to bf16.
            found = (torch.stack((losses_P, wins(implicit_P), wins(plain_P), implicit_P)) * index.weight_P).sum(dim=1)
        metrics = dict(zip(METRICS, found.tolist(), strict=True))
        own, others = (0.0 if self.training and self.resting == part else 1.0 for part in ("policy", "pairs"))
        return Auxiliary(own * self.settings.weight * loss, metrics, others)

    def _losses(self, pairs: AnswerPairs, doubt_P: Tensor) -> Tensor:
        """What is doubtful is a pair's label, whichever head learns it."""
        form, tau = POLICY_LOSSES[self.settings.form], self.settings.tau
        doubt_P = torch.where(doubt_P > 0, doubt_P, self.label_smoothing)
        return doubted(lambda chosen, rejected: form(chosen, rejected, tau), pairs, doubt_P)

    def before(self, run: Fit, module: PackedRewardModule, collator: Collator) -> None:
        """Ask the model that training starts from for the reference's log-probabilities, once."""

        def read(groups: Sequence[EncodedGroup]) -> Any:
            return _said(groups, self.answer_log_probs, run, module, collator)

        self.reference.keep(
            run.folder / FILE, _asked(run), read, progress=lambda done, total: run.progress("reference log-probabilities", done, total)
        )

    def after(self, run: Fit, module: PackedRewardModule, collator: Collator) -> Mapping[str, Any]:
        """How the three kinds of reward order the judged groups' answers."""
        said: dict[str, list[tuple[float, ...]]] = {name: [] for name in JUDGES}

        def both(output: PackedRewards, batch: PackedBatch) -> Tensor:
            return torch.stack((output.rewards_C, self.answer_log_probs(output, batch)), dim=1)

        for group, values in _said(run.judged, both, run, module, collator):
            rewards, log_probs = zip(*values, strict=True)
            implicit = (here - before for here, before in zip(log_probs, self.reference.of([group]).tolist(), strict=True))
            for name, row in zip(JUDGES, (rewards, tuple(implicit), log_probs), strict=True):
                said[name].append(row)
        head = {"kind": self.head.kind, "trains": self.head.trains, "parameters": self.head.products}
        return {"policy": {"lm_head": head, "reference_answers": len(self.reference.log_probs), **self.judge(said)}}

    def operations(self, run: Fit, epochs: float) -> int:
        """The head's products in training, its logits computed twice, and the pass that asks the reference."""
        trained = [entry.group for entry in run.train.groups]
        factor = 8 if self.head.trains else 6
        training = factor * self.head.products * epochs * _answer_tokens(trained)
        asked = _asked(run)
        once = products_per_token(run.model) * sum(group.n_tokens for group in asked) + self.head.products * _answer_tokens(asked)
        return round(training + 2 * once)


class Alternate(TrainerCallback):
    """Lets the two losses take turns: the policy's first."""

    def __init__(self, module: PackedRewardModule, steps: int) -> None:
        """Give each of them so many steps."""
        self.module = module
        self.steps = steps
        self.terms = [term for term in module.terms if isinstance(term, PolicyTerm)]

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say whose loss rests in this step."""
        for term in self.terms:
            term.resting = "policy" if state.global_step // self.steps % 2 else "pairs"

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the optimiser from moving a head whose loss rests: a gradient of zero would carry its momentum on."""
        for term in self.terms:
            head = self.module.model.get_submodule("score") if term.resting == "pairs" else term.head
            for parameter in head.parameters():
                parameter.grad = None


def _said(
    groups: Sequence[EncodedGroup],
    reader: Callable[[PackedRewards, PackedBatch], Tensor],
    run: Fit,
    module: PackedRewardModule,
    collator: Collator,
) -> Iterator[tuple[EncodedGroup, list[Any]]]:
    """Each group with what a reader says of each of its conversations, of the module's own pass."""
    return values_of(
        module,
        groups,
        lambda stream: reader(module.passed(stream), stream.batch),
        collator=collator,
        device=run.model.device,
        precision=run.compute.precision,
    )


def _asked(run: Fit) -> list[EncodedGroup]:
    sets = [part for part in (run.train, run.held_out) if part is not None]
    found = [entry.group for part in sets for entry in part.groups] + list(run.judged)
    return list({tuple(answer_keys(group)): group for group in found}.values())


def _answer_tokens(groups: Sequence[EncodedGroup]) -> int:
    return sum(
        len(tokens) - max(start, 1) for group in groups for tokens, start in zip(group.conversations, group.answer_starts, strict=True)
    )
