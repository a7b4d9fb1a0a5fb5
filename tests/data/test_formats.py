"""Every format of `FORMATS` reads its own rows, is detected by them, and refuses everything else with a `DataError`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardproof.data import FORMATS, REASONS, BadRow, Message, check_group, detect, find_format, to_row
from rewardproof.errors import ConfigError, DataError

ASK, GOOD, POOR = "Name a fruit.", "An apple.", "A stone."
USER = {"role": "user", "content": ASK}
HUMAN = {"from": "human", "value": ASK}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if number % 2 else 'Human'}: {turn}" for number, turn in enumerate(turns))


PAIR = {"chosen": GOOD, "rejected": POOR}
ROWS: list[tuple[str, dict[str, Any]]] = [
    ("rows", {"prompt": ASK, "answers": [GOOD, POOR], "scores": [1, 0.0], "margin": 2, "subset": "s", "category": "c", "reference": 7}),
    ("rows", {"prompt": [USER], "answers": [[says(GOOD)], [says(POOR)]], "scores": [1, 0], "id": 3, "meta": {"kind": "k"}}),
    ("rows", {"prompt": ASK, "answers": [GOOD, POOR], "rewards": [0.5, -0.5]}),
    ("rmb", {"conversation_input": [USER], "chosen": {"llm_name": "a", "answer": GOOD}, "reject": {"llm_name": "b", "answer": POOR}}),
    (
        "rmb",
        {"conversation_input": [USER], "bon_best": {"llm_name": "a", "answer": GOOD}, "loser_list": [{"llm_name": "b", "answer": POOR}]},
    ),
    ("webgpt", {"text": [f"## Human:\n{ASK}\n\n## Assistant:\n{GOOD}", f"## Human:\n{ASK}\n\n## Assistant: {POOR}"], "score": [1.5, 0.5]}),
    ("webgpt", {"question": {"full_text": ASK}, "answer_0": GOOD, "answer_1": POOR, "score_0": 0.5, "score_1": -0.5}),
    ("webgpt", {"question": ASK, "answer_0": GOOD, "answer_1": POOR, "score_0": 1, "score_1": -1}),
    ("llmbar", {"input": ASK, "output_1": GOOD, "output_2": POOR, "label": 1}),
    ("helpsteer", {"prompt": ASK, "response_1": GOOD, "response_2": POOR, "preference_strength": -3}),
    ("helpsteer", {"chosen": [USER, says(GOOD)], "rejected": [USER, says(POOR)], "chosen_reward": -1.0, "rejected_reward": -2.0}),
    ("rewardbench", {"prompt": ASK, "chosen": [GOOD], "rejected": [POOR], "num_correct": 1, "subset": "Focus"}),
    ("rewardbench", {"prompt": ASK, **PAIR, "chosen_model": "a", "rejected_model": "b", "subset": "s"}),
    ("llama_factory", {"conversations": [HUMAN], "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": POOR}}),
    ("llama_factory", {"instruction": ASK, "input": "", **PAIR}),
    ("alpaca_eval", {"instruction": ASK, "input": None, "output_1": GOOD, "output_2": POOR, "preference": 1}),
    ("ranked", {"query": ASK, "responses": [GOOD, POOR], "scores": [0.9, 0.1]}),
    ("ranked", {"prompt": ASK, "completions": [GOOD, POOR], "ranks": [1, 2]}),
    ("ranked", {"prompt": ASK, "answers": [GOOD, POOR], "ranks": [1, 2]}),
    ("ranked", {"prompt": ASK, "answers": [{"answer": GOOD, "score": 3}, {"answer": POOR, "score": 1}]}),
    ("ranked", {"question": ASK, "responses": [{"text": GOOD, "rank": 1}, {"text": POOR, "rank": 2}]}),
    ("openrlhf", {"context_messages": [USER], "chosen": [says(GOOD)], "rejected": [says(POOR)]}),
    ("openrlhf", {"context_messages": [USER], **PAIR}),
    ("openrlhf", {"input": ASK, **PAIR}),
    ("hh", {"chosen": transcript(ASK, GOOD), "rejected": transcript(ASK, POOR)}),
    ("trl", {"prompt": ASK, **PAIR, "margin": 0.5}),
    ("trl", {"prompt": [USER], "chosen": [says(GOOD)], "rejected": [says(POOR)]}),
    ("trl", {"prompt": [USER], "chosen": [USER, says(GOOD)], "rejected": [USER, says(POOR)]}),
    ("trl", {"chosen": [USER, says(GOOD)], "rejected": [USER, says(POOR)]}),
]
"""Rows that all say the same: to ASK, GOOD is better than POOR."""

OTHER_ROWS: list[tuple[str, dict[str, Any]]] = [
    ("dsp", {"query": ASK, "responses": {"academy": GOOD, "normal": POOR}}),
    ("helpsteer", {"prompt": ASK, "response": GOOD, "helpfulness": 3, "verbosity": 1}),
    ("rm_bench", {"id": 1, "prompt": ASK, "chosen": ["a", "ab", "abc"], "rejected": ["x", "xy", "xyz"]}),
    ("llama_factory", {"messages": [USER, says(GOOD)], "label": True}),
    ("llama_factory", {"instruction": ASK, "input": "Now.", "output": GOOD, "kto_tag": False}),
    ("trl", {"prompt": ASK, "completion": GOOD, "label": True}),
    ("trl", {"chosen": f"{ASK} {GOOD}", "rejected": f"{ASK} {POOR}"}),
    ("gsm8k", {"question": ASK, "answer": f"{GOOD}\n#### 7"}),
]
PROMPT = {"prompt": ASK, "id": "p", "category": "c"}
KEYS = sorted({key for _, row in ROWS + OTHER_ROWS for key in row})


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_a_preference_reads_the_same_in_every_format(name: str, row: dict[str, Any]) -> None:
    group = FORMATS[name].to_group(row)
    assert detect(row).name == name
    assert group.prompt == (Message("user", ASK),)
    assert group.answers == ((Message("assistant", GOOD),), (Message("assistant", POOR),))
    assert group.scores is not None
    assert group.scores[0] > group.scores[1]
    assert not group.raw
    check_group(group)


@pytest.mark.parametrize(("name", "row"), OTHER_ROWS)
def test_rows_of_other_shapes_are_detected(name: str, row: dict[str, Any]) -> None:
    assert detect(row).name == name
    check_group(FORMATS[name].to_group(row), purpose="score")


def test_prompts_alone_are_there_to_be_answered() -> None:
    group = detect(PROMPT).to_group(PROMPT)
    assert group.prompt == (Message("user", ASK),)
    check_group(group, purpose="answer")
    check_group(FORMATS["trl"].to_group({"prompt": ASK, **PAIR}), purpose="answer")
    with pytest.raises(BadRow, match="no answers"):
        check_group(group, purpose="score")
    for prompt, reason in (
        ("", "empty prompt"),
        ([{"role": "system", "content": ASK}], "wrong order of roles"),
        ([USER, says(GOOD)], "two turns in a row"),
    ):
        with pytest.raises(BadRow, match=reason):
            check_group(FORMATS["prompts"].to_group({"prompt": prompt}), purpose="answer")
    with pytest.raises(BadRow, match="unknown format"):
        detect({"prompt": ASK, "answer": GOOD})


def test_a_worked_problem_has_its_solution_and_its_final_answer() -> None:
    solution = "She sold 48/2 = <<48/2=24>>24 in May.\nIn all 1,248.\n#### 1,248"
    group = FORMATS["gsm8k"].to_group({"question": ASK, "answer": solution, "category": "arithmetic"})
    assert group.answer_texts == (solution,)
    assert (group.scores, group.reference, group.category) == ((1.0,), "1248", "arithmetic")
    check_group(group)
    for answer in ("no mark", "nothing behind it ####  "):
        with pytest.raises(BadRow, match="missing field: no final answer behind '####'"):
            FORMATS["gsm8k"].to_group({"question": ASK, "answer": answer})


def test_every_format_is_named_documented_and_covered() -> None:
    assert {name for name, _ in ROWS + OTHER_ROWS} | {"prompts"} == set(FORMATS)
    for name, known in FORMATS.items():
        assert known.name == name
        assert known.doc
        assert find_format(name) is known


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_refuses_a_row_without_its_columns(name: str) -> None:
    assert not FORMATS[name].matches({})
    with pytest.raises(BadRow, match="missing field"):
        FORMATS[name].to_group({})


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_our_rows_carry_any_group(name: str, row: dict[str, Any]) -> None:
    group = FORMATS[name].to_group(row)
    assert FORMATS["rows"].to_group(json.loads(json.dumps(to_row(group)))) == group


def reason_of(row: dict[str, Any], name: str) -> str | None:
    """Why a row is bad; `None` for a good one. Anything but `BadRow` passes through and fails the test."""
    try:
        check_group((detect(row) if name == "auto" else find_format(name)).to_group(row))
    except BadRow as bad:
        return bad.reason
    return None


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([transcript(ASK, GOOD), 10**400, "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*KEYS, "role", "content", "from", "value", "llm_name", "answer", "score"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(row=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=7), name=st.sampled_from([*FORMATS, "dsp:academy", "auto"]))
def test_junk_raises_nothing_but_data_errors(row: dict[str, Any], name: str) -> None:
    reason = reason_of(row, name)
    assert reason is None or reason in REASONS


@settings(max_examples=150, deadline=None)
@given(case=st.sampled_from(ROWS + OTHER_ROWS), data=st.data())
def test_one_junk_value_in_a_good_row_raises_nothing_but_data_errors(case: tuple[str, dict[str, Any]], data: st.DataObject) -> None:
    name, row = case
    spoilt = {**row, data.draw(st.sampled_from(sorted(row))): data.draw(JUNK)}
    reason = reason_of(spoilt, name)
    assert reason is None or reason in REASONS


def test_unknown_names_and_rows_teach_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'helpsteer'"):
        find_format("helpster")
    with pytest.raises(ConfigError, match="Unknown data format 'trl:x'"):
        find_format("trl:x")
    with pytest.raises(DataError, match=r"columns answer, question; known formats: rows, .*trl"):
        detect({"question": "?", "answer": "!"})


@pytest.mark.parametrize(
    ("preference", "scores"), [(1, (1, 0)), (2.0, (0, 1)), (1.25, (0.75, 0.25)), (1.5, (0.5, 0.5)), (0, (0.5, 0.5)), (None, None)]
)
def test_alpaca_preferences_are_probabilities(preference: float | None, scores: tuple[float, float] | None) -> None:
    row = {"instruction": ASK, "input": "Now.", "output_1": GOOD, "output_2": POOR, "preference": preference}
    group = FORMATS["alpaca_eval"].to_group(row)
    assert group.scores == scores
    assert group.prompt_text == f"{ASK}\n\nNow."


def test_dsp_prefers_the_domain_that_is_named() -> None:
    row = {"query": ASK, "responses": {"academy": GOOD, "normal": POOR}}
    assert FORMATS["dsp"].to_group(row).scores is None
    group = find_format("dsp:normal").to_group(row)
    assert (group.scores, group.meta["names"]) == ((0.0, 1.0), ["academy", "normal"])


def test_rm_bench_is_a_group_of_six_with_style_levels() -> None:
    row = {"prompt": ASK, "chosen": ["a", "ab", "abc"], "rejected": ["x", "xy", "xyz"], "error": "e"}
    group = FORMATS["rm_bench"].to_group(row)
    assert (group.scores, group.meta) == ((1.0, 1.0, 1.0, 0.0, 0.0, 0.0), {"levels": [0, 1, 2, 0, 1, 2], "error": "e"})


def test_rewardbench_2_takes_lists_of_any_length() -> None:
    group = FORMATS["rewardbench"].to_group({"prompt": ASK, "chosen": ["a", "b"], "rejected": ["x", "y", "z"], "num_correct": 2})
    assert group.scores == (1.0, 1.0, 0.0, 0.0, 0.0)


def test_rmb_keeps_names_and_sections() -> None:
    row = dict(ROWS[3][1], bon_uid="9", category_path="BoN_set/Helpfulness/Chat/Any")
    group = FORMATS["rmb"].to_group(row)
    assert (group.id, group.subset, group.category) == ("9", "BoN_set/Helpfulness", "BoN_set/Helpfulness/Chat/Any")
    assert group.meta["names"] == ["a", "b"]


def test_hh_parts_where_the_transcripts_part() -> None:
    row = {"chosen": transcript("a", "b", "c", "d"), "rejected": transcript("a", "x", "y", "z")}
    group = FORMATS["hh"].to_group(row)
    assert group.prompt == (Message("user", "a"),)
    assert group.answer_texts == ("b\nc\nd", "x\ny\nz")
    check_group(group)


def test_hh_text_inside_a_turn_is_not_markup() -> None:
    row = {"chosen": transcript("Human: is that me?", "Yes.\nHuman: it is."), "rejected": transcript("Human: is that me?", "No.")}
    assert FORMATS["hh"].to_group(row).answer_texts == ("Yes.\nHuman: it is.", "No.")


def test_helpsteer_reads_marked_turns_and_graded_pairs() -> None:
    prompt = "Hello?<extra_id_1>Assistant\nHi.\n<extra_id_1>User\nBye?"
    group = FORMATS["helpsteer"].to_group({"prompt": prompt, "response_1": GOOD, "response_2": POOR, "preference_strength": 2})
    assert [tuple(message) for message in group.prompt] == [("user", "Hello?"), ("assistant", "Hi."), ("user", "Bye?")]
    assert (group.scores, group.margin) == ((0.0, 1.0), 2.0)
    check_group(group)


def test_llama_factory_reads_system_and_history() -> None:
    row = {"instruction": ASK, "system": "Be kind.", "history": [["Hi?", "Hello."]], **PAIR}
    roles = [message.role for message in FORMATS["llama_factory"].to_group(row).prompt]
    assert roles == ["system", "user", "assistant", "user"]


def test_single_answers_keep_their_label() -> None:
    scores = {bool(row.get("label", row.get("kto_tag"))): FORMATS[name].to_group(row).scores for name, row in OTHER_ROWS[3:6]}
    assert scores == {True: (1.0,), False: (0.0,)}


def test_text_without_a_prompt_is_raw() -> None:
    group = FORMATS["trl"].to_group(OTHER_ROWS[6][1])
    assert (group.raw, group.prompt) == (True, ())
    assert group.answer_texts == (f"{ASK} {GOOD}", f"{ASK} {POOR}")


BAD_ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("rows", {"prompt": 3, "answers": ["a"]}, "non-string field 'prompt' of type int"),
    ("rows", {"prompt": "a", "answers": "a"}, "not a list of answers"),
    ("rows", {"prompt": "a", "answers": [3]}, "non-string field 'answers' of type int"),
    ("rows", {"prompt": "a", "answers": ["a"], "scores": 1}, "not a list of numbers"),
    ("rows", {"prompt": "a", "answers": ["a"], "scores": ["1"]}, "invalid number: scores is '1'"),
    ("rows", {"prompt": "a", "answers": ["a"], "scores": [10**400]}, "too large"),
    ("rows", {"prompt": "a", "answers": ["a"], "subset": []}, "non-string field 'subset'"),
    ("rows", {"prompt": [{"role": "user"}], "answers": ["a"]}, "missing field: role or content"),
    ("rows", {"prompt": [{"role": "user", "content": []}], "answers": ["a"]}, "non-string field: role or content"),
    ("rows", {"prompt": ["user"], "answers": ["a"]}, "a turn of type str"),
    ("trl", {"chosen": "a", "rejected": [USER]}, "one of 'chosen' and 'rejected' is text"),
    ("trl", {"chosen": [], "rejected": [USER]}, "a conversation without turns"),
    ("trl", {"chosen": [USER, says("a")], "rejected": [says("b")]}, "wrong order of roles: turn 1 has two speakers"),
    ("trl", {"prompt": "a", "completion": "b", "label": "yes"}, "label is 'yes', not true or false"),
    ("trl", {"prompt": 3, "chosen": "a", "rejected": "b"}, "non-string field 'prompt'"),
    (
        "hh",
        {"chosen": "System: x" + transcript("a", "b"), "rejected": transcript("a", "c")},
        "stray text before the first turn: 'System: x'",
    ),
    ("hh", {"chosen": transcript("a", "b"), "rejected": transcript("z", "b")}, "prompts differ at turn 1"),
    ("ranked", {"prompt": "a", "answers": [{"score": 1}]}, "one of answer, text"),
    ("ranked", {"prompt": "a", "answers": [{"text": "b"}]}, "'score' or 'rank'"),
    ("alpaca_eval", {"instruction": "a", "output_1": "b", "output_2": "c", "preference": -1}, "invalid preference -1"),
    ("alpaca_eval", {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 3}, "invalid preference 3"),
    ("alpaca_eval", {"instruction": "a", "output_1": "b", "output_2": None, "preference": 1}, "missing field 'output_2'"),
    ("webgpt", {"text": ["no markup"], "score": [1]}, "stray text: no '## Human:'"),
    ("webgpt", {"text": "a", "score": [1]}, "not a list of texts"),
    ("webgpt", {"text": ["## Human: a ## Assistant: b", "## Human: c ## Assistant: b"], "score": [1, 0]}, "prompts differ"),
    ("llama_factory", {"instruction": "a"}, "one of 'kto_tag' and 'label'"),
    ("llama_factory", {"messages": [], "label": True}, "a conversation without turns"),
    ("llama_factory", {"instruction": "a", "history": 3, **PAIR}, "not a list of exchanges"),
    ("llama_factory", {"instruction": "a", "history": [["b"]], **PAIR}, "an exchange is not two texts"),
    ("dsp", {"query": "a", "responses": ["b"]}, "'responses' is list"),
    ("dsp:law", {"query": "a", "responses": {"academy": "b"}}, "no answer of domain 'law' among academy"),
    ("rm_bench", {"prompt": "a", "chosen": ["b"], "rejected": ["c"]}, "not 3 styles of each"),
    ("rmb", {"conversation_input": [USER], "chosen": "a", "reject": "b"}, "an answer of RMB is"),
    ("llmbar", {"input": "a", "output_1": "b", "output_2": "c", "label": 0}, "label 0, not 1 or 2"),
]


@pytest.mark.parametrize(("name", "row", "message"), BAD_ROWS)
def test_bad_rows_are_refused_with_a_plain_reason(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow) as caught:
        find_format(name).to_group(row)
    assert message in str(caught.value)
    assert caught.value.reason in REASONS


def test_the_second_answers_of_a_weighted_judge_alone_make_pools() -> None:
    row = {"instruction": "Say hi.", "output_1": "Hello.", "output_2": "Hi!", "generator_2": "m", "preference": 1.875}
    group = find_format("alpaca_eval:answers").to_group(row)
    assert (group.answer_texts, group.scores, group.meta["generator_2"]) == (("Hi!",), (0.875,), "m")
    assert find_format("alpaca_eval:answers").to_group({**row, "preference": None}).scores is None
    with pytest.raises(ConfigError, match="alpaca_eval:answers or one of"):
        find_format("alpaca_eval:outputs")
