"""An endpoint's page for people: what it takes and answers, and a form to try it. One file, nothing from elsewhere.

Made from the endpoint's OpenAPI document. Names in it come from whoever made the model, so all of it is escaped, and
the page runs under a policy that allows its own one style and script, by their hashes, and calls to its own origin.
"""

from __future__ import annotations

import base64
import hashlib
import html as escaping
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

CONTENT_TYPE = "text/html; charset=utf-8"
#: Columns up to which each has a field of its own, and characters of a text that is shown.
MAX_FIELDS = 16
MAX_TEXT = 200
_FORM_OF = {"number": "number", "integer": "number", "boolean": "boolean", "string": "string"}


def html(
    document: dict[str, Any], mode: Literal["key", "owner"] = "key", *, invocations: str = "",
    actions: str = "actions/invoke", health: str = "",
) -> tuple[bytes, str]:
    """The page, and the value of its ``Content-Security-Policy`` header.

    Args:
        document: what :func:`.openapi.document` made.
        mode: ``key``: the caller types the endpoint's key, which stays in the page's memory. ``owner``: the page lies
            below Jupyter, and calls the REST action with Jupyter's login and its XSRF cookie.
        invocations: the address to call from elsewhere, relative to the page or whole; by default that of the gateway
            beside the page, or for the owner the one below Jupyter.
        actions: the REST action, relative to the page.
        health: one word about the endpoint's state, shown beside its name.
    """
    endpoint = document["x-endpoint"]
    post = document["paths"]["/invocations"]["post"]
    examples = _examples(post["requestBody"]["content"])
    if not invocations:
        # …/jupyter-mlops/api/v1/workspaces/<ws>/endpoints/<e>/docs → …/jupyter-mlops/endpoints/<e>/invocations
        invocations = "invocations" if mode == "key" else f"../../../../../../endpoints/{endpoint['name']}/invocations"
    about = {"mode": mode, "invocations": invocations, "target": actions if mode == "owner" else invocations,
             "examples": examples}
    model = endpoint.get("model") or {}
    version = f" version {model['version']}" if model.get("version") else ""
    parts = [f"model {model['name']}{version}" if model.get("name") else "",
             f"deployment {endpoint['deployment']}" if endpoint["deployment"] else "", health]
    body = (
        "<main>"
        f'<h1 tabindex="-1">{_text(endpoint["name"])}</h1>'
        f'<p class="about">{_text(" · ".join(p for p in parts if p))}</p>'
        f"{_description(document)}"
        '<section class="two">'
        f"{_form(document, mode, examples)}{_calls(endpoint.get('auth_mode', 'key'), examples)}"
        "</section>"
        f"{_inputs(document)}{_answer(post)}{_errors(post)}{_addresses(document)}"
        "</main>"
        f'<script type="application/json" id="about">{_data(about)}</script>'
        f'<script type="application/json" id="document">{_data(document)}</script>'
    )
    return _page(f"{endpoint['name']} · endpoint", body)


def door() -> tuple[bytes, str]:
    """The page for a browser that came without a key: it asks for one, and says nothing about what is behind it."""
    body = (
        '<main class="door"><h1>An endpoint</h1><p class="about">Its page is open to those who hold its key.</p>'
        '<form id="door" class="card"><label for="key">Key</label>'
        '<input id="key" type="password" autocomplete="off" required autofocus>'
        '<div class="actions"><button id="send">Open</button><span id="status" role="status"></span></div></form>'
        '<p class="about">The key stays in this page and is gone when it is closed.</p>'
        "<noscript><p>Without JavaScript, read <code>openapi.json</code> with the key.</p></noscript>"
        "</main>"
    )
    return _page("endpoint", body)


# -- sections ---------------------------------------------------------------------


def _description(document: dict[str, Any]) -> str:
    return f"<p>{_text(document['info'].get('description', ''), 2000)}</p>"


