"""The two layers of DMoERM: a router that reads the user's queries, and one category's experts, adapters whose states a network joins.

The adapters lie side by side on one frozen reward model. Its layers below the first adapted one put out the same for all of them and run
once; the others run once an adapter.

Reference:
    Quan, DMoERM: Recipes of Mixture-of-Experts for Effective Reward Modeling, arXiv:2403.01197.
"""

# N queries, V categories, C conversations, K experts, D hidden width, T tokens of a stream.
from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rewardproof.artifacts import writing
from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch, fill, pack
from rewardproof.errors import CheckpointError, ConfigError, MissingExtraError
from rewardproof.models.cost import products_per_token
from rewardproof.models.families import family_of, is_padded_only
from rewardproof.models.packed import PackedRewards, end_states, position_boundary, position_table
from rewardproof.models.precision import Precision, computing_in, default_budget
from rewardproof.models.saving import save_model
from rewardproof.models.tensor_files import save_whole
from rewardproof.models.trunk import FrozenTrunk, group_key

MIXER_FILE = "mixer.safetensors"
KEPT_BYTES = 2_000_000_000
"""Experts' states that are kept in memory while the network over them trains."""
LORA = {"r": 32, "lora_alpha": 32, "lora_dropout": 0.05}
"""Published settings of an expert."""
FUSED_PROJECTIONS = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"], "phi3": ["qkv_proj"]}
"""What is adapted where queries and values have no projection of their own."""


class QueryRouter:
    r"""Which category a conversation is of, by what its user said: :math:`\arg\max_t (W_r h_{\text{last}} + b_r)_t`."""

    def __init__(self, model: PreTrainedModel, categories: Sequence[str], *, precision: Precision = "fp32") -> None:
        """Wrap a classifier whose head, `score`, has a row a category."""
        self.model = model
        self.categories = tuple(categories)
        self.precision: Precision = precision

    @property
    def longest(self) -> int | None:
        """Tokens that it can read; `None` where there is no limit."""
        return position_table(self.model)

    def logits(self, queries: Sequence[tuple[int, ...]]) -> Tensor:
        """Logits of the categories, shape `(N, V)`; of a query that is too long it reads the end."""
        device = self.model.device
        self.model.eval()
        # Rotary factors that depend on the longest text of a stream must not let one query change another's category.
        budget = 1 if position_boundary(self.model) is not None else default_budget(device)
        found: list[Tensor] = []
        with torch.inference_mode(), computing_in(self.precision, device):
            groups = (query_group(tokens, number, limit=self.longest) for number, tokens in enumerate(queries))
            for run in fill(groups, tokens_per_batch=budget):
                states_CD = end_states(self.model, pack(run).to(device))
                found.append(category_logits(self.model, states_CD).cpu())
        return torch.cat(found) if found else torch.empty(0, len(self.categories))

    def route(self, queries: Sequence[tuple[int, ...]]) -> list[str]:
        """The category of each; equal queries are read once."""
        distinct = list(dict.fromkeys(queries))
        chosen = dict(zip(distinct, self.logits(distinct).argmax(dim=1).tolist(), strict=True))
        return [self.categories[chosen[tokens]] for tokens in queries]

    def save(self, path: Path, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype | None = None) -> tuple[float, ...]:
        """Write a stock classifier, which has no place for an offset; that is returned, to be kept beside it."""
        head = self.model.get_submodule("score")
        assert isinstance(head, nn.Linear)
        bias = head.bias
        head.bias = None  # pyright: ignore[reportAttributeAccessIssue]
        try:
            save_model(self.model, tokenizer, path, dtype=dtype)
        finally:
            head.bias = bias
        return tuple(bias.detach().tolist())

    @classmethod
    def load(cls, path: Path, bias: Sequence[float], categories: Sequence[str], *, precision: Precision = "fp32") -> QueryRouter:
        """Load what `save` wrote.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        try:
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32, use_safetensors=True)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"The router in {path} cannot be read ({str(error).strip().splitlines()[0]}), expected a whole classifier: without it "
                "nothing says which category's experts judge. Copy the model again, or train it again."
            ) from error
        put_category_head(model, categories, bias=bias)
        return cls(model.eval(), categories, precision=precision)


def query_group(tokens: tuple[int, ...], index: int, *, limit: int | None = None) -> EncodedGroup:
    """A user's queries, or their last `limit` tokens, as a group of one conversation."""
    read = tokens[-limit:] if limit else tokens
    return EncodedGroup((read,), 0, (len(read) - 1,), index)


def category_logits(model: PreTrainedModel, states_CD: Tensor) -> Tensor:
    """What the head makes of final states, shape `(C, V)`, float32; the cross-entropy takes them as they are."""
    head = model.get_submodule("score")
    return head(states_CD.to(next(head.parameters()).dtype)).float()


