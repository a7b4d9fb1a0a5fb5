"""The language model's head on a reward model's pass: the stock model's log-probabilities, in bounded memory, tied or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rewardproof.data.encoding import EncodedGroup
from rewardproof.data.packing import PackedBatch, pack
from rewardproof.errors import ConfigError, ModelError
from rewardproof.models.checkpoints import load_base, load_tokenizer
from rewardproof.models.language_head import LanguageHead, load_language_head
from rewardproof.models.packed import packed_rewards

Groups = Callable[..., list[EncodedGroup]]


@pytest.fixture(scope="module")
def bases(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`bases("gemma2")`: a language model of a family on disk; `tied_llama` is one whose head is its input embedding."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            changes = {"tie_word_embeddings": True} if name.startswith("tied_") else {}
            tiny.causal(name.removeprefix("tied_"), **changes).save_pretrained(made[name])
            tiny.word_tokenizer().save_pretrained(made[name])
        return made[name]

    return make


def start(base: Path, tiny: ModuleType) -> PreTrainedModel:
    return load_base(str(base), tiny.word_tokenizer())


def stock_log_probs(base: Path, groups: list[EncodedGroup]) -> Tensor:
    """Of every answer token, conversation by conversation through the stock language model."""
    causal = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    found = []
    for group in groups:
        for tokens, answer in zip(group.conversations, group.answer_starts, strict=True):
            ids = torch.tensor([tokens])
            log_probs = causal(input_ids=ids).logits[0].float().log_softmax(dim=-1)
            first = max(answer, 1)
            found.append(log_probs[first - 1 : -1].gather(1, ids[0, first:, None])[:, 0])
    return torch.cat(found)


@pytest.mark.parametrize("name", ["llama", "tied_llama", "gemma2", "gpt2", "gpt_neox"])
def test_one_forward_gives_the_stock_models_rewards_and_log_probabilities(
    name: str, bases: Callable[[str], Path], tiny: ModuleType, random_groups: Groups
) -> None:
    groups = random_groups(6)
    model = start(bases(name), tiny)
    torch.nn.init.normal_(model.get_submodule("score").weight, generator=torch.Generator().manual_seed(1))
    head = load_language_head(str(bases(name)), model)
    passes: list[int] = []
    model.base_model.register_forward_hook(lambda *_: passes.append(1))
    batch = pack(groups)
    with torch.no_grad():
        output = packed_rewards(model, batch, answers=True)
        assert output.answer_states_LD is not None
        found = head.log_probs(output.answer_states_LD, batch.target_L)
        assert len(passes) == 1
        torch.testing.assert_close(found, stock_log_probs(bases(name), groups), atol=2e-4, rtol=1e-4)
        model.config.pad_token_id = 0
        torch.testing.assert_close(output.rewards_C, tiny.stock_rewards(model, groups), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "asked", "trained", "kind", "trains", "shares"),
    [
        ("llama", "auto", True, "own", True, False),
        ("llama", "auto", False, "frozen", False, False),
        ("tied_llama", "auto", True, "tied", True, True),
        ("tied_llama", "auto", False, "frozen", False, True),
        ("tied_llama", "tied", False, "tied", False, True),
        ("tied_llama", "own", True, "own", True, False),
        ("tied_llama", "own", False, "own", True, False),
        ("tied_llama", "frozen", True, "frozen", False, False),
        ("gemma2", "auto", True, "tied", True, True),
    ],
)
def test_whose_weights_the_head_has_and_whether_they_train(
    name: str, asked: str, trained: bool, kind: str, trains: bool, shares: bool, bases: Callable[[str], Path], tiny: ModuleType
) -> None:
    model = start(bases(name), tiny)
    model.get_input_embeddings().requires_grad_(trained)
    head = load_language_head(str(bases(name)), model, kind=asked)  # pyright: ignore[reportArgumentType]
    assert (head.kind, head.trains, head.own is None) == (kind, trains, shares)
    initial = AutoModelForCausalLM.from_pretrained(bases(name)).get_output_embeddings().weight
    used = model.get_input_embeddings().weight if head.own is None else head.own.weight
    assert torch.equal(used, initial), "the initial language model's"
    assert bool(list(head.parameters())) != shares, "a shared embedding stays the model's alone"


def test_a_head_that_has_weights_of_its_own_cannot_be_tied(bases: Callable[[str], Path], tiny: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"lm_head=tied for .*expected a model that ties the two.*Write lm_head=own"):
        load_language_head(str(bases("llama")), start(bases("llama"), tiny), kind="tied")


def test_a_reward_model_has_no_head_to_read(reward_dir: Path, tiny: ModuleType) -> None:
    with pytest.raises(ModelError, match="is a reward model, expected a language model"):
        load_language_head(str(reward_dir), tiny.classifier("llama"))


def test_a_model_that_has_to_be_padded_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=4, pad_token_id=0, eos_token_id=1, bos_token_id=1)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    tiny.word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"ALiBi.*take another"):
        load_language_head(str(tmp_path), start(tmp_path, tiny))


def test_tokens_that_the_tokenizer_was_given_get_the_same_rows_in_every_run(
    bases: Callable[[str], Path], tiny: ModuleType, tmp_path: Path
) -> None:
    tiny.causal("llama").save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(96)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1").save_pretrained(tmp_path)
    model = load_base(str(tmp_path), load_tokenizer(str(tmp_path)))
    first, second = (load_language_head(str(tmp_path), model, kind="own").own for _ in range(2))
    assert first is not None
    assert second is not None
    assert len(first.weight) == 97, "the pad token"
    assert torch.equal(first.weight, second.weight)


def _states(head: LanguageHead, batch: PackedBatch, model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        states = packed_rewards(model, batch, answers=True).answer_states_LD
    assert states is not None
    return states.requires_grad_()


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_chunks_change_neither_values_nor_gradients(
    name: str, bases: Callable[[str], Path], tiny: ModuleType, random_groups: Groups
) -> None:
    model, batch = start(bases(name), tiny), pack(random_groups(6))
    head = load_language_head(str(bases(name)), model, kind="own")
    results = []
    for chunk in (5, 10_000):
        states_LD = _states(head, batch, model)
        head.zero_grad()
        found = head.log_probs(states_LD, batch.target_L, chunk=chunk)
        (found * torch.linspace(-1, 1, len(found))).sum().backward()
        assert head.own is not None
        results.append((found.detach(), states_LD.grad, head.own.weight.grad.clone()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_no_logits_are_kept_and_none_are_larger_than_a_chunk(bases: Callable[[str], Path], tiny: ModuleType, random_groups: Groups) -> None:
    model, batch = start(bases("llama"), tiny), pack(random_groups(8))
    head = load_language_head(str(bases("llama")), model, kind="own")
    states_LD = _states(head, batch, model)
    rows: list[int] = []
    assert head.own is not None
    head.own.register_forward_hook(lambda _head, _inputs, logits: rows.append(len(logits)))

    def kept_by(function: Callable[[], Tensor]) -> int:
        """Rows of logits that the graph holds on to."""
        kept: list[int] = []

        def note(tensor: Tensor) -> Tensor:
            kept.append(len(tensor) if tensor.ndim == 2 and tensor.shape[1] == head.products // states_LD.shape[1] else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            function().sum()
        return sum(kept)

    assert kept_by(lambda: head._log_probs(states_LD, batch.target_L)) > 0, "what a plain pass would keep"
    rows.clear()
    assert kept_by(lambda: head.log_probs(states_LD, batch.target_L, chunk=9)) == 0
    head.log_probs(states_LD, batch.target_L, chunk=9).sum().backward()
    assert max(rows) == 9
    assert len(rows) == 3 * -(-len(batch.target_L) // 9), "forward twice, and once more for the gradient"
