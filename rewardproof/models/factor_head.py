"""A reward head of non-negative factors (BNRM): each answer's factors θ times a dictionary Φ that all answers share.

Both have Weibull posteriors, that of θ by two small networks on the hidden state, that of Φ by free parameters. Training samples them;
evaluation takes the posterior mean, so that a reward is a number and not a draw. The head stands where a stock model has its linear one.
"""

# D hidden width, K factors, N answers, S samples; … stands for any leading dimensions.
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from rewardproof.config import Section
from rewardproof.errors import ModelError
from rewardproof.losses import weibull_sample, weibull_scale

FACTORS_KEY = "rewardproof_factors"
"""Entry in the model's configuration that says how its head of factors is built."""
FACTORS_FILE = "factors.safetensors"
FLOOR, CEILING = 1e-6, 1e4
"""Bounds of means and of shapes less one, which keep logarithms finite; a factor whose mean is at the floor is dead."""

Positive = Annotated[float, Field(gt=0)]


class Factors(Section):
    """A reward head of non-negative factors, in place of the linear one."""

    n_factors: Annotated[int, Field(ge=1)] = 1024
    """Factors K; also the inner width of the networks."""
    layer: Literal["mlp", "linear"] = "mlp"
    """Networks of one hidden layer, or of none; without one, an answer's factors share the shape of their posteriors."""
    dictionary_init: Literal["half_normal", "release"] = "half_normal"
    """Where Φ starts: |N(0, 1/K)|, or as the release's, uniform around zero, so that under relu half of it is dead from the first step."""
    dictionary_activation: Literal["relu", "softplus"] = "relu"
    """What makes Φ non-negative; under `softplus` none of it can die."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the hidden state's entries that the head does not see while training."""
    theta_prior: tuple[Positive, Positive] = (1.0, 1.0)
    """Shape and rate of the Gamma prior of an answer's factors."""
    phi_prior: tuple[Positive, Positive] = (1.0, 1.0)
    """Shape and rate of the Gamma prior of the dictionary."""
    kl_theta: Annotated[float, Field(ge=0)] = 5e-3
    """Weight of the divergence of θ from its prior, averaged over factors. The published weight, 1e-5, is for `kl_over=all`, which sums
    over some 500 positions; the default is as strong on one position, or on the mean of all."""
    kl_phi: Annotated[float, Field(ge=0)] = 1e-5
    """Weight of the divergence of Φ from its prior, averaged over factors; it has no positions, so the published weight stands."""
    kl_over: Literal["scored", "valid", "all"] = "scored"
    """Where the divergence of θ is taken: at the position that the reward is read from, as the mean over a conversation's tokens, or as
    their sum, as published, which makes the weight depend on length. There are no pads to count."""


class Posterior(NamedTuple):
    """Weibull posteriors: their means, and the shapes and scales that give them."""

    mean: Tensor
    shape: Tensor
    scale: Tensor

    @classmethod
    def of(cls, mean: Tensor, raw_shape: Tensor) -> Posterior:
        """By means, which are raised to the floor, and shapes before softplus, which come out above 1."""
        mean, shape = mean.clamp(FLOOR, CEILING), F.softplus(raw_shape).clamp(FLOOR, CEILING) + 1
        return cls(mean, shape, weibull_scale(mean, shape))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw of each, with a gradient."""
        noise = torch.rand(self.scale.shape, generator=generator, dtype=self.scale.dtype, device=self.scale.device)
        return weibull_sample(self.scale, self.shape, noise)


class Dictionary(nn.Module):
    """The means of Φ, kept as what an activation makes non-negative."""

    def __init__(self, settings: Factors) -> None:
        """Draw the start."""
        super().__init__()
        self.activation = settings.dictionary_activation
        bound = settings.n_factors**-0.5
        if settings.dictionary_init == "release":
            weight_K = torch.empty(settings.n_factors).uniform_(-bound, bound)
        else:
            weight_K = torch.empty(settings.n_factors).normal_(std=bound).abs()
            if self.activation == "softplus":
                weight_K = weight_K.clamp_min(FLOOR).expm1().log()
        self.weight = nn.Parameter(weight_K)

    def forward(self) -> Tensor:
        """Means, >= 0, shape `(K,)`."""
        return F.softplus(self.weight) if self.activation == "softplus" else F.relu(self.weight)


class FactorHead(nn.Module):
    r"""Reward of a hidden state by its factors.

    .. math:: r = \theta(h)^\top \Phi + \mathrm{relu}(b), \qquad \theta(h) = \mathrm{relu}(\mathrm{MLP}_l(h)) \text{ in evaluation}

    Reference:
        BNRM, arXiv:2602.10623, eq. 5 to 8 and Algorithm 1.
    """

    def __init__(self, width: int, settings: Factors) -> None:
        """Draw a head for hidden states of a width from torch's global generator; it is kept in float32."""
        super().__init__()
        n_factors, mlp = settings.n_factors, settings.layer == "mlp"
        inner = n_factors if mlp else 0
        self.dropout = nn.Dropout(settings.dropout)
        self.theta_mean = _network(width, n_factors, inner)
        self.theta_shape = _network(width, n_factors if mlp else 1, inner)
        self.dictionary = Dictionary(settings)
        self.phi_shape = _network(1, 1, inner)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, states_D: Tensor) -> Tensor:
        """Rewards, >= 0, `(…, 1)` of states `(…, D)`, outside autocast: sampled in training, one Φ for all, the mean in evaluation."""
        with torch.autocast(states_D.device.type, enabled=False):
            if self.training:
                rewards = self.theta(states_D).sample() @ self.phi().sample()
            else:
                rewards = self.activations(states_D) @ self.dictionary()
            return (rewards + F.relu(self.bias))[..., None]

    def activations(self, states_D: Tensor) -> Tensor:
        """Posterior means of an answer's factors without dropout, >= 0, shape `(…, K)`: what a reward in evaluation is made of."""
        with torch.autocast(states_D.device.type, enabled=False):
            return F.relu(self.theta_mean(self._full(states_D))).clamp_max(CEILING)

    def theta(self, states_D: Tensor) -> Posterior:
        """Posterior of the factors of states, `(…, K)` each, behind dropout while training."""
        with torch.autocast(states_D.device.type, enabled=False):
            states_D = self.dropout(self._full(states_D))
            return Posterior.of(F.relu(self.theta_mean(states_D)), self.theta_shape(states_D))

    def phi(self) -> Posterior:
        """Posterior of the dictionary, `(K,)` each."""
        mean_K = self.dictionary()
        with torch.autocast(mean_K.device.type, enabled=False):
            return Posterior.of(mean_K, self.phi_shape(mean_K[:, None])[:, 0])

    def draws(self, states_ND: Tensor, n_samples: int, *, seed: int = 0) -> Tensor:
        """Rewards under draws from the posterior without dropout, shape `(S, N)`; one Φ a draw, for all answers; no gradient."""
        generator = torch.Generator(states_ND.device).manual_seed(seed)
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                theta, phi = self.theta(states_ND), self.phi()
                made = [theta.sample(generator) @ phi.sample(generator) + F.relu(self.bias) for _ in range(n_samples)]
        finally:
            self.train(was_training)
        return torch.stack(made)

    def _full(self, states_D: Tensor) -> Tensor:
        return states_D.to(self.bias.dtype)


