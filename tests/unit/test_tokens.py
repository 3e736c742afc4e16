"""Bearer tokens of endpoints."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_mlops.serving import tokens

SECRET, OTHER = tokens.new_secret(), tokens.new_secret()
NOW = 1_800_000_000.0
TOKEN, CLAIMS = tokens.mint("digits", SECRET, NOW + 60)


def test_a_token_opens_its_endpoint_until_it_expires():
    assert tokens.check(TOKEN, "digits", SECRET, NOW)
    assert tokens.check(TOKEN, "digits", SECRET, NOW + 59)
    assert not tokens.check(TOKEN, "digits", SECRET, NOW + 60)
    assert tokens.read(TOKEN) == CLAIMS and CLAIMS.expires == NOW + 60


@pytest.mark.parametrize(
    ("endpoint", "secret"),
    [("other", SECRET), ("digits", OTHER), ("digits", ""), ("digits", "no hex"), ("digits", "00")],
    ids=["another endpoint", "another secret", "no secret", "no hexadecimal", "too short"],  # the same in each worker
)
def test_it_opens_nothing_else(endpoint, secret):
    assert not tokens.check(TOKEN, endpoint, secret, NOW)


@pytest.mark.parametrize("secret", ["", "00", "zz"])
def test_a_missing_secret_signs_nothing(secret):
    with pytest.raises(ValueError, match="no secret"):
        tokens.mint("digits", secret, NOW + 60)


def test_no_part_can_be_changed():
    head, _, mac = TOKEN.removeprefix("jmt_").partition(".")
    value = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    longer = base64.urlsafe_b64encode(json.dumps({**value, "x": int(NOW) + 9_999_999}).encode()).decode().rstrip("=")
    bad = [f"jmt_{longer}.{mac}", f"jmt_{head}", f"jmt_{head}.", f"jmt_.{mac}", TOKEN + "=", TOKEN + "A",
           TOKEN.upper(), TOKEN[4:], "", "jmt_", "jmt_.", TOKEN + "." + mac, "é" + TOKEN, TOKEN + " " * 600]
    assert not [t for t in bad if tokens.check(t, "digits", SECRET, NOW)]
    for i in range(len(TOKEN)):
        other = "A" if TOKEN[i] != "A" else "B"
        changed = TOKEN[:i] + other + TOKEN[i + 1:]
        assert not tokens.check(changed, "digits", SECRET, NOW), i


@given(st.text(max_size=700))
def test_anything_is_looked_at_without_an_error(text):
    assert not tokens.check(text, "digits", SECRET, NOW)
    assert not tokens.check("jmt_" + text, "digits", SECRET, NOW)
    tokens.read("jmt_" + text)


def test_the_longest_name_fits():
    token, _ = tokens.mint("e" * 40, SECRET, NOW + 30 * 86_400)
    assert len(token) < tokens.MAX_LENGTH / 2 and tokens.check(token, "e" * 40, SECRET, NOW)
