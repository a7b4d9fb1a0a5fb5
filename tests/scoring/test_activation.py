"""The activation reward model: its reward against explicit forwards with hooks, its directory, and what it refuses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewardproof.config import dump_yaml
from rewardproof.data import Group, read_groups
from rewardproof.data.questions import Question, asked, question_tokens
from rewardproof.errors import CheckpointError, ConfigError, DataError, EvaluationError
from rewardproof.models.checkpoints import load_causal
from rewardproof.models.head_activations import head_shape
from rewardproof.scoring import ActivationRewardModel, Ensemble, MeanHeads, ModelEnsemble, Scale, load_model, load_scorer
from rewardproof.scoring.activation import ACTIVATION_FILE, TENSORS_FILE, ActivationFile, reply_rewards

SCALAR = Question(template="{prompt} w30 {response} w31", options=("w1", "w2"))
RANKED = Question(form="ranked", template="{prompt} w30 {first} w31 {second}", options=("w1", "w2"))
YES, NO = 5, 6
"""What the tests' tokenizer makes of w1 and w2."""
N_MASKS = 3


@pytest.fixture
def groups(tmp_path: Path, toy_rows: Callable[..., Any], write_jsonl: Callable[..., Path]) -> list[Group]:
    return list(read_groups(str(write_jsonl(tmp_path / "toy.jsonl", toy_rows(5, seed=4)))).groups)


def drawn_heads(model: Any) -> MeanHeads:
    dice = torch.Generator().manual_seed(3)
    shape = head_shape(model)
    return MeanHeads(torch.randn(tuple(shape), generator=dice), torch.rand((N_MASKS, *shape[:2]), generator=dice) < 0.4)


@pytest.fixture
def scorer(base_dir: Path) -> Callable[..., ActivationRewardModel]:
    """`scorer(question, reward=…)`: the tiny language model with drawn activations and three drawn masks."""

    def make(question: Question = SCALAR, **how: Any) -> ActivationRewardModel:
        model, tokenizer = load_causal(str(base_dir))
        return ActivationRewardModel(model.eval(), tokenizer, drawn_heads(model), question, **how)

    return make


def flat(rows: list[tuple[float, ...]]) -> list[float]:
    return [value for row in rows for value in row]


def explicit_log_probs(tiny: ModuleType, one: ActivationRewardModel, text: str) -> Tensor:
    """Of either option under every mask, each by a forward of its own, `(M, 2)`."""
    tokens = question_tokens(text, one.tokenizer)
    rows = [tiny.replaced_forward(one.model, tokens, mask, one.heads.values_LHD)[1] for mask in one.heads.masks_MLH]
    return torch.stack([row[[YES, NO]] for row in rows])


@pytest.mark.parametrize("reward", ["probability", "log_odds", "vocabulary"])
def test_the_reward_is_the_mean_over_masks_of_what_the_reply_says(reward: Any, tiny: ModuleType, scorer: Any, groups: Any) -> None:
    one = scorer(reward=reward)
    for group, row in zip(groups, one.score(groups), strict=True):
        for place, found in enumerate(row):
            yes_M, no_M = explicit_log_probs(tiny, one, asked(group, (place,), SCALAR)).unbind(dim=1)
            wanted = {
                "probability": yes_M.exp() / (yes_M.exp() + no_M.exp()),
                "log_odds": yes_M - no_M,
                "vocabulary": yes_M.exp(),
            }[reward]
            assert found == pytest.approx(float(wanted.mean()), abs=2e-5, rel=2e-5)


def test_probabilities_of_yes_and_no_are_shares_of_both(scorer: Any, groups: Any) -> None:
    one = scorer()
    log_probs = one.reader.log_probs(one.encode(groups)[0], one.heads.values_LHD, one.heads.masks_MLH)
    yes, no = reply_rewards(log_probs, "probability"), reply_rewards(log_probs.flip(-1), "probability")
    torch.testing.assert_close(yes + no, torch.ones_like(yes))
    assert ((yes >= 0) & (yes <= 1)).all()
    assert all(0 <= value <= 1 for value in flat(one.score(groups)))
    extreme = torch.tensor([[-1e4, -2e4], [-900.0, -0.1]])
    assert reply_rewards(extreme, "probability").tolist() == [1.0, 0.0]


def test_no_head_replaced_is_the_language_model_asked(tiny: ModuleType, base_dir: Path, groups: Any) -> None:
    model, tokenizer = load_causal(str(base_dir))
    shape = head_shape(model)
    heads = MeanHeads(torch.full(tuple(shape), 7.0), torch.zeros(1, *shape[:2], dtype=torch.bool))
    found = ActivationRewardModel(model.eval(), tokenizer, heads, SCALAR).score(groups)
    for group, row in zip(groups, found, strict=True):
        for place, value in enumerate(row):
            _, log_probs = tiny.replaced_forward(model, question_tokens(asked(group, (place,), SCALAR), tokenizer))
            assert value == pytest.approx(float((log_probs[YES] - log_probs[NO]).sigmoid()), abs=2e-5)


