"""What is said of the way that the data of jobs take."""

from __future__ import annotations

import pytest

from jupyter_mlops.client.compute import Survey

PROXY = {"way": "proxy", "why": ""}


def told(**given) -> str:
    data = {"version": "v1.36.2", "namespace": {"name": "team", "exists": True, "level": ""}, "missing": [], **given}
    return Survey("gpu", data).text()


@pytest.mark.parametrize(("given", "words", "others"), [
    ({"transfer": PROXY}, ["over the API", "through the API's proxy"], ["by the route"]),
    ({"transfer": None}, [], ["jobs' data", "large files"]),
    ({"transfer": PROXY, "route": {"listen": "a:1", "address": "b:2", "trouble": ""}}, ["by the route b:2"],
     ["proxy", "over the API"]),
    ({"transfer": PROXY, "route": {"listen": "a:1", "address": "b:2", "trouble": "pods do not reach it"}},
     ["over the API: pods do not reach it", "through the API's proxy"], ["by the route"]),
])
def test_the_way_is_shown(given, words, others):
    text = told(**given)
    assert all(word in text for word in words) and not any(word in text for word in others), text