def _form(document: dict[str, Any], mode: str, examples: list[dict[str, str]]) -> str:
    fields = _fields(document)
    deployments = _deployments(document)
    rows = ['<form id="try" class="card"><h2>Try it</h2>']
    if mode == "key":
        rows.append('<label for="key">Key</label><input id="key" type="password" autocomplete="off" required>')
    rows.append('<div class="choices">')
    if len(deployments) > 1:
        options = "".join(f"<option>{_text(d)}</option>" for d in deployments)
        rows.append(f'<div><label for="deployment">Deployment</label><select id="deployment">'
                    f'<option value="">by the traffic</option>{options}</select></div>')
    if fields:
        rows.append('<div><label for="mode">Input</label><select id="mode"><option value="fields">one row, by field'
                    '</option><option value="json">as it is sent</option></select></div>')
    rows.append("</div>")
    if fields:
        rows.append(f'<fieldset id="fields" class="fields" aria-label="Fields of one row">{fields}</fieldset>')
    rows.append('<div id="editor">')
    if len(examples) > 1:
        options = "".join(f'<option value="{i}">{_text(e["name"])}</option>' for i, e in enumerate(examples))
        rows.append(f'<label for="example">Form</label><select id="example">{options}</select>')
    first = examples[0]["body"] if examples else ""
    rows.append(f'<label for="body">Body</label><textarea id="body" spellcheck="false" rows="10">\n{_raw(first)}'
                "</textarea></div>")
    rows.append('<div class="actions"><button id="send">Send</button></div>'
                '<div class="result" role="status" aria-live="polite"><div id="status"></div>'
                '<pre id="answer" tabindex="0" aria-label="Answer" hidden></pre></div></form>')
    return "".join(rows)


def _fields(document: dict[str, Any]) -> str:
    """A field for each column when these are few and plain, else nothing."""
    schemas = document["components"]["schemas"]
    row = schemas.get("Row", {})
    properties = row.get("properties")
    if not isinstance(properties, dict) or not 0 < len(properties) <= MAX_FIELDS or "DataframeRecords" not in schemas:
        return ""
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    example = content.get("examples", {}).get("dataframe_records", {}).get("value", {}).get("dataframe_records")
    values = example[0] if example else {}
    rows = []
    for at, (name, schema) in enumerate(properties.items()):
        kinds = schema.get("type", "")
        kind = _FORM_OF.get(next((k for k in ([kinds] if isinstance(kinds, str) else kinds) if k != "null"), ""))
        if kind is None:
            return ""
        optional = name not in row.get("required", ())
        data = f'id="f{at}" data-column="{_raw(name)}" data-type="{_raw(_kind(schema, kind))}"' + (
            ' data-optional="1"' if optional else "")
        value = values.get(name)
        if kind == "boolean":
            choices = (["", "false", "true"] if optional else ["false", "true"])
            field = f"<select {data}>" + "".join(
                f"<option{' selected' if json.dumps(value) == c else ''}>{c}</option>" for c in choices) + "</select>"
        else:
            shown = "" if value is None else value if isinstance(value, str) else json.dumps(value)
            hint = ' inputmode="decimal"' if kind == "number" else ""
            field = f'<input {data} value="{_raw(shown)}"{hint} autocomplete="off" spellcheck="false">'
        words = _type_words(schema).removesuffix(" or null") + (", optional" if optional else "")
        rows.append(f'<div class="field"><label for="f{at}">{_text(name)} <span class="about">{_text(words)}</span>'
                    f"</label>{field}</div>")
    return "".join(rows)


def _kind(schema: dict[str, Any], kind: str) -> str:
    return "text" if kind == "string" and ("contentEncoding" in schema or "description" in schema) else kind