def _network(width: int, outputs: int, inner: int) -> nn.Module:
    if not inner:
        return nn.Linear(width, outputs)
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, outputs))


def has_factors(model: PreTrainedModel) -> bool:
    """Whether the model's configuration says that its head is one of factors."""
    return hasattr(model.config, FACTORS_KEY)


def factor_head_of(model: PreTrainedModel) -> FactorHead:
    """The model's head of factors.

    Raises:
        ModelError: It has another head.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, FactorHead):
        raise ModelError(
            f"{type(model).__name__} has {'a linear' if isinstance(head, nn.Linear) else 'no'} reward head, expected one of factors: only "
            "such a head has activations and a posterior to sample. Train one with recipe bnrm."
        )
    return head


def install_factors(model: PreTrainedModel, settings: Factors, *, seed: int) -> None:
    """Replace a classifier's head, in place, by one of factors that a seed draws; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = FactorHead(model.config.hidden_size, settings)
    cast("Any", model).score = head.to(model.device)
    setattr(model.config, FACTORS_KEY, settings.model_dump(mode="json"))


def restore_factors(model: PreTrainedModel, entry: Mapping[str, Any]) -> None:
    """Give a freshly built model the head that a checkpoint's configuration describes, without data; weights come after."""
    with torch.device("meta"):
        cast("Any", model).score = FactorHead(model.config.hidden_size, Factors(**entry))
    setattr(model.config, FACTORS_KEY, dict(entry))


def dead_factors(activations_NK: Tensor, phi_K: Tensor) -> Tensor:
    """Which factors give none of these answers a reward, shape `(K,)`: Φ is at its floor, or θ is for all of them."""
    return (phi_K <= FLOOR) | (activations_NK.amax(dim=0) <= FLOOR)


def factors_in_effect(activations_NK: Tensor, phi_K: Tensor) -> float:
    """How many factors of equal parts the mean reward would be made of, by the entropy of their parts; 0 where all are dead."""
    parts_K = activations_NK.double().mean(dim=0) * phi_K.double()
    total = parts_K.sum()
    return float(torch.special.entr(parts_K / total).sum().exp()) if total > 0 else 0.0


def travelled(phi_K: Tensor, start_K: Tensor) -> float:
    """How far a dictionary is from where it started, relative to its norm there."""
    distance, norm = float((phi_K - start_K).norm()), float(start_K.norm())
    return distance / norm if norm > 0 else 0.0


LOADING_NOTE = """# A reward model with a head of non-negative factors

The reward is `theta(h) · Phi + b` with a two-layer network `theta` on the final hidden state of the last token, not a linear map of it, so
that no `*ForSequenceClassification` of transformers, vLLM or SGLang can express it. The weights, backbone and head, are in
`factors.safetensors`, a name that transformers does not look for: `AutoModelForSequenceClassification.from_pretrained` stops and says
that it finds no `model.safetensors`, where it would else draw a random head. Load it with rewardproof:

```python
from rewardproof import RewardModel

model = RewardModel.load("this/folder")
```

`rewardproof score`, `evaluate` and `stress` read this folder as any other model. Rewards are never negative and have no upper
bound; `mean` and `std` in `config.json` are those of held-out answers: subtract the mean before optimising a policy.
"""
