"""What the page is told: how each answer's reward grew, and who would have judged otherwise."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from rewardproof.data import Group, Message
from rewardproof.data.encoding import render
from rewardproof.merging.specialisation import alone
from rewardproof.models.double_mixture import QueryRouter, put_category_head
from rewardproof.models.reward_model import RewardModel
from rewardproof.models.upcycling import Upcycle, moe_blocks, upcycle
from rewardproof.scoring import AnyModel, DoubleMixture, Scale

PROMPT, ANSWERS = "w1 w2 w3", ("w4 w5 w6 w7", "w8 w9")
GROUP = Group((Message("user", PROMPT),), tuple((Message("assistant", answer),) for answer in ANSWERS))
BODY = {"prompt": PROMPT, "answers": list(ANSWERS)}


@pytest.fixture(scope="module")
def known(models: dict[str, AnyModel], tiny: ModuleType) -> dict[str, Any]:
    """The models of every server, a mixture whose experts differ, and a DMoERM of two categories."""
    mixture = tiny.classifier("llama", seed=3)
    upcycle(mixture, Upcycle(n_experts=4, n_active=3))
    with torch.no_grad():
        for block in moe_blocks(mixture).values():
            for parameter in block.experts.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    router = tiny.classifier("llama", seed=9)
    put_category_head(router, ("chat", "code"))
    with torch.no_grad():
        router.score.weight.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(3)))
    categories = {
        name: RewardModel(tiny.classifier("llama", seed=number), tiny.word_tokenizer()) for number, name in enumerate(("chat", "code"))
    }
    dmoerm = DoubleMixture(QueryRouter(router, ("chat", "code")), categories, {"chat": Scale(0.0, 1.0), "code": Scale(1.0, 2.0)})
    return {**models, "moe": RewardModel(mixture, tiny.word_tokenizer()), "dmoerm": dmoerm}


@pytest.fixture(scope="module")
def asked(start_server: Callable[..., Any], known: dict[str, Any]) -> Any:
    return start_server("dense", "ensemble", "moe", "dmoerm", known=known)


@pytest.mark.parametrize("name", ["dense", "ensemble", "moe"])
def test_pieces_are_the_answer_and_their_gains_its_reward(asked: Any, known: dict[str, Any], name: str) -> None:
    found = asked.post("/inspect", {"model": name, **BODY}).json()
    wanted = known[name].score([GROUP])[0]
    assert [one["reward"] for one in found["answers"]] == pytest.approx(wanted, abs=2e-5)
    for one, text in zip(found["answers"], ANSWERS, strict=True):
        assert "".join(piece["text"] for piece in one["pieces"]) == text
        assert one["before"] + sum(piece["gain"] for piece in one["pieces"]) == pytest.approx(one["reward"], abs=1e-4)
        assert max(abs(piece["shade"]) for piece in one["pieces"]) <= 1
    assert found["without_pieces"] == ""


def test_voices_are_members_experts_or_categories(asked: Any, known: dict[str, Any]) -> None:
    voices = {name: asked.post("/inspect", {"model": name, **BODY}).json()["voices"] for name in known}
    assert voices["dense"] is None
    assert voices["ensemble"]["rewards"] == [pytest.approx(row, abs=2e-5) for row in known["ensemble"].by_member([GROUP])[0].tolist()]
    moe = known["moe"]
    for expert, row in enumerate(voices["moe"]["rewards"]):
        with alone(moe.model, expert):
            assert row == pytest.approx(moe.score([GROUP])[0], abs=2e-5)
    assert len({round(row[0], 4) for row in voices["moe"]["rewards"]}) == 3
    dmoerm = voices["dmoerm"]
    assert sum(dmoerm["heard"]) == 1
    heard = dmoerm["rewards"][dmoerm["heard"].index(True)]
    assert heard == pytest.approx(known["dmoerm"].score([GROUP])[0], abs=2e-5)


def test_a_model_of_whole_answers_says_so(asked: Any) -> None:
    found = asked.post("/inspect", {"model": "dmoerm", **BODY}).json()
    assert found["without_pieces"] == "This model judges whole answers: it cannot say which words it liked."
    assert found["answers"][0] == {"reward": found["answers"][0]["reward"], "before": None, "pieces": []}


def test_a_model_that_routes_reads_written_texts_as_the_turns_they_were_written_of(asked: Any, known: dict[str, Any]) -> None:
    model = known["dmoerm"]
    texts = [render(GROUP, answer, model.tokenizer) for answer in GROUP.answers]
    wanted = model.score([GROUP])[0]
    assert asked.post("/get_reward?model=dmoerm", {"query": texts}).json()["rewards"] == pytest.approx(wanted, abs=2e-5)
    classified = asked.post("/classify", {"model": "dmoerm", "input": texts}).json()["data"]
    assert [one["probs"][0] for one in classified] == pytest.approx(wanted, abs=2e-5)
    cut = asked.client.post(
        "/reward", params={"model": "dmoerm"}, json={"prompt": texts[0].partition(ANSWERS[0])[0], "response": ANSWERS[0]}
    )
    assert cut.json() == pytest.approx(wanted[0], abs=2e-5)
    refused = asked.post("/classify", {"model": "dmoerm", "input": "w1 w2"})
    assert refused.status_code == 422
    assert "has to know who said what. Write it with that template" in refused.json()["error"]["message"]


def test_more_answers_than_the_page_shows(asked: Any) -> None:
    assert asked.post("/inspect", {"prompt": "w1", "answers": ["w2"] * 9}).status_code == 422
