"""Checkpoints: what is saved comes back, stock transformers reads the dense ones and refuses mixtures, and bad inputs are explained."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from rewardproof.data.packing import pack
from rewardproof.errors import CheckpointError, ModelError
from rewardproof.models import checkpoints, saving
from rewardproof.models.checkpoints import EXPERTS_FILE, load_base, load_reward_model, load_tokenizer, resolve
from rewardproof.models.heads import head_weight
from rewardproof.models.packed import packed_rewards
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.saving import save_reward_model
from rewardproof.models.tensor_files import TensorFile, write_tensors
from rewardproof.models.upcycling import CONFIG_KEY, Upcycle, is_upcycled, moe_blocks, upcycle
from tests.models import tiny

GROUPS = tiny.random_groups(2)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here may reach for the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def rewards_of(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return packed_rewards(model, pack(GROUPS)).rewards_C


def reward_model(family: str, experts: str = "", *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A dense model, or a mixture whose experts all differ."""
    model = tiny.classifier(family, dtype=dtype)
    if experts:
        upcycle(model, Upcycle(n_experts=3, n_active=2, experts=experts, layers="top:2"))
        with torch.no_grad():
            for block in moe_blocks(model).values():
                for parameter in block.parameters():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return model


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Every entry of both state dicts is equal, precision included."""
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def saved_base(family: str, path: Path, *, tie: bool = False) -> Path:
    """A causal checkpoint with its tokenizer, as a user has it."""
    model = tiny.causal(family)
    if tie:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(path)
    tiny.word_tokenizer().save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("experts", ["", "full", "lora:2"])
@pytest.mark.parametrize("family", ["llama_biased", "gemma3", "gpt2", "phi3"])
def test_save_and_load_keep_the_rewards(family: str, experts: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = reward_model(family, experts, dtype=dtype)
    path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "model")
    loaded, tokenizer = load_reward_model(str(path), dtype=dtype)
    same_weights(loaded, model)
    torch.testing.assert_close(rewards_of(loaded), rewards_of(model), atol=1e-6 if dtype == torch.float32 else 1e-2, rtol=0)
    assert rewards_of(loaded).std() > 0.1
    assert not loaded.training
    assert tokenizer.chat_template == tiny.word_tokenizer().chat_template
    assert is_upcycled(loaded) == bool(experts)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"], "no partial directory stays behind"


@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_every_family_comes_back_with_its_experts(family: str, tmp_path: Path) -> None:
    model = reward_model(family, "full")
    loaded, _ = load_reward_model(str(save_reward_model(model, tiny.word_tokenizer(), tmp_path / "model")))
    same_weights(loaded, model)
    torch.testing.assert_close(rewards_of(loaded), rewards_of(model), atol=1e-6, rtol=0)


def test_saving_in_bf16_rounds_the_weights_and_says_so(tmp_path: Path) -> None:
    for experts in ("", "full"):
        model = reward_model("llama", experts)
        path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / f"model{experts}", dtype=torch.bfloat16)
        assert json.loads((path / "config.json").read_text())["dtype"] == "bfloat16"
        loaded, _ = load_reward_model(str(path), dtype=torch.float32)
        rounded = copy.deepcopy(model)
        for parameter in rounded.parameters():
            parameter.data = parameter.data.bfloat16().float()
        same_weights(loaded, rounded)
        assert next(model.parameters()).dtype == torch.float32, "the model in memory keeps its precision"


def test_saving_replaces_an_older_checkpoint(tmp_path: Path) -> None:
    save_reward_model(reward_model("llama"), tiny.word_tokenizer(), tmp_path / "model")
    save_reward_model(reward_model("llama", "full"), tiny.word_tokenizer(), tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert is_upcycled(load_reward_model(str(tmp_path / "model"))[0])


@pytest.mark.parametrize("experts", ["full", "lora:2"])
def test_stock_transformers_refuses_a_mixture(experts: str, tmp_path: Path) -> None:
    path = save_reward_model(reward_model("llama", experts), tiny.word_tokenizer(), tmp_path / "moe")
    assert (path / EXPERTS_FILE).is_file()
    assert not [file.name for file in path.iterdir() if file.name.startswith(("model", "pytorch_model"))]
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForSequenceClassification.from_pretrained(path)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_the_checkpoint_contract(family: str, tmp_path: Path) -> None:
    base = saved_base(family, tmp_path / "base")
    tokenizer = load_tokenizer(str(base))
    model = load_base(str(base), tokenizer)
    path = save_reward_model(model, tokenizer, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert type(model).__name__.endswith("ForSequenceClassification")
    assert len(config["id2label"]) == 1
    assert config["problem_type"] == "regression"
    assert config["value_head_prefix"] == "score"
    assert config["pad_token_id"] == tokenizer.pad_token_id
    assert config["pad_token_id"] != config["eos_token_id"]
    assert config["dtype"] == "float32"
    assert AutoTokenizer.from_pretrained(path).chat_template
    stock = AutoModelForSequenceClassification.from_pretrained(path)
    assert stock.config.num_labels == 1
    head = stock.score
    assert head.bias is None
    assert head.weight.shape == (1, model.config.hidden_size)
    assert {file.name for file in path.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json"}


def test_a_tokenizer_without_a_pad_of_its_own_grows_the_embeddings(tmp_path: Path) -> None:
    base = saved_base("llama", tmp_path / "base")
    tokenizer = tiny.word_tokenizer()
    tokenizer.pad_token = tokenizer.unk_token = tokenizer.eos_token
    tokenizer.chat_template = None
    tokenizer._tokenizer.model = type(tokenizer._tokenizer.model)(
        {token: number for token, number in tokenizer.get_vocab().items() if token not in ("<pad>", "<unk>")}, unk_token="<eos>"
    )
    tokenizer.save_pretrained(base)
    prepared = load_tokenizer(str(base))
    assert prepared.pad_token_id != prepared.eos_token_id
    model = load_base(str(base), prepared)
    assert model.get_input_embeddings().weight.shape[0] >= len(prepared)
    assert model.config.pad_token_id == prepared.pad_token_id < model.get_input_embeddings().weight.shape[0]


STOCK = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification
path, rows = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
pad, longest = model.config.pad_token_id, max(map(len, rows))
with torch.no_grad():
    alone = [model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    ids = [row + [pad] * (longest - len(row)) for row in rows]
    right = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits[:, 0]
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    left = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor([line[::-1] for line in mask])).logits[:, 0]
assert not [name for name in sys.modules if name.startswith("rewardproof")]
print(json.dumps({"alone": alone, "right": right.tolist(), "left": left.tolist()}))
"""


