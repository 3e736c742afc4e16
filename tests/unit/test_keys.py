"""Endpoint keys: random, recognisable, kept only as salted hashes."""

from __future__ import annotations

import pytest

from jupyter_mlops.serving import keys


def test_a_key_has_256_random_bits_behind_its_prefix():
    made = {keys.new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(k.startswith(keys.PREFIX) and len(k) == len(keys.PREFIX) + 43 for k in made)


def test_either_key_opens_and_nothing_else_does():
    shown, kept = keys.new_keys()
    assert set(shown) == set(kept) == {"primary", "secondary"}
    assert keys.check(shown["primary"], kept) and keys.check(shown["secondary"], kept)
    key = shown["primary"]
    for wrong in ("", keys.new_key(), key[:-1], key + "x", kept["primary"]["hash"], "ключ", "\ud800", "x" * 1_000_000):
        assert not keys.check(wrong, kept)


def test_what_is_kept_does_not_tell_the_key():
    key = keys.new_key()
    first, second = keys.hash_key(key), keys.hash_key(key)
    assert first != second  # salted
    assert key not in str(first) and keys.hint(key) == key[-4:]


@pytest.mark.parametrize("records", [{}, {"primary": {}}, {"primary": {"salt": "", "hash": ""}},
                                     {"primary": {"salt": "ä", "hash": "ö"}}])
def test_broken_records_open_nothing(records):
    assert not keys.check("", records) and not keys.check(keys.new_key(), records)


def test_nobody_has_as_many_keys_as_an_endpoint():
    assert set(keys.NOBODY) == set(keys.NAMES)
    assert not keys.check(keys.new_key(), keys.NOBODY)