def test_several_masks_are_averaged_and_not_joined(scorer: Any, base_dir: Path, groups: Any) -> None:
    one = scorer()
    single = [
        ActivationRewardModel(one.model, one.tokenizer, MeanHeads(one.heads.values_LHD, mask[None]), SCALAR).score(groups)
        for mask in one.heads.masks_MLH
    ]
    means = torch.tensor([flat(rows) for rows in single]).mean(dim=0)
    assert flat(one.score(groups)) == pytest.approx(means.tolist(), abs=1e-6)


@pytest.mark.parametrize("reward", ["probability", "log_odds", "vocabulary"])
def test_ranked_answers_are_compared_in_both_orders(
    reward: Any, tiny: ModuleType, scorer: Any, tmp_path: Path, write_jsonl: Callable[..., Path]
) -> None:
    rows = [{"prompt": "w40 w41", "answers": ["w1 w2", "w3", "w4 w5 w6"]}, {"prompt": "w42", "answers": ["w7", "w8 w9"]}]
    pools = read_groups(str(write_jsonl(tmp_path / "pools.jsonl", rows)), purpose="score").groups
    one = scorer(RANKED, reward=reward)
    for group, row in zip(pools, one.score(pools), strict=True):
        n = len(group.answers)
        for place in range(n):
            said = []
            for other in set(range(n)) - {place}:
                for order, own in (((place, other), 0), ((other, place), 1)):
                    log_probs_M2 = explicit_log_probs(tiny, one, asked(group, order, RANKED))
                    said.append(float(reply_rewards(log_probs_M2 if own == 0 else log_probs_M2.flip(-1), reward).mean()))
            assert row[place] == pytest.approx(sum(said) / len(said), abs=2e-5, rel=2e-5)
    if reward == "probability":
        assert sum(one.score(pools)[1]) == pytest.approx(1.0)


def test_ranked_questions_need_something_to_compare(scorer: Any, groups: Any) -> None:
    one = scorer(RANKED)
    assert one.relative
    assert not scorer().relative
    alone = Group(groups[0].prompt, groups[0].answers[:1], origin="rows.jsonl:1")
    with pytest.raises(DataError, match=r"rows.jsonl:1: got one answer for a ranked question"):
        one.score([alone])


def test_neither_company_nor_stream_nor_padding_side_changes_a_reward(scorer: Any, groups: Any) -> None:
    one = scorer()
    together = one.score(groups)
    assert flat([one.score([group])[0] for group in groups]) == pytest.approx(flat(together), abs=2e-6)
    for budget, side in ((1, "left"), (60, "right")):
        one.reader = type(one.reader)(one.model, one.reader.options, tokens_per_batch=budget)
        one.tokenizer.padding_side = side
        assert flat(one.score(groups)) == pytest.approx(flat(together), abs=2e-6)


def test_saved_and_loaded_by_name_it_scores_the_same(scorer: Any, base_dir: Path, groups: Any, tmp_path: Path) -> None:
    one = scorer(reward="log_odds")
    one.save(tmp_path / "scorer", str(base_dir), made_of="a test")
    for again in (load_scorer(str(tmp_path / "scorer")), load_model(str(tmp_path / "scorer"), precision="fp32")):
        assert isinstance(again, ActivationRewardModel)
        assert again.score(groups) == one.score(groups)
        assert again.question == SCALAR.resolved
        assert (again.parameters, again.products, again.longest) == (one.parameters, one.products, None)


def test_the_forms_own_words_are_written_out(scorer: Any, base_dir: Path, tmp_path: Path) -> None:
    """So that a scorer stays what it was when the shipped template changes."""
    file = scorer(Question(options=("w1", "w2"))).save(tmp_path / "scorer", str(base_dir))
    assert "Does this response meet" in file.read_text()


def test_the_language_model_may_stand_beside_it(scorer: Any, base_dir: Path, groups: Any, tmp_path: Path) -> None:
    model, tokenizer = load_causal(str(base_dir))
    model.save_pretrained(tmp_path / "moved" / "lm")
    tokenizer.save_pretrained(tmp_path / "moved" / "lm")
    scorer().save(tmp_path / "moved" / "scorer", "../lm")
    assert load_scorer(str(tmp_path / "moved" / "scorer")).score(groups) == scorer().score(groups)


def test_activations_of_another_template_are_refused(scorer: Any, base_dir: Path, groups: Any, tmp_path: Path) -> None:
    one = scorer()
    one.save(tmp_path / "scorer", str(base_dir))
    one.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(ConfigError, match=r"the chat template is another than that by which the activations were read"):
        one.score(groups)
    file = tmp_path / "scorer" / ACTIVATION_FILE
    content = ActivationFile(model=str(base_dir), question=SCALAR, chat_template="another", weights="any")
    file.write_text(dump_yaml(content))
    with pytest.raises(ConfigError, match=r"activation.yaml: the chat template is another"):
        load_scorer(str(tmp_path / "scorer"))