def test_a_dense_checkpoint_loads_without_rewardproof(tmp_path: Path) -> None:
    model = reward_model("qwen2")
    path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "model")
    rows = json.dumps([list(tokens) for tokens in tiny.conversations(GROUPS)])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(path), rows], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    for way in ("alone", "right", "left"):
        torch.testing.assert_close(torch.tensor(answer[way]), rewards_of(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILY_NAMES)
def test_a_base_keeps_its_backbone_and_starts_with_a_head_of_zeros(family: str, tmp_path: Path) -> None:
    base = saved_base(family, tmp_path / "base")
    model = load_base(str(base), load_tokenizer(str(base)))
    assert (head_weight(model) == 0).all()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        stock = tiny.causal(family).base_model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(model.base_model(input_ids=ids).last_hidden_state, stock, atol=2e-5, rtol=0)


def test_dropout_is_switched_off(tmp_path: Path) -> None:
    model = tiny.causal("gpt2")
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, name, 0.5)
    model.config.summary_first_dropout = 0.1
    model.save_pretrained(tmp_path)
    tiny.word_tokenizer().save_pretrained(tmp_path)
    base = load_base(str(tmp_path), load_tokenizer(str(tmp_path))).train()
    assert [module.p for module in base.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0] == []
    torch.nn.init.normal_(head_weight(base))
    assert torch.equal(rewards_of(base), rewards_of(base))