def put_category_head(model: PreTrainedModel, categories: Sequence[str], *, bias: Sequence[float] = ()) -> None:
    """Give a classifier's head an offset; a head of another size than the categories gives way to one of zeros."""
    old = model.get_submodule("score").get_parameter("weight")
    head = nn.Linear(old.shape[1], len(categories), device=old.device, dtype=old.dtype)
    with torch.no_grad():
        head.weight.copy_(old) if len(old) == len(categories) and bias else head.weight.zero_()
        head.bias.copy_(torch.tensor(bias)) if bias else head.bias.zero_()
    model.score = head
    model.config.id2label = dict(enumerate(categories))
    model.config.label2id = {name: number for number, name in enumerate(categories)}
    model.config.problem_type = "single_label_classification"


def adapter_name(number: int) -> str:
    """What peft calls an expert: neither a layer's number, nor the beginning of another expert's name."""
    return f"point_{number:03d}"


def add_experts(model: PreTrainedModel, layers: range, n_experts: int, settings: Mapping[str, Any], *, seed: int) -> Any:
    """Put one adapter an expert on a reward model, each with a copy of its head; returns peft's model around it.

    An adapter starts as nothing: its second matrix is zero, so that every expert gives the model's own reward.

    Raises:
        MissingExtraError: peft is not installed.
        ConfigError: It refuses the settings.
    """
    peft = _peft()
    chosen = {
        **LORA,
        "target_modules": FUSED_PROJECTIONS.get(model.config.model_type, ["q_proj", "v_proj"]),
        "layers_to_transform": list(layers),
        "fan_in_fan_out": family_of(model).transposed,
        **settings,
        "modules_to_save": ["score"],
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            adapted = peft.get_peft_model(model, peft.LoraConfig(**chosen), adapter_name=adapter_name(0))
            for number in range(1, n_experts):
                adapted.add_adapter(adapter_name(number), peft.LoraConfig(**chosen))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"Bad `capabilities.lora` settings: {error}. They are handed to peft.LoraConfig; correct the key or value named."
            ) from error
    return adapted


def save_expert(adapted: Any, number: int, folder: Path) -> Path:
    """Write an expert, adapter and head, as peft's own checkpoint `folder/point_NNN`, whole or not at all."""
    target = folder / adapter_name(number)
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=folder))
    try:
        with writing(target, discard=partial):
            adapted.save_pretrained(str(partial), selected_adapters=[target.name], save_embedding_layers=False)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial / target.name, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def load_experts(model: PreTrainedModel, folder: Path, n_experts: int) -> Any:
    """Put saved experts on the model that they were trained on; returns peft's model around it.

    Raises:
        MissingExtraError: peft is not installed.
        CheckpointError: One is missing or damaged.
    """
    peft = _peft()
    places = [folder / adapter_name(number) for number in range(n_experts)]
    try:
        for place in places:
            if not (place / "adapter_model.safetensors").is_file():  # peft would unpickle an adapter_model.bin instead
                raise FileNotFoundError(f"{place.name} has no adapter_model.safetensors")
        adapted = peft.PeftModel.from_pretrained(model, str(places[0]), adapter_name=places[0].name)
        for place in places[1:]:
            adapted.load_adapter(str(place), adapter_name=place.name, torch_device=str(model.device))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"The experts in {folder} cannot be read ({str(error).strip().splitlines()[0]}), expected {n_experts} whole adapters for the "
            "model beside them. Copy the model again, or train it again."
        ) from error
    return adapted


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            "Experts by capability are peft's adapters, and peft is not installed; install it with: pip install 'rewardproof[lora]'"
        ) from error
    return peft


def expert_parameters(model: PreTrainedModel, number: int) -> list[nn.Parameter]:
    """What trains of an expert: its adapter's matrices and its own head."""
    return [parameter for name, parameter in model.named_parameters() if f".{adapter_name(number)}." in name]


