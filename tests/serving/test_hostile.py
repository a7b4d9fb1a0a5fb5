"""Bodies that mean harm: each is refused in time with a sentence, no answer is a 500, and none has a file or a secret in it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

PATHS = ("/score", "/get_reward", "/classify", "/pooling", "/v1/embeddings", "/v1/score/evaluation", "/reward", "/inspect", "/perturb")
JINJA = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% include '/etc/passwd' %}{{ cycler.__init__.__globals__.os.environ }}"
FIELDS = ("groups", "query", "input", "messages", "prompt", "response", "model")
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "not UTF-8": b'{"query": "\xff\xfe"}',
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"input":' * 100_000,
    "deep value": b'{"query": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "a list": b"[]",
    "a number": b"1e999",
    "null": b"null",
    "a huge number": b'{"input": [' + b"9" * 10_000 + b"]}",
    "many keys": json.dumps({f"k{number}": number for number in range(50_000)}).encode(),
    "a surrogate as key": b'{"\\ud800": 1}',
    "surrogates in answers": b'{"prompt": "a", "answers": ["\\ud800 x"]}',
    "a surrogate as a prompt of answers": b'{"prompt": "\\ud800", "answers": ["x"]}',
    **{f"NaN as {name}": f'{{"{name}": NaN}}'.encode() for name in FIELDS},
    **{f"surrogate as {name}": f'{{"{name}": "\\ud800"}}'.encode() for name in FIELDS},
    **{f"surrogates in {name}": f'{{"{name}": ["\\udfff\\ud800"]}}'.encode() for name in FIELDS},
    **{f"object as {name}": f'{{"{name}": {{"a": [1, null, true]}}}}'.encode() for name in FIELDS},
    **{f"empty {name}": f'{{"{name}": ""}}'.encode() for name in FIELDS},
    **{f"empty list {name}": f'{{"{name}": []}}'.encode() for name in FIELDS},
}


@pytest.mark.parametrize("name", list(BODIES))
def test_a_bad_body_is_refused(server: Any, name: str) -> None:
    for path in PATHS:
        found = server.client.post(path, content=BODIES[name], headers={"Content-Type": "application/json"}, timeout=30)
        assert found.status_code < 500, (path, found.text)
        if found.status_code >= 400:
            assert found.json()["error"]["message"]
            assert len(found.content) < 2000


@pytest.mark.parametrize("element", ["0", "null", '""', "{}", "[]"])
def test_long_lists_of_no_use_are_refused_at_once(server: Any, element: str) -> None:
    many = "[" + ",".join([element] * (4_000_000 // (len(element) + 1))) + "]"
    bodies = {
        "/score": f'{{"groups": {many}}}',
        "/inspect": f'{{"prompt": "a", "answers": {many}}}',
        "/get_reward": f'{{"query": {many}}}',
        "/classify": f'{{"messages": {many}}}',
        "/v1/embeddings": f'{{"input": {many}}}',
        "/v1/score/evaluation": f'{{"messages": {many}}}',
        "/reward": f'{{"prompt": {many}, "response": "w1"}}',
    }
    bodies |= {"/score?of=answers": f'{{"groups": [{{"prompt": "a", "answers": {many}}}]}}'}
    for path, body in bodies.items():
        started = time.monotonic()
        found = server.client.post(path, content=body.encode(), headers={"Content-Type": "application/json"}, timeout=30)
        assert found.status_code in (413, 422), (path, found.text)
        assert time.monotonic() - started < 8, path


def test_a_huge_answer_is_refused_before_it_is_changed(server: Any) -> None:
    started = time.monotonic()
    assert server.post("/perturb", {"prompt": "w1", "answers": ["w1. " * 300_000]}).status_code == 413
    assert time.monotonic() - started < 20


def test_long_texts_are_refused_and_the_server_lives(server: Any) -> None:
    huge = "w1 " * 700_000
    for path, body in (("/score", {"groups": [{"prompt": "w1", "answers": [huge]}]}), ("/get_reward", {"query": huge})):
        assert server.post(path, body).status_code == 413
    assert server.post("/score", {"groups": [{"prompt": "w1", "answers": ["x" * 6_000_000]}]}).status_code in (200, 413)
    assert server.post("/get_reward", {"query": ["w1"] * 5000}).status_code == 413
    assert server.client.get("/health").status_code == 200


@pytest.mark.parametrize("role", [JINJA, "assistant\n", "<|im_end|>", "developer", "", "__class__", "\x00"])
def test_roles_are_words_of_a_list_and_no_templates(server: Any, role: str) -> None:
    turn = {"role": role, "content": "w1"}
    bodies = [
        ("/score", {"groups": [{"prompt": [turn], "answers": ["w2"]}]}),
        ("/score", {"groups": [{"prompt": "w1", "answers": [[turn]]}]}),
        ("/classify", {"messages": [turn, {"role": "assistant", "content": "w2"}]}),
        ("/reward", {"prompt": [turn], "response": "w2"}),
    ]
    for path, body in bodies:
        found = server.post(path, body)
        assert found.status_code == 422, found.text
        assert "subclasses" not in found.text
        assert "root:" not in found.text


def test_a_clients_template_is_not_read(server: Any) -> None:
    chat = [{"role": "user", "content": JINJA}, {"role": "assistant", "content": "w2"}]
    plain = server.post("/classify", {"messages": chat}).json()["data"]
    found = server.post("/classify", {"messages": chat, "chat_template": JINJA, "chat_template_kwargs": {"a": JINJA}})
    assert found.status_code == 200
    assert found.json()["data"] == plain
    assert "root:" not in found.text


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/%2e%2e/errors.py", "//etc/passwd", "/page/", "/page/x"]
)
def test_no_file_but_the_pages(server: Any, path: str) -> None:
    found = server.client.get(path)
    assert found.status_code in (404, 405)
    assert "import" not in found.text


def test_other_kinds_of_content_and_methods(server: Any) -> None:
    form = server.client.post("/score", content=b'{"groups": []}', headers={"Content-Type": "text/plain"})
    assert form.status_code == 422, "a page of another site can send such a body without asking"
    assert server.client.get("/score").status_code == 405
    assert server.client.put("/health").status_code == 405
