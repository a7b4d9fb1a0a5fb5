"""DSP: one query, one answer a domain. `dsp` reads them without an order; `dsp:academy` prefers that domain's answer to the others."""

from __future__ import annotations

from rewardproof.data.checks import BadRow
from rewardproof.data.formats.fields import Format, JsonRow, assistant, field_of, shared_columns, text_of, user
from rewardproof.data.group import Group


def matches(row: JsonRow) -> bool:
    """`query` and a `responses` object."""
    return "query" in row and isinstance(row.get("responses"), dict)


def to_group(row: JsonRow, domain: str = "") -> Group:
    """Read one query; `meta["names"]` holds the answers' domains in their order.

    Args:
        row: The row.
        domain: The domain whose answer scores 1, the others 0; without one there are no scores.
    """
    responses = field_of(row, "responses")
    if not isinstance(responses, dict):
        raise BadRow("not an object", f"not an object: 'responses' is {type(responses).__name__}")
    if domain and domain not in responses:
        raise BadRow("missing field", f"missing field: no answer of domain {domain!r} among {', '.join(responses)}")
    scores = tuple(float(name == domain) for name in responses) if domain else None
    answers = tuple(assistant(text_of(responses, name)) for name in responses)
    columns = shared_columns(row, ("query", "responses"))
    columns["meta"] = {**columns["meta"], "names": list(responses)}
    return Group(user(text_of(row, "query")), answers, scores, **columns)


def for_domain(domain: str) -> Format:
    """The format `dsp:DOMAIN`."""
    return Format(f"dsp:{domain}", f"DSP with {domain}'s answer preferred", matches, lambda row: to_group(row, domain))


DSP = Format("dsp", "DSP: query and an answer a domain; dsp:DOMAIN prefers that domain's", matches, to_group)