def test_tied_embeddings_survive(tmp_path: Path) -> None:
    base = saved_base("llama", tmp_path / "base", tie=True)
    tokenizer = load_tokenizer(str(base))
    path = save_reward_model(load_base(str(base), tokenizer), tokenizer, tmp_path / "model")
    expected = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(path).get_input_embeddings().weight, expected)
    assert torch.equal(load_reward_model(str(path))[0].get_input_embeddings().weight, expected)
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is True


def test_an_existing_reward_model_keeps_its_head(tmp_path: Path) -> None:
    model = reward_model("llama")
    path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "model")
    again = load_base(str(path), load_tokenizer(str(path)))
    same_weights(again, model)


def test_a_foreign_reward_model_is_brought_under_the_contract(tmp_path: Path) -> None:
    foreign, tokenizer = tiny.classifier("llama"), tiny.word_tokenizer()
    foreign.config.pad_token_id = tokenizer.pad_token_id = tokenizer.eos_token_id
    foreign.save_pretrained(tmp_path / "foreign")
    tokenizer.save_pretrained(tmp_path / "foreign")
    path = save_reward_model(*load_reward_model(str(tmp_path / "foreign")), tmp_path / "model")
    stock, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert stock.config.problem_type == "regression"
    assert stock.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    ids = torch.tensor([[5, 6, 7, tokenizer.eos_token_id]])
    with torch.no_grad():
        at_the_end = stock.score(stock.model(input_ids=ids).last_hidden_state[0, -1])
        torch.testing.assert_close(stock(input_ids=ids).logits[0], at_the_end)


def test_a_mixture_is_no_base(tmp_path: Path) -> None:
    path = save_reward_model(reward_model("llama", "full"), tiny.word_tokenizer(), tmp_path / "moe")
    with pytest.raises(ModelError, match="holds experts, expected a dense model to start from; merge it first"):
        load_base(str(path), tiny.word_tokenizer())


def test_a_classifier_of_two_labels_is_no_base(tmp_path: Path) -> None:
    path = _two_labels(tmp_path)
    with pytest.raises(ModelError, match="2 labels, expected 1"):
        load_base(str(path), tiny.word_tokenizer())


def _two_labels(path: Path) -> Path:
    config = copy.deepcopy(tiny.CONFIGS["llama"])
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    tiny.word_tokenizer().save_pretrained(path)
    return path


def test_two_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has 2 labels, expected 1: a reward is one number"):
        load_reward_model(str(_two_labels(tmp_path)))


def test_a_causal_model_has_no_reward_head(tmp_path: Path) -> None:
    base = saved_base("llama", tmp_path)
    with pytest.raises(
        ModelError, match=r"is LlamaForCausalLM: it has no reward head, expected a \*ForSequenceClassification with one label"
    ):
        load_reward_model(str(base))


def test_a_model_without_a_classification_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba2", "architectures": ["Mamba2ForCausalLM"]}))
    with pytest.raises(
        ModelError, match=r"\(mamba2\) has no sequence-classification class in transformers, expected a decoder that has one"
    ):
        load_base(str(tmp_path), tiny.word_tokenizer())


def test_a_mixture_without_its_experts_is_incomplete(tmp_path: Path) -> None:
    path = save_reward_model(reward_model("llama", "full"), tiny.word_tokenizer(), tmp_path / "moe")
    (path / EXPERTS_FILE).unlink()
    with pytest.raises(CheckpointError, match=f"says that it holds experts but has no {EXPERTS_FILE}"):
        load_reward_model(str(path))


