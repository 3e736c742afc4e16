"""An endpoint's page as text: nothing of a model's names becomes markup, and the policy allows its own parts only."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from test_oip import ALL, column, signature, tensor

from jupyter_mlops.serving import openapi, page

EVIL = "</script><img src=x onerror=alert(1)>"
NAMES = [EVIL, "\"' onfocus=alert(1) autofocus x=\"", "</textarea></pre><script>alert(1)</script>",
         "a\u202eb\x00\n", "ü\ud800", "${alert(1)}", "]]>", "<!--"]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.names, self.texts = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.names.update(name for name, _ in attrs)

    def handle_data(self, data):
        self.texts.append(data)


def evil(name):
    row = signature(column("double", name), column("string", "plain"), column("boolean", "b"),
                    params=[{"name": name, "type": "string", "default": name, "shape": None}],
                    outputs=[{"type": "long", "name": name}])
    return openapi.document("e", "blue", row, model={"name": name, "version": name}, description=name,
                            deployments=["blue", "green"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["key", "owner"])
def test_names_stay_text(name, mode):
    body, _ = page.html(evil(name), mode)
    plain, _ = page.html(evil("harmless"), mode)
    seen, usual = Tags(body.decode()), Tags(plain.decode())
    # A CSV cannot hold half a character, so one form fewer is offered then.
    tags = [[tag for tag, _ in page.found if tag != "option"] for page in (seen, usual)]
    assert tags[0] == tags[1]
    assert seen.names == usual.names and not [n for n in seen.names if n.startswith("on")]
    about = next(text for text in seen.texts if '"mode"' in text)
    assert json.loads(about)["mode"] == mode
    if name.isprintable():
        assert any(name in text for text in seen.texts)


def test_the_policy_allows_the_page_itself_and_nothing_else():
    body, policy = page.html(openapi.document("e", "blue", ALL[0]))
    text = body.decode()
    for kind, directive in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "*" not in policy
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(src|href|action)=|style="|https?://""", markup)
    assert page.door()[1] == policy  # the door becomes the page, so one policy must fit both


def test_every_kind_of_model_has_a_page_and_few_columns_have_fields():
    nested = signature(column("array", "v", items={"type": "map", "values": "double"}))
    for model in [*ALL, signature(tensor("float32", [-1, 3, 224, 224])), nested]:
        for mode in ("key", "owner"):
            assert b"Try it" in page.html(openapi.document("e", "blue", model), mode)[0]
    few = page.html(openapi.document("e", "blue", ALL[1]))[0].decode()
    assert few.count("data-column=") == 6 and 'data-type="boolean"' in few and 'data-optional="1"' in few
    wide = signature(*(column("double", f"c{i}") for i in range(200)))
    text = page.html(openapi.document("e", "blue", wide))[0].decode()
    assert "data-column=" not in text.partition("<script>")[0] and "@body.json" in text
    owner = page.html(openapi.document("e", "blue", ALL[0], auth_mode=""), "owner")[0].decode()
    assert 'id="key"' not in owner.partition("<script>")[0] and "../../endpoints/e/invocations" in owner


def test_pretty_json_is_json():
    value = {"a": [[1.5] * 40, [None]], "b": {"c": "x" * 100, "d\u2028": [{"e": i} for i in range(30)]}, "ü": "\ud800"}
    assert json.loads(page.pretty(value)) == value and '"ü"' in page.pretty({"ü": 1})