def _calls(auth_mode: str, examples: list[dict[str, str]]) -> str:
    body = next((e["body"] for e in examples if e["type"] == "application/json"), "")
    word = "token" if auth_mode == "token" else "key"
    place = '<span data-address>invocations</span>'
    if 0 < len(body) <= 700:
        shell, given = "'" + body.replace("'", "'\\''") + "'", _literal(body)
    else:
        shell, given = "@body.json", 'open("body.json").read()'
    curl = _raw(' \\\n  -H "Authorization: Bearer $KEY" \\\n  -H "Content-Type: application/json" \\\n'
                f"  -d {shell}")
    before = _raw(f'import json, os, urllib.request\n\nbody = {given}\nrequest = urllib.request.Request(\n    "')
    after = _raw('",\n    body.encode(),\n    {"Authorization": "Bearer " + os.environ["KEY"],\n'
                 '     "Content-Type": "application/json"})\nanswer = json.load(urllib.request.urlopen(request))\n'
                 'print(answer["predictions"])')
    return ('<div><h2>Call it</h2>'
            f"<p>POST to this address, with the endpoint's {word} in the variable <code>KEY</code>:</p>"
            f"<pre>{place}</pre><h3>From a shell</h3><pre>curl {place}{curl}</pre>"
            f"<h3>From Python</h3><pre>{before}{place}{after}</pre></div>")


def _inputs(document: dict[str, Any]) -> str:
    schemas = document["components"]["schemas"]
    parts = ['<section id="input"><h2>What it takes</h2>']
    row = schemas.get("Row", {})
    if not row and "Inputs" not in schemas:
        return "".join(parts) + "<p>Whatever its scoring script takes: the body goes to it as it is.</p></section>"
    if "properties" in row:
        columns = [(f"<code>{_text(n)}</code>", _text(_type_words(s)), "yes" if n in row.get("required", ()) else "no")
                for n, s in row["properties"].items()]
        parts.append(_table(("Column", "Type", "Required"), columns))
    elif row:
        items = row.get("prefixItems") or [row["items"]] * row["maxItems"]
        parts.append(_table(("Column", "Type"), [(str(i), _text(_type_words(s))) for i, s in enumerate(items)]))
    else:
        whole = schemas["Inputs"]["properties"]["inputs"]
        named = whole.get("properties")
        if named:
            inputs = [(f"<code>{_text(n)}</code>", _text(_type_words(s))) for n, s in named.items()]
            parts.append(_table(("Input", "Type"), inputs))
        else:
            parts.append(f"<p>{_text(_type_words(whole))}</p>")
    params = schemas.get("Params", {}).get("properties", {})
    if params:
        rows = [(f"<code>{_text(n)}</code>", _text(_type_words(s)),
                 f"<code>{_text(json.dumps(s.get('default')))}</code>") for n, s in params.items()]
        parts.append("<h3>Parameters</h3><p>In the field <code>params</code> beside the rows.</p>"
                     + _table(("Name", "Type", "Default"), rows))
    return "".join(parts) + "</section>"


def _answer(post: dict[str, Any]) -> str:
    words = post["responses"]["200"]["description"]
    return (f'<section><h2>What it answers</h2><p>{_text(words, 2000)} The body is '
            '<code>{"predictions": …}</code>; NaN and infinities are <code>null</code>.</p></section>')


def _errors(post: dict[str, Any]) -> str:
    rows = []
    for status, answer in sorted(post["responses"].items()):
        if status != "200":
            words, _, code = answer["description"].partition(" (code ")
            rows.append((status, f"<code>{_text(code.rstrip(')'))}</code>", _text(words)))
    return ("<section><h2>Errors</h2><p>JSON with <code>message</code>, <code>code</code> and <code>hint</code>.</p>"
            + _table(("Status", "Code", "When"), rows) + "</section>")


def _addresses(document: dict[str, Any]) -> str:
    rows = [(method.upper(), f"<code>{_text(path.lstrip('/'))}</code>", _text(operation.get("summary", "")))
            for path, methods in document["paths"].items() for method, operation in methods.items()]
    return ('<section><h2>All addresses</h2><p>Below the endpoint; <code>v2</code> is the Open Inference Protocol.</p>'
            + _table(("Method", "Address", "What"), rows)
            + '<div class="actions"><button type="button" class="plain" id="download">Save openapi.json</button></div>'
            "</section>")


# -- odds and ends ------------------------------------------------------------------