@pytest.mark.parametrize("experts", ["full", "lora:2"])
def test_a_mixture_is_in_memory_once_while_it_loads_and_saves(experts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the model's own memory, and what is read becomes the model's: there is never a second state dict."""
    model = reward_model("llama", experts)
    addresses: set[int] = set()

    def watched(path: Path, layout: dict[str, torch.Tensor], tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        assert all(tensor.is_meta for tensor in layout.values())
        owned = {tensor.data_ptr() for tensor in model.state_dict().values()}
        listed = list(tensors)
        assert {tensor.data_ptr() for _, tensor in listed} <= owned
        write_tensors(path, layout, listed)

    monkeypatch.setattr(saving, "write_tensors", watched)
    path = save_reward_model(model, tiny.word_tokenizer(), tmp_path / "moe", dtype=torch.bfloat16)

    class Watched(TensorFile):
        def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
            tensor = super().read(name, dtype)
            addresses.add(tensor.data_ptr())
            return tensor

    monkeypatch.setattr(checkpoints, "TensorFile", Watched)
    loaded, _ = load_reward_model(str(path))
    assert {tensor.data_ptr() for tensor in loaded.state_dict().values()} == addresses


def test_loading_a_mixture_draws_nothing(tmp_path: Path) -> None:
    path = save_reward_model(reward_model("llama", "full"), tiny.word_tokenizer(), tmp_path / "moe")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_reward_model(str(path))
    assert torch.equal(torch.rand(3), expected)


def test_a_dense_model_in_shards(tmp_path: Path) -> None:
    model = reward_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tiny.word_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert not (tmp_path / "model.safetensors").exists()
    same_weights(load_reward_model(str(tmp_path))[0], model)


def test_a_directory_without_a_model_points_inside(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no config\.json; expected a model directory: .*Name the directory"):
        load_reward_model(str(tmp_path))
    save_reward_model(reward_model("llama"), tiny.word_tokenizer(), tmp_path / "model")
    with pytest.raises(CheckpointError, match=f"did you mean {tmp_path / 'model'}"):
        load_reward_model(str(tmp_path))


@pytest.mark.parametrize("spec", ["/nowhere/at/all", "./nowhere", "nowhere", "a/b/c"])
def test_a_missing_directory(spec: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"No model at .*expected a directory, a hub id such as Qwen/Qwen3-0.6B, or embedded:smollm2-135m"
    ):
        load_reward_model(spec)


def test_an_unreachable_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable itself is read at import
    with pytest.raises(
        CheckpointError, match=r"Could not load a model from 'no-such-org/no-such-model'.*expected a local directory or a reachable"
    ):
        load_reward_model("no-such-org/no-such-model")


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    tiny.classifier("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"No tokenizer could be loaded from .*save one beside the model"):
        load_reward_model(str(tmp_path))


def test_an_unknown_embedded_name() -> None:
    with pytest.raises(CheckpointError, match="Unknown embedded model 'embedded:gpt5'; expected one of: embedded:smollm2-135m"):
        resolve("embedded:gpt5")


def test_the_upcycling_travels_in_the_configuration(tmp_path: Path) -> None:
    path = save_reward_model(reward_model("llama", "lora:2"), tiny.word_tokenizer(), tmp_path / "moe")
    entry = json.loads((path / "config.json").read_text())[CONFIG_KEY]
    assert entry["layer_indices"] == [1, 2]
    assert (entry["n_experts"], entry["n_active"], entry["experts"]) == (3, 2, "lora:2")


def test_reward_model_saves_and_loads(tmp_path: Path) -> None:
    wrapped = RewardModel(reward_model("llama"), tiny.word_tokenizer())
    again = RewardModel.load(wrapped.save(tmp_path / "model"), device=torch.device("cpu"))
    torch.testing.assert_close(again.score_encoded(GROUPS), wrapped.score_encoded(GROUPS), atol=1e-6, rtol=0)
