"""Secrets go, code stays."""

from __future__ import annotations

import ast
import base64
from urllib.parse import quote

import pytest

from jupyter_mlops import capture
from jupyter_mlops.capture.literals import mask_python
from jupyter_mlops.core.errors import ParameterError
from jupyter_mlops.runtime import redact

#: Assembled here, so that no scanner of repositories takes this file for a leak.
TOKENS = [
    "AKIA" + "IOSFODNN7EXAMPLE", "ghp" + "_abcdefghijklmnopqrstuvwxyz0123456789", "hf" + "_abcdefghijklmnopqrstuv",
    "sk" + "-proj-abcdefghijklmnop1234", "xox" + "b-123456789012-abcdefABCDEF",
    "AIza" + "SyA1234567890abcdefghijklmnopqrstu",
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123_-", "glpat" + "-abcdefghijklmnopqrst",
    "SG" + ".abcdefghijklmnopqrst.abcdefghijklmnopqrst", "dapi" + "0123456789abcdef0123456789abcdef",
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEabc+/=\n-----END RSA " + "PRIVATE KEY-----",
]


@pytest.mark.parametrize("token", TOKENS, ids=lambda t: t[:6])
def test_known_forms_go_wherever_they_stand(token):
    for text in (f"x = '''{token}'''", f"+ say {token} twice {token}", f"# {token}", f"https://h/p?q={token}&z=1"):
        assert token not in redact.mask(text)
        assert token not in mask_python(text)


@pytest.mark.parametrize("line", [
    'API_KEY = "{}"', "password: str = '{}'", 'cfg = {{"password": "{}", "n": 3}}', 'os.environ["MY_TOKEN"] = "{}"',
    'f(auth=("bob", "{}"))', 'user, password = "bob", "{}"', 'login("{}")', 'set_token("{}")',
    'os.putenv("MY_TOKEN", "{}")',
    'my_token = os.getenv("MY_TOKEN", "{}")', 'if password == "{}": pass',
    "def get_token():\n    return '{}'", "class A:\n    api_key = (\n        '{}'\n    )", 'client = C(api_key="{}")',
    "# password: {}", "%env API_KEY={}", "!tool --token {} --n 3", "url = 'postgres://bob:{}@db/x'",
    "u = 'https://{}@h.example/x.git'", "r = get('http://h/x?access_token={}&a=1')",
    "h = {{'Authorization': 'Bearer {}'}}",
    'PASSWORDS = ["a", "{}"]', 'secret("{}")', 'token = f"{}-{{x}}"', "passwd = b'{}'",
])
def test_values_beside_names_go(line):
    for value in ("qz7-planted-9x", "Pl4nted/With+Signs9"):
        source = line.format(value.replace("/", "%2F") if "https" in line else value)
        assert value[:7] not in mask_python(source), source
        # Calls and pairs need Python's own grammar; for all else the rules for text must do.
        grammar = line.startswith(("def", "login", "set_token", "secret", "us", "f("))
        assert grammar or value[:7] not in redact.mask(source)


@pytest.mark.parametrize("line", [
    "token = tokenizer.decode(ids)", 'pad_token = "<pad>"', "max_tokens = 1000", 'df = df[["token", "label"]]',
    'key = value', "import secrets", 'x = os.environ["HF_TOKEN"]', "def f(token: str, password=None): pass",
    "f(password=password, token=token)", "model = Qwen2ForTokenClassification()", "for token in tokens: print(token)",
    'password = getpass.getpass("Password: ")', "k = jax.random.PRNGKey(0)", 'sort(key="loss")',
    "https = 'https://github.com/a/b.git'", 'monkey = "banana"', "num_tokens = 12345",
])
def test_code_without_secrets_stays(line):
    assert mask_python(line) == line


def test_what_is_left_of_python_is_python():
    source = 'API_KEY = "abc-1" "def-2"\ncfg = {"password": """x\ny""", "é": "ü"}; token = f"{API_KEY}abc123"\nx = 1\n'
    masked = mask_python(source)
    ast.parse(masked)
    assert "«redacted»" in masked and '"é": "ü"' in masked and masked.endswith("x = 1\n")


def test_a_diff():
    diff = (
        '-API_KEY = "old-secret-11"\n+API_KEY = (\n+    "new-secret-22"\n+)\n'
        "+db:\n+  password: correcthorse\n+A_TOKEN=plain\n"
    )
    masked = redact.mask(diff)
    for value in ("old-secret", "new-secret", "correcthorse", "plain"):
        assert value not in masked
    assert masked.count("\n") == diff.count("\n")


def test_marked_values_go_in_every_form(monkeypatch):
    monkeypatch.setattr(redact, "_marked", set())
    value = 'my "odd" value/&'
    assert capture.secret(value) is value
    forms = [value, quote(value, safe=""), repr(value), base64.b64encode(value.encode()).decode(),
             base64.b64encode(b"bob:" + value.encode()).decode()]
    struck = redact.strike(" ".join(forms), redact.marked())
    assert "odd" not in struck and base64.b64encode(value.encode()).decode()[4:16] not in struck
    for bad in ("abc", "", 3):
        with pytest.raises(ParameterError):
            capture.secret(bad)  # type: ignore[type-var]


def test_environment_and_variables(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "env-value-123")
    monkeypatch.setenv("PWD", "/usr")
    assert redact.clean("x env-value-123 /usr") == "x «redacted» /usr"
    assert redact.values_of({"password": "hunter2!x", "token": "the", "n": 3}) == {"hunter2!x"}


def test_commands():
    words = ["--epochs", "3", "--token", "abc1234", "--api-key=zz99", "--password", "-v", "file.py"]
    assert redact.clean_arguments(words) == [
        "--epochs", "3", "--token", "«redacted»", "--api-key=«redacted»", "--password", "-v", "file.py"
    ]
    assert redact.clean("git@github.com:a/b.git") == "git@github.com:a/b.git"
    assert redact.clean("ssh://git@h/x") == "ssh://git@h/x"


@pytest.mark.parametrize("text", [
    "a" * 50_000, '"' * 30_000, "password=" * 5_000, "token = (" * 5_000, "'''" * 10_000, "a." * 20_000, "://" * 10_000,
    "password" + " " * 30_000, 'password = ' + '"a" ' * 5_000, "x" * 100 + "=" * 30_000, "eyJ" + "a" * 50_000,
    "password: " + "\\" * 20_000, "-----BEGIN PRIVATE KEY-----" * 500, "password=" + "\n" * 30_000, "a://" * 10_000,
], ids=range(15))
def test_no_text_takes_long(text):
    """Rules whose time grows with the square of the text would hold this up for minutes."""
    assert redact.mask(text)
