"""Every trainer's own body in, and the body that it reads out, with the numbers of the offline scorer."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable
from typing import Any

import pytest

from rewardproof.data import Group, Message
from rewardproof.scoring import AnyModel, ModelEnsemble, RemoteScorer
from rewardproof.serving.served import Served
from rewardproof.serving.settings import Limits

PROMPT, ANSWERS = "w1 w2 w3", ("w4 w5", "w6", "w7 w8 w9")
OPEN = "<bar> w1 w2 w3 <eos> <bar> "
WRITTEN = [f"{OPEN}{answer} <eos> " for answer in ANSWERS]


def group(prompt: str = PROMPT, answers: tuple[str, ...] = ANSWERS, *, raw: bool = False) -> Group:
    return Group((Message("user", prompt),), tuple((Message("assistant", answer),) for answer in answers), raw=raw)


@pytest.fixture(scope="module")
def expected(models: dict[str, AnyModel]) -> Any:
    return pytest.approx(models["dense"].score([group()])[0], abs=2e-5)


def test_score_answers_remote_scorer(server: Any, models: dict[str, AnyModel]) -> None:
    groups = [group(), group("w9", ("w1",)), group(raw=True)]
    for name in models:
        found = server.post(
            "/score", {"model": name, "groups": [{"prompt": g.prompt_text, "answers": list(g.answer_texts), "raw": g.raw} for g in groups]}
        )
        assert found.status_code == 200
        wanted = models[name].score(groups)
        assert [row == pytest.approx(other, abs=2e-5) for row, other in zip(found.json()["rewards"], wanted, strict=True)] == [True] * 3
        assert found.json()["model"] == name
    remote = RemoteScorer(f"{server.address}/score").score(groups)
    assert [row == pytest.approx(other, abs=2e-5) for row, other in zip(remote, models["dense"].score(groups), strict=True)] == [True] * 3


def test_an_ensembles_disagreement_travels(server: Any, models: dict[str, AnyModel]) -> None:
    ensemble = models["ensemble"]
    assert isinstance(ensemble, ModelEnsemble)
    wanted = list(ensemble.disagreement([group()])[0])
    body = {"prompt": PROMPT, "answers": list(ANSWERS)}
    assert server.post("/score", {"model": "ensemble", "groups": [body]}).json()["disagreement"][0] == pytest.approx(wanted, abs=1e-4)
    assert server.post("/score", {"groups": [body]}).json()["disagreement"] is None
    logged = server.post("/get_reward", {"query": WRITTEN, "model": "ensemble"}).json()["extra_logs"]
    assert logged == {"disagreement": pytest.approx(wanted, abs=1e-4)}


@pytest.mark.parametrize("end", [" <eos> ", " <eos>", " ", ""], ids=["whole", "policy's eos", "space", "cut off"])
def test_openrlhf_get_reward(server: Any, expected: Any, end: str) -> None:
    texts = [f"{OPEN}{answer}{end}" for answer in ANSWERS]
    body = {"query": texts, "prompts": [OPEN] * 3, "labels": ["", None, {"a": 1}]}
    found = server.post("/get_reward", body).json()
    assert found["rewards"] == expected
    assert found["scores"] == pytest.approx([1 / (1 + math.exp(-reward)) for reward in found["rewards"]])
    assert found["extra_logs"] == {}
    single = server.post("/get_reward", {"query": [texts[0]], "prompts": [OPEN], "labels": [""]}).json()
    assert set(single) == {"rewards", "scores", "extra_logs"}
    assert single["rewards"] == pytest.approx([found["rewards"][0]], abs=2e-5)


def test_openrlhf_sends_empty_lists(server: Any) -> None:
    found = server.post("/get_reward", {"query": [], "prompts": [], "labels": []})
    assert (found.status_code, found.json()) == (200, {"rewards": [], "scores": [], "extra_logs": {}})


def test_openrlhf_scores_are_standardised_where_the_model_says_how(models: dict[str, AnyModel], start_server: Callable[..., Any]) -> None:
    config = models["dense"].model.config
    config.mean, config.std = -1.0, 2.0
    try:
        served = Served.of("dense", models["dense"], Limits())
        running = start_server("dense")
    finally:
        del config.mean, config.std
    found = running.post("/get_reward", {"query": WRITTEN[0]}).json()
    assert served.scale == (-1.0, 2.0)
    assert found["scores"][0] == pytest.approx(1 / (1 + math.exp(-(found["rewards"][0] + 1) / 2)))


def test_verl_classify_with_vllm(start_server: Callable[..., Any], expected: Any) -> None:
    one = start_server("dense")
    read = [one.post("/classify", {"model": "/models/some-rm", "input": text, "use_activation": False}).json() for text in WRITTEN]
    assert [found["data"][-1]["probs"][-1] for found in read] == expected
    assert set(read[0]) == {"id", "object", "created", "model", "data", "usage"}
    assert read[0]["data"][0] == {"index": 0, "label": "LABEL_0", "probs": read[0]["data"][0]["probs"], "num_classes": 1}


def test_verl_embeddings_with_sglang(start_server: Callable[..., Any], expected: Any) -> None:
    one = start_server("dense")
    read = [one.post("/v1/embeddings", {"model": "/models/some-rm", "input": text}).json() for text in WRITTEN]
    assert [found["data"][-1]["embedding"][-1] for found in read] == expected


def test_vllm_inputs_are_texts_ids_or_messages(server: Any, models: dict[str, AnyModel], expected: Any) -> None:
    ids = [list(tokens) for tokens in models["dense"].encode([group()])[0][0].conversations]
    chats = [[{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    assert [one["probs"][0] for one in server.post("/classify", {"input": WRITTEN}).json()["data"]] == expected
    assert [one["data"][0] for one in server.post("/pooling", {"input": ids}).json()["data"]] == expected
    assert [server.post("/pooling", {"input": row}).json()["data"][0]["data"][0] for row in ids] == expected
    assert [server.post("/classify", {"messages": chat}).json()["data"][0]["probs"][0] for chat in chats] == expected
    packed = server.post("/v1/embeddings", {"input": WRITTEN, "encoding_format": "base64"}).json()["data"]
    assert [struct.unpack("<f", base64.b64decode(one["embedding"]))[0] for one in packed] == expected
    usage = server.post("/classify", {"input": WRITTEN}).json()["usage"]
    assert usage == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids)), "completion_tokens": 0}


def test_vllm_texts_get_nothing_at_their_end(server: Any, models: dict[str, AnyModel]) -> None:
    cut = server.post("/classify", {"input": f"{OPEN}w4 w5"}).json()["data"][0]["probs"][0]
    (whole,) = models["dense"].score([group(answers=("w4 w5",))])[0]
    assert abs(cut - whole) > 1e-3


def test_llama_factory_score_evaluation(server: Any, expected: Any) -> None:
    found = server.post("/v1/score/evaluation", {"model": "ensemble", "messages": WRITTEN})
    assert found.status_code == 200
    found = server.post("/v1/score/evaluation", {"messages": WRITTEN}).json()
    assert (found["object"], found["scores"]) == ("score.evaluation", expected)


def test_slime_reward_is_a_number(server: Any, expected: Any) -> None:
    written = [server.post("/reward", {"prompt": OPEN, "response": answer, "label": None}).json() for answer in ANSWERS]
    chat = [{"role": "user", "content": PROMPT}]
    messages = [server.post("/reward", {"prompt": chat, "response": answer, "label": "7"}).json() for answer in ANSWERS]
    assert written == expected
    assert messages == expected


def test_models_are_chosen_by_name_or_by_what_named_them(server: Any, start_server: Callable[..., Any]) -> None:
    body = {"groups": [{"prompt": PROMPT, "answers": list(ANSWERS)}]}
    answers = {name: server.post("/score", {"model": name, **body}) for name in ("", "dense", "runs/ensemble/model", "ensemble", "gpt")}
    assert [found.status_code for found in answers.values()] == [200, 200, 200, 200, 404]
    assert answers[""].json() == answers["dense"].json()
    assert answers["runs/ensemble/model"].json()["model"] == "ensemble"
    assert "expected one of: dense, ensemble" in answers["gpt"].json()["error"]["message"]
    assert server.post("/classify", {"model": "gpt", "input": "w1"}).status_code == 404
    assert start_server("dense").post("/score", {"model": "gpt", **body}).status_code == 404
