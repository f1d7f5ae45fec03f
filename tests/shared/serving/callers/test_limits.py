"""Rules for what tokens and certificates may have, as a file has them."""

import json
from pathlib import Path

import pytest

from triptych.errors import StartError
from triptych.serving.callers.authorization import Authorization
from triptych.serving.callers.caller import Caller
from triptych.serving.callers.limits import limited, read_limits
from triptych.serving.settings import CallerOptions

RULES = [
    {"token": "batch-*", "quota": 5},
    {"group": "painters", "loras": ["oil*"], "quota": 20},
    {"certificate": "spiffe://example.org/ns/*/sa/batch", "models": ["sd3*"], "loras": []},
    {"token": "*", "quota": 1},
]


def token(subject: str, *groups: str) -> Caller:
    return Caller("token", f"of 'issuer', subject {subject!r}", subject, frozenset(), frozenset(groups))


def test_a_caller_has_the_limits_of_the_first_rule_that_fits() -> None:
    rules = read_limits(json.dumps({"limits": RULES}).encode())
    batch, painter, other = (
        limited(one, rules)
        for one in (token("batch-7", "painters"), token("alice", "painters", "x"), token("bob"))
    )
    assert (batch.quota, batch.loras) == (5, ("*",))
    assert (painter.quota, painter.loras, painter.share) == (20, ("oil*",), token("alice").share)
    assert (other.quota, other.models) == (1, ("*",))
    name = "spiffe://example.org/ns/pictures/sa/batch"
    known, unknown = (
        limited(Caller("certificate", one, one, frozenset()), rules) for one in (name, "batch-7")
    )
    assert (known.models, known.loras, known.quota) == (("sd3*",), (), None)
    assert (unknown.models, unknown.loras, unknown.quota) == (("*",), ("*",), None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"quota": 5}, "limits.0: Value error, a rule has one of token, group and certificate"),
        ({"token": "a", "group": "b"}, "a rule has one of"),
        ({"token": "a", "quota": 0}, "limits.0.quota: Input should be greater than 0"),
        ({"token": "a", "quotas": 5}, "limits.0.quotas: Extra inputs are not permitted"),
        ({"token": "a", "models": []}, "limits.0.models: "),
        ({"token": "a\nb"}, "limits.0.token: Value error, a name is printable characters"),
        ("secret", "limits.0: "),
    ],
)
def test_what_is_no_rule_is_refused_by_its_place(wrong: object, said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # its words are what is tested
        read_limits(json.dumps({"limits": [wrong]}).encode())
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_limits_are_for_sources_that_have_none_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "limits.json").write_text('{"limits": []}')
    (tmp_path / "keys.json").write_text('{"keys": []}')
    with pytest.raises(StartError, match="needs --jwks or --certificate-role"):
        Authorization(CallerOptions(keys_file=tmp_path / "keys.json", limits_file=tmp_path / "limits.json"))
    with pytest.raises(StartError, match="cannot read"):
        Authorization(CallerOptions(certificate_role=["a=client"], limits_file=tmp_path / "none.json"))
