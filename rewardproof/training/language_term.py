"""A language model's loss on the preferred answers as a term of the objective (GRM), read by the base model's own head."""

# L answer tokens, C conversations, P pairs.
from __future__ import annotations

import torch
from transformers import PreTrainedModel

from rewardproof.losses import chosen_likelihood
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.language_head import LanguageHead
from rewardproof.models.packed import Auxiliary, PackedRewards
from rewardproof.training.auxiliary import AuxiliaryTerm
from rewardproof.training.batches import Stream
from rewardproof.training.objective import PairIndex


class ChosenLanguage(AuxiliaryTerm):
    """Reference-free and on preferred answers alone: what they say keeps shaping the states that the reward is read from.

    The head is the base model's. Where it is tied to the embeddings these are read as they are, and train where they do; one of its own
    stays as it was.

    Reference:
        Yang et al., GRM, arXiv:2406.10216; BNRM, arXiv:2602.10623 (GRM-BNRM, weight 0.01).
    """

    needs_answers = True

    def __init__(self, model: PreTrainedModel, base: str, *, weight: float, beta: float) -> None:
        """Find the head that reads the model's states as the language model `base` does.

        Raises:
            ModelError: `base` is no language model, and the head is not tied to the embeddings.
        """
        super().__init__()
        self.weight, self.beta = weight, beta
        if getattr(model.config, "tie_word_embeddings", False):
            self.head = LanguageHead(model, "tied", None)
            return
        head = load_causal(base)[0].get_output_embeddings()
        assert head is not None, "a causal model has one"
        self.head = LanguageHead(model, "frozen", head)

    def forward(self, output: PackedRewards, stream: Stream) -> Auxiliary:
        """The term on one stream, each pair by its weight in its group."""
        assert output.answer_states_LD is not None
        batch = stream.batch
        index = PairIndex.of(batch, output.rewards_C.device)
        preferred_C = torch.zeros_like(output.rewards_C, dtype=torch.bool)
        preferred_C[index.winner_P] = True
        read_L = preferred_C[batch.target_conversation_L]
        owner_L = batch.target_conversation_L[read_L]
        log_probs_L = self.head.log_probs(output.answer_states_LD[read_L], batch.target_L[read_L])
        sums_C = torch.zeros_like(output.rewards_C).index_add(0, owner_L, log_probs_L)
        tokens_C = torch.bincount(owner_L, minlength=len(sums_C)).clamp_min(1)
        loss = (index.weight_P * chosen_likelihood(sums_C[index.winner_P], beta=self.beta, reduction="none")).sum()
        per_token = (index.weight_P * (sums_C / tokens_C)[index.winner_P]).sum()
        metrics = {"language/loss": float(loss.detach()), "language/log_prob_per_token": float(per_token.detach())}
        return Auxiliary(self.weight * loss, metrics)