def test_a_language_model_trained_since_is_refused(scorer: Any, tiny: ModuleType, tmp_path: Path) -> None:
    tiny.causal("llama", seed=1).save_pretrained(tmp_path / "lm")
    tiny.word_tokenizer().save_pretrained(tmp_path / "lm")
    scorer().save(tmp_path / "scorer", str(tmp_path / "lm"))
    with pytest.raises(CheckpointError, match=r"holds other weights than those that the activations in .* were read from"):
        load_scorer(str(tmp_path / "scorer"))


def test_activations_of_another_shape_are_refused(scorer: Any, tiny: ModuleType) -> None:
    model = tiny.causal("qwen3", head_dim=16)
    with pytest.raises(CheckpointError, match=r"Got activations of shape \(3, 4, 8\) .* layers, heads and width \(3, 4, 16\)"):
        ActivationRewardModel(model, tiny.word_tokenizer(), scorer().heads, SCALAR)


def test_a_directory_that_is_not_whole_is_refused(scorer: Any, base_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scorer"
    scorer().save(folder, str(base_dir))
    tensors = load_file(folder / TENSORS_FILE)
    save_file({"masks": tensors["masks"]}, folder / TENSORS_FILE)
    with pytest.raises(CheckpointError, match=r"activations.safetensors cannot be read \(KeyError.*expected mean_activations and masks"):
        load_scorer(str(folder))
    (folder / TENSORS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read \(FileNotFoundError"):
        load_scorer(str(folder))
    with pytest.raises(CheckpointError, match=r"has no activation.yaml, expected the directory of an activation reward model"):
        ActivationRewardModel.load(tmp_path)


def test_long_texts_are_left_out_or_shortened_but_never_cut(scorer: Any, groups: Any) -> None:
    one = scorer()
    longest = max(len(tokens) for group in one.encode(groups)[0] for tokens in group.conversations)
    with pytest.raises(DataError, match=rf"got a conversation of {longest} tokens, expected at most max_length={longest - 1}"):
        one.encode(groups, max_length=longest - 1)
    kept, counts = one.encode(groups, max_length=longest - 1, overlong="drop")
    assert len(kept) + counts["overlong_dropped"] == len(groups)
    shortened, counts = one.encode(groups, max_length=longest - 1, overlong="truncate_prompt")
    assert counts["overlong_prompt_truncated"] > 0
    assert max(len(tokens) for group in shortened for tokens in group.conversations) == longest - 1
    with pytest.raises(ConfigError, match=r"Got overlong=cut_left, expected fail, drop or truncate_prompt"):
        one.encode(groups, overlong="cut_left")
    with pytest.raises(ConfigError, match=r"Got max_length=-1, expected 0 or at most"):
        one.encode(groups, max_length=-1)


def test_a_table_of_positions_is_a_limit(tiny: ModuleType, groups: Any) -> None:
    model = tiny.causal("gpt2", n_positions=12)
    one = ActivationRewardModel(model, tiny.word_tokenizer(), drawn_heads(model), SCALAR)
    assert one.longest == 12
    with pytest.raises(DataError, match=r"Got a question of 1\d tokens, expected at most 12: this gpt2 model has no position"):
        one.score(groups)
    with pytest.raises(ConfigError, match=r"Got max_length=13, expected 0 or at most 12 tokens"):
        one.encode(groups, max_length=13)


def test_rewards_that_are_no_numbers_are_refused(scorer: Any, groups: Any) -> None:
    one = scorer()
    one.heads.values_LHD.fill_(torch.nan)
    with pytest.raises(EvaluationError, match=r"The rewards of .*toy.jsonl:1 are .*expected finite numbers"):
        one.score(groups)


def test_an_ensemble_of_texts_may_hold_one_and_an_ensemble_of_tokens_may_not(
    scorer: Any, base_dir: Path, reward_dir: Path, groups: Any, tmp_path: Path
) -> None:
    scorer().save(tmp_path / "scorer", str(base_dir))
    scales = {"a": Scale(0.5, 0.1), "b": Scale(0.0, 1.0)}
    joined = Ensemble({"a": load_scorer(str(tmp_path / "scorer")), "b": load_scorer(str(reward_dir))}, scales)
    assert len(flat(joined.score(groups))) == 10
    (tmp_path / "ensemble.yaml").write_text(f"members: [{{model: {tmp_path / 'scorer'}, mean: 0, std: 1}}]\n")
    with pytest.raises(ConfigError, match=r"an activation reward model, as a member, expected reward models that read the same"):
        ModelEnsemble.load(tmp_path)


def test_half_precision_stays_near(scorer: Any, groups: Any) -> None:
    full, half = (flat(scorer(precision=precision).score(groups)) for precision in ("fp32", "bf16"))
    assert half == pytest.approx(full, abs=0.1)


def test_a_reward_model_is_no_language_model(reward_dir: Path, scorer: Any, tmp_path: Path) -> None:
    scorer().save(tmp_path / "scorer", str(reward_dir))
    with pytest.raises(Exception, match=r"is a reward model, expected a language model"):
        functools.partial(load_scorer, str(tmp_path / "scorer"))()