class CapabilityExperts(nn.Module):
    r"""The experts of one category as one reward: :math:`r = W_2 \, \mathrm{PReLU}(W_1 [z_0; \dots; z_{K-1}] + b_1) + b_2`.

    It holds the network and knows the adapters; the model that carries them is handed to it. Only the network learns.

    Attributes:
        points: Capability points in the order in which their experts' states are joined.
        mixer: The network.
        learned_tokens: Tokens through the experts so far while the network learned; states that were kept are not computed again.
    """

    def __init__(self, model: PreTrainedModel, points: Sequence[str], *, seed: int = 0) -> None:
        """Stand over the experts that lie on a model, one a point, with a network drawn by `seed`."""
        super().__init__()
        self.points = tuple(points)
        width = model.config.hidden_size
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.mixer = nn.Sequential(nn.Linear(len(self.points) * width, width), nn.PReLU(), nn.Linear(width, 1))
        self.mixer.to(model.device)
        self.learned_tokens = 0
        self._kept: dict[str, Tensor] | None = None
        self._kept_bytes = 0

    def forward(
        self, model: PreTrainedModel, batch: PackedBatch, *, groups: Sequence[EncodedGroup] = (), backend: str = ""
    ) -> PackedRewards:
        """Rewards of the stream's conversations; `groups` are those of the stream, by which states are kept where `keeping` says so."""
        joined = self._remembered(groups) if self._kept is not None else None
        if joined is None:
            joined = self.states(model, batch, backend=backend).flatten(1)
            self.learned_tokens += batch.n_tokens if self.training else 0
            self._remember(groups, batch, joined)
        rewards_C = self.mixer(joined.to(next(self.mixer.parameters()).dtype))[:, 0].float()
        return PackedRewards(rewards_C, (), joined)

    def states(self, model: PreTrainedModel, batch: PackedBatch, *, backend: str = "") -> Tensor:
        """Final state of each conversation's last token by every expert, shape `(C, K, D)`, without gradient and without dropout."""
        layers = family_of(model).layer_list(model)
        first = self.first_layer(model)
        was_training = model.training
        model.eval()
        found: list[Tensor] = []
        entered: list[Tensor] = []
        hook = layers[first].register_forward_pre_hook(lambda _layer, arguments: entered.append(arguments[0]))
        try:
            with torch.no_grad():
                for number in range(len(self.points)):
                    switch_to(model, number)
                    with self._below(model, first, entered):
                        found.append(end_states(model, batch, backend=backend))
        finally:
            hook.remove()
            model.train(was_training)
        return torch.stack(found, dim=1)

    @contextlib.contextmanager
    def _below(self, model: PreTrainedModel, first: int, entered: Sequence[Tensor]) -> Iterator[None]:
        """From the second expert on, the layers below the adapted ones give way to what they put out for the first."""
        if not (first and entered) or is_padded_only(model):
            yield
            return
        trunk = FrozenTrunk(model, first)
        with trunk.detached(), trunk.feeding(entered[0][0]):
            yield

    def first_layer(self, model: PreTrainedModel) -> int:
        """The lowest layer that an expert changes."""
        layers = family_of(model).layer_list(model)
        adapted = [place for place, layer in enumerate(layers) if any(".lora_" in name for name, _ in layer.named_parameters())]
        return min(adapted, default=0)

    def products(self, model: PreTrainedModel) -> int:
        """Multiplications for one token: the layers below the experts once, those above once an expert; heads and network left out."""
        upper = family_of(model).layer_list(model)[self.first_layer(model) :]
        adapters = (module for layer in upper for name, module in layer.named_modules() if ".lora_" in name)
        own = sum(module.weight.numel() for module in adapters if isinstance(module, nn.Linear))
        once_more = sum(products_per_token(layer) for layer in upper) - own
        return products_per_token(model) + (len(self.points) - 1) * once_more

    @property
    def parameters_of_mixer(self) -> int:
        """Numbers in the network."""
        return sum(parameter.numel() for parameter in self.mixer.parameters())

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep the states of every group seen while the context is open: the experts are frozen, an epoch repeats them."""
        self._kept, self._kept_bytes = {}, 0
        try:
            yield
        finally:
            self._kept = None

    def _remembered(self, groups: Sequence[EncodedGroup]) -> Tensor | None:
        assert self._kept is not None
        found = [states for group in groups if (states := self._kept.get(group_key(group))) is not None]
        return torch.cat(found) if found and len(found) == len(groups) else None

    def _remember(self, groups: Sequence[EncodedGroup], batch: PackedBatch, joined: Tensor) -> None:
        if self._kept is None or not groups or self._kept_bytes + joined.nbytes > KEPT_BYTES:
            return
        self._kept_bytes += joined.nbytes
        self._kept |= {
            group_key(group): states for group, states in zip(groups, joined.split(batch.conversations_per_group), strict=True)
        }  # fmt: skip

    def save_mixer(self, folder: Path) -> Path:
        """Write the network, whole or not at all."""
        target = folder / MIXER_FILE
        save_whole(target, self.mixer.state_dict())
        return target

    def load_mixer(self, folder: Path) -> None:
        """Take the network that `save_mixer` wrote.

        Raises:
            CheckpointError: It is missing, damaged, or of other experts.
        """
        try:
            self.mixer.load_state_dict(load_file(folder / MIXER_FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / MIXER_FILE} cannot be read ({str(error).strip().splitlines()[0]}), expected the network over "
                f"{len(self.points)} experts. Copy the model again, or train it again."
            ) from error


def switch_to(model: PreTrainedModel, number: int) -> None:
    """Let one expert compute: its adapter, and its head as the model's. Nothing of it is left trainable by that."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
            module.set_adapter(adapter_name(number))
    for parameter in expert_parameters(model, number):
        parameter.requires_grad_(False)


def share_equal_tensors(model: PreTrainedModel, known: dict[str, Tensor]) -> None:
    """Let a model use the tensors of those loaded before it wherever they are equal; those that are new are added to `known`."""
    for name, parameter in model.named_parameters():
        before = known.setdefault(name, parameter.data)
        if before is not parameter.data and before.shape == parameter.shape and torch.equal(before, parameter.data):
            parameter.data = before