def _deployments(document: dict[str, Any]) -> list[str]:
    for parameter in document["paths"]["/invocations"]["post"]["parameters"]:
        if parameter["name"] == "azureml-model-deployment":
            return list(parameter["schema"].get("enum") or [])
    return []


def _examples(content: dict[str, Any]) -> list[dict[str, str]]:
    found = [{"name": name, "type": "application/json", "body": pretty(example["value"])}
             for name, example in content["application/json"].get("examples", {}).items()]
    if "text/csv" in content:
        found.append({"name": "CSV", "type": "text/csv", "body": content["text/csv"]["example"]})
    return found


def _type_words(schema: dict[str, Any]) -> str:
    kinds = schema.get("type", "any value")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    missing = "null" in kinds
    kind = next((k for k in kinds if k != "null"), "null")
    words = {"number": "number", "integer": "whole number", "boolean": "true or false", "string": "text",
             "array": "list", "object": "object"}.get(kind, kind)
    if kind == "array":
        lengths, inner = [], schema
        while inner.get("type") == "array":
            lengths.append(str(inner["minItems"]) if inner.get("maxItems") else "any")
            inner = inner.get("items", {})
        words = f"{_type_words(inner)}, nested {' × '.join(lengths)}" if len(lengths) > 1 else (
            f"list of {'' if lengths[0] == 'any' else lengths[0] + ' × '}{_type_words(inner)}")
    elif "contentEncoding" in schema:
        words = "base64"
    elif kind == "string" and "description" in schema:
        words = "date or time (ISO 8601)"
    elif kind == "integer" and schema.get("maximum", 0) not in (0, 2**63 - 1):
        words += f", {schema.get('minimum')} to {schema['maximum']}"
    return words + (" or null" if missing else "")


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table of cells that are markup already."""
    head = "".join(f'<th scope="col">{h}</th>' for h in heads)
    cells = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    long = ' tabindex="0" role="region" aria-label="' + heads[0] + 's"' if len(rows) > 14 else ""
    return f'<div class="scroll{" long" if long else ""}"{long}><table><thead><tr>{head}</tr></thead>' \
           f"<tbody>{cells}</tbody></table></div>"


def pretty(value: Any, indent: str = "") -> str:
    """JSON for people: what fits a line is on one, and so is a row of numbers."""
    line = _dumped(value)
    plain = isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value)
    if len(line) <= 88 or plain or not isinstance(value, (list, dict)) or len(indent) > 40:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        parts = [f"{inner}{_dumped(k)}: {pretty(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(parts) + "\n" + indent + "}"
    return "[\n" + ",\n".join(inner + pretty(v, inner) for v in value) + "\n" + indent + "]"


def _dumped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)  # no half characters, nothing that is not to be seen


def _literal(text: str) -> str:
    """A text in Python, over several lines when it has some."""
    if "\n" in text and "\\" not in text and "'''" not in text and not text.endswith("'"):
        return f"'''{text}'''"
    return repr(text)


def _text(value: Any, most: int = MAX_TEXT) -> str:
    """Text for the page: escaped, without what cannot be seen or turns the direction of writing, of bounded length."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)[: most + 1])
    return escaping.escape(shown if len(shown) <= most else shown[: most - 1] + "…")


def _raw(value: Any) -> str:
    return escaping.escape(str(value))


def _data(value: Any) -> str:
    """JSON for a script element that is data: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False)  # ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _asset(name: str) -> tuple[str, str]:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8").strip()
    return text, "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"


def _page(title: str, body: str) -> tuple[bytes, str]:
    (style, style_hash), (script, script_hash) = _asset("page.css"), _asset("page.js")
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f"<style>{style}</style></head><body>{body}<script>{script}</script></body></html>"
    )
    policy = (f"default-src 'none'; style-src {style_hash}; script-src {script_hash}; connect-src 'self'; "
              "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    # The assets are ours and ASCII would change their hashes; what a model brings may hold a lone surrogate.
    return text.encode("utf-8", "xmlcharrefreplace"), policy
