"""Secrets out of text: what looks like one, what is named like one, and what the user has marked as one.

:func:`mask` works by rules: known forms of keys and tokens, credentials in addresses, values beside names such as
``password`` or ``API_KEY``, random strings near such words. :func:`strike` works by values: those marked with
:func:`secret`, those of secret-looking environment variables, and those that the rules found elsewhere. Too much is
replaced rather than too little; what is replaced reads ``«redacted»``.
"""

import base64
import json
import os
import re
from urllib.parse import quote

REDACTED = "«redacted»"
#: Shortest value that may be marked: a shorter one would be found everywhere.
SHORTEST = 4

_QUOTED = (
    r'(?:[rRbBuUfF]{0,2}(?:"""(?:\\.|[^\\]){0,20000}?"""|\'\'\'(?:\\.|[^\\]){0,20000}?\'\'\''
    r'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'))'
)

#: Forms that are secret wherever they stand; a group ``keep`` is left in place.
_FORMS = [re.compile(p, re.S) for p in (
    r"-----BEGIN[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----END).){0,20000}(?:-----END[A-Z0-9 ]{0,60}-----)?",
    r"\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|ANVA|ABIA|ACCA)[A-Z0-9]{16}\b",
    r"\bAIza[0-9A-Za-z_\-]{30,}", r"\bya29\.[0-9A-Za-z_\-.]{10,}", r"\bGOCSPX-[0-9A-Za-z_\-]{10,}",
    r"\bgh[pousr]_[A-Za-z0-9]{16,}", r"\bgithub_pat_[A-Za-z0-9_]{16,}", r"\bgl[a-z]{2,6}-[A-Za-z0-9_\-.]{16,}",
    r"\bhf_[A-Za-z0-9]{16,}", r"\bapi_org_[A-Za-z0-9]{16,}",
    r"\bsk-[A-Za-z0-9_\-]{16,}", r"\b[srp]k_(?:live|test)_[A-Za-z0-9]{10,}", r"\bwhsec_[A-Za-z0-9+/=]{16,}",
    r"\bxox[a-z]-[A-Za-z0-9\-]{10,}", r"\bxapp-[A-Za-z0-9\-]{10,}",
    r"(?P<keep>hooks\.slack\.com/(?:services|workflows)/)[A-Za-z0-9/_\-]+",
    r"\beyJ[A-Za-z0-9_\-]{8,5000}\.[A-Za-z0-9_\-]{8,20000}(?:\.[A-Za-z0-9_\-]*)?",
    r"\bSG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}", r"\bnpm_[A-Za-z0-9]{30,}", r"\bpypi-[A-Za-z0-9_\-]{40,}",
    r"\bdapi[0-9a-f]{32}", r"\bdop_v1_[0-9a-f]{40,}", r"\bhvs\.[A-Za-z0-9_\-]{20,}", r"\br8_[A-Za-z0-9]{30,}",
    r"\bnvapi-[A-Za-z0-9_\-]{20,}", r"\bgsk_[A-Za-z0-9]{20,}", r"\bAGE-SECRET-KEY-1[0-9A-Z]{20,}",
    r"(?P<keep>\b(?:AccountKey|SharedAccessKey|SharedAccessSignature|Password|Pwd)\s*=\s*)[^;\s\"']+",
    r"(?P<keep>[?&;](?:sig|signature|x-amz-[a-z\-]+|X-Amz-[A-Za-z\-]+|code)=)[^&\s\"']+",
    r"(?P<keep>\b(?:[Bb]earer|[Bb]asic)\s+)[A-Za-z0-9._~+/=\-]{8,}",
    r"(?P<keep>\b[Aa]uthorization[\"']?\s*[:=]\s*[\"']?(?:[A-Za-z]+\s+)?)[A-Za-z0-9._~+/=\-]{8,}",
)]
#: What each of them has; most text has none of it, and is spared the search for all.
_HINTS = re.compile(
    r"-----BEGIN|A[KSRIGNBC][A-Z]A[A-Z0-9]|AIza|ya29\.|GOCSPX|gh[pousr]_|github_pat|gl[a-z]{2,6}-|hf_|api_org|sk-|[srp]k_"
    r"|whsec|xox|xapp|hooks\.slack|eyJ|SG\.|npm_|pypi-|dapi|dop_|hvs\.|r8_|nvapi|gsk_|AGE-|Key\s*=|Signature\s*="
    r"|P(?:assword|wd)\s*=|[?&;][a-zA-Z\-]+=|earer|asic|uthorization"
)
_USERINFO = re.compile(r"((?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{0,40}://)([^\s/'\"<>`]{0,2000})@")
#: A password in an address may itself hold slashes; of these schemes nothing behind the host looks like one.
_DATABASE = re.compile(
    r"(\b(?:postgres\w*|mysql\w*|mariadb|mssql|oracle|mongodb|redis\w*|rediss|amqps?|ldaps?|ftps?|sftp|smtps?|"
    r"clickhouse\w*|snowflake|cockroachdb)(?:\+\w+)?://)([^\s'\"<>`]{1,2000})@"
)

_STRONG = frozenset([
    "password", "passwd", "passphrase", "passcode", "pwd", "passwort", "secret", "secrets", "credential",
    "credentials", "creds", "apikey", "apikeys", "accesskey", "secretkey", "privatekey", "authkey", "apitoken",
    "accesstoken", "authtoken", "connstr", "sas", "pw",
])
_WEAK = frozenset([
    "token", "auth", "authorization", "bearer", "cookie", "cookies", "jwt", "pat", "dsn", "sessionid",
    "session_id", "otp",
])
_KEY_OF = frozenset([
    "api", "access", "private", "secret", "account", "auth", "encryption", "signing", "master", "storage",
    "subscription", "license", "service", "ssh", "client", "shared", "write", "admin", "deploy", "hmac",
    "webhook", "app", "consumer", "primary", "secondary", "endpoint", "project", "publishable",
])
#: What is a token to a language model is none to a server.
_ML = frozenset([
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "special", "additional", "stop", "start", "end", "image",
    "video", "audio", "next", "prev", "previous", "first", "last", "max", "min", "num", "new", "total", "n",
    "per", "type", "prompt", "completion", "input", "output", "vocab", "class", "word", "sub",
])
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_TELLS = re.compile(r"(?i)pass|pw|secret|token|key|auth|cred|bearer|cookie|jwt|pat|dsn|sess|otp|conn|sas")
#: A whole name with a telling part; anchored at its start and bounded, so that no input is slow.
_NAME = (
    r"(?:(?<![\w.\-])|(?<=\n-)|(?<=\A-))(?=[\w.\-]{0,100}?(?:(?i:pass|pwd|pw|secret|token|key|auth|cred|bearer|cookie|jwt|pat|dsn|sess|otp"
    r"|conn|sas)))(?P<name>[A-Za-z_][\w.\-]{0,100})"
)
_BESIDE = re.compile(
    _NAME + r"(?P<sep>[\"']?\]?[ \t]{0,8}(?::[ \t]{0,4}[\w.\[\], |]{1,60}=|:=|=>|==|!=|[:=])[\s(\\+\-]{0,40})"
    r"(?P<value>" + _QUOTED + r"(?:[\s+\\\-]{0,40}" + _QUOTED + r"){0,200}"
    r"|[\[({][\s+\-]{0,40}" + _QUOTED + r"(?:[\s+\\\-,:]{0,40}" + _QUOTED + r"){0,200})"
)
_PASSED = re.compile(
    r"\([\s+\-]{0,40}[\"']" + _NAME + r"[\"'](?P<sep>[\s+\-]{0,40},[\s+\-]{0,40})(?P<value>" + _QUOTED + ")"
)
_BARE = re.compile(
    _NAME + r"(?P<sep>[\"']?[ \t]{0,8}[:=][ \t]{0,8})(?P<value>[^\s\"'`,;(){}\[\]<>&|#]{1,2000})(?P<next>[(\[]?)"
)
_OPTION = re.compile(
    r"(?<![\w\-])(?P<dashes>--?)(?P<name>[A-Za-z][\w\-]{0,100})(?P<sep>=|[ \t]{1,8})(?P<value>" + _QUOTED
    + r"|[^\s\"'\-=][^\s]*)"
)
_STRING = re.compile(_QUOTED)
_NEAR = re.compile(r"(?i)key|token|secret|passw|pwd|auth|credential|bearer|private|signature|session")
_RANDOM = re.compile(r"(?<![\w«])[A-Za-z0-9+/_=\-]{20,}")
_PLAIN = frozenset([
    "str", "int", "float", "bool", "bytes", "none", "true", "false", "null", "any", "object", "optional",
    "secretstr", "string", "number",
])

_marked = set()  # type: set[str]


def secret(value):
    """Mark a value: from now on it is replaced in all that is recorded of runs. Returns it.

    Raises:
        ValueError: it is no text, or has fewer than four characters.
    """
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text.strip()) < SHORTEST:
        raise ValueError("a secret is a text of at least %d characters" % SHORTEST)
    _marked.add(text)
    return value


def secret_name(name):
    """How much a name looks like that of a secret: 0 not, 1 likely (``token``), 2 surely (``password``)."""
    words = [w.lower() for w in _WORDS.findall(name)]
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        if word in _STRONG or (word.endswith("s") and word[:-1] in _STRONG):
            return 2
        if (word in ("key", "keys") and before in _KEY_OF) or (word == "string" and before == "connection"):
            return 2
        if word in _WEAK and not (word == "token" and (before in _ML or _ends_otherwise(words[i + 1:]))):
            return 1
    return 0


def _ends_otherwise(after):
    return bool(after) and after[0] in ("id", "ids", "type", "types", "count", "counts", "pattern", "length", "len",
                                        "embedding", "embeddings", "classification", "index", "limit", "idx")


def telling(name, value):
    """Whether ``value`` (text), beside this name, is a secret."""
    sure = secret_name(name)
    text = value.strip()
    if not sure or not text or text == REDACTED or text.lower() in _PLAIN:
        return False
    if sure == 2:
        return True
    if len(text) < 4 or (text[0] in "<[" and text[-1] in ">]"):
        return False
    return not re.fullmatch(r"[a-z]{1,12}|[A-Za-z]+(?:[ ,.:]+[A-Za-z]+)*[.:!?]?\s*", text) or len(text) > 40


def values_of(mapping):
    """The texts among the values of a mapping whose keys look secret: a notebook's variables, an environment."""
    found = set()  # type: set[str]
    for name, value in list(mapping.items()):
        if not isinstance(name, str):
            continue
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str) or len(value) > 10000 or not telling(name, value):
            continue
        if not (value.startswith("/") and os.path.lexists(value)):  # PWD, SSH_AUTH_SOCK
            keep(found, value)
    return found


def keep(found, value):
    """Note a value that was found, if it is distinct enough to be looked for everywhere."""
    value = value.strip()
    if len(value) >= 12 or (len(value) >= 6 and re.search(r"[0-9]", value) and re.search(r"[^0-9.\-]", value)):
        found.add(value)


def marked():
    """Values that were marked, and those of secret-looking variables of this process's environment."""
    return _marked | values_of(os.environ)


def strike(text, values):
    """``text`` without the given values, also where they are escaped, quoted for an address or in base64."""
    forms = set()  # type: set[str]
    for value in values:
        if value == REDACTED:
            continue
        forms.update((value, quote(value, safe=""), quote(value), json.dumps(value)[1:-1], repr(value)[1:-1],
                      json.dumps(value, ensure_ascii=False)[1:-1]))
        raw = value.encode("utf-8", "replace")
        if len(raw) >= 8:
            # The whole value, also as the second half of ``user:password``: without the characters that depend on it.
            for lead in range(3):
                coded = base64.b64encode(b"\0" * lead + raw).decode().rstrip("=")
                forms.add(coded[(0, 2, 3)[lead]:-1 if (lead + len(raw)) % 3 else None])
        if "\n" in value:
            forms.update(line.strip() for line in value.splitlines() if len(line.strip()) >= 16)
    wanted = sorted((f for f in forms if len(f) >= SHORTEST and f in text), key=len, reverse=True)
    if not wanted:
        return text
    return re.sub("|".join(re.escape(f) for f in wanted), REDACTED, text)


def mask(text, found=None, code=False):
    """``text`` without what the rules take for a secret.

    Args:
        found: a set to which the values beside secret names are added, for :func:`strike` elsewhere.
        code: it is Python, where a bare word beside a name is a variable.
    """
    found = set() if found is None else found
    if _HINTS.search(text):
        for form in _FORMS:
            text = form.sub(_replace_form, text)
    if "://" in text:
        text = _DATABASE.sub(lambda m: _userinfo(m, found), text)
        text = _USERINFO.sub(lambda m: _userinfo(m, found), text)
    if _TELLS.search(text):
        text = _BESIDE.sub(lambda m: _beside(m, found), text)
        text = _PASSED.sub(lambda m: _beside(m, found), text)
        text = _OPTION.sub(lambda m: _option(m, found), text)
        text = _BARE.sub(lambda m: _bare(m, found, code), text)
    return "\n".join(_near(line) for line in text.split("\n")) if _NEAR.search(text) else text


def clean(text, found=None):
    """``text`` by the rules, then without marked values and those in ``found``, to which it adds; for short texts."""
    found = set() if found is None else found
    masked = mask(text, found)
    return strike(masked, found | marked())


def clean_arguments(arguments, found=None):
    """The arguments of a command, a list, with what follows a secret option replaced; ``found`` as in :func:`mask`."""
    found = set() if found is None else found
    cleaned = []
    follows = ""
    for word in arguments:
        if follows and not word.startswith("-") and telling(follows, word):
            keep(found, word)
            cleaned.append(REDACTED)
        else:
            cleaned.append(mask(word, found))
        follows = word.lstrip("-") if word.startswith("-") and "=" not in word else ""
    known = found | marked()
    return [strike(word, known) for word in cleaned]


def _replace_form(match):
    kept = match.groupdict().get("keep")
    return (kept or "") + REDACTED


def _userinfo(match, found):
    scheme, who = match.group(1), match.group(2)
    user, colon, password = who.partition(":")
    if not who or (not colon and "ssh" in scheme):
        return match.group(0)
    if not colon and re.fullmatch(r"git|[a-z][a-z0-9\-]{0,15}", user) and not scheme.startswith("http"):
        return match.group(0)
    keep(found, password or user)
    return "%s%s@" % (scheme, REDACTED)


def _contents(literal):
    return re.sub(r"^[rRbBuUfF]{0,2}(\"\"\"|'''|\"|')(.*)\1$", r"\2", literal, flags=re.S)


def _beside(match, found):
    name, value = match.group("name"), match.group("value")

    def one(literal):
        inner = _contents(literal.group(0))
        if not telling(name, inner):
            return literal.group(0)
        keep(found, inner)
        return '"%s"' % REDACTED

    if not secret_name(name):
        return match.group(0)
    begin = match.start("value") - match.start()
    whole = match.group(0)
    return whole[:begin] + _STRING.sub(one, value) + whole[begin + len(value):]


def _option(match, found):
    name, value = match.group("name"), match.group("value")
    if not telling(name, _contents(value)):
        return match.group(0)
    keep(found, _contents(value))
    return match.group("dashes") + name + match.group("sep") + REDACTED


def _bare(match, found, code):
    name, value, sep = match.group("name"), match.group("value"), match.group("sep")
    if not secret_name(name) or match.group("next") or value == REDACTED or value.lower() in _PLAIN:
        return match.group(0)
    at = match.start()
    line = match.string[match.string.rfind("\n", 0, at) + 1:at]
    before = line[-1:]
    # ``?token=…`` in an address, ``TOKEN=…`` in a file of settings or a shell line.
    shell = line.lstrip(" +-").startswith(("%", "!"))
    setting = sep == "=" and (before in ("?", "&") or (name.upper() == name and (shell or not code)))
    if not setting:
        if not telling(name, value) or (code and "#" not in line and not shell):
            return match.group(0)
        if code and re.fullmatch(r"[A-Za-z_.]+", value):
            return match.group(0)
        if secret_name(name) < 2 and re.fullmatch(r"[\d.]+", value):
            return match.group(0)
    keep(found, value)
    return name + sep + REDACTED


def _near(line):
    if len(line) > 20 and _NEAR.search(line):
        return _RANDOM.sub(lambda m: REDACTED if random_like(m.group(0)) else m.group(0), line)
    return line


def random_like(text):
    """Whether a word of at least 20 characters looks drawn at random: kinds of characters change often in it."""
    if re.fullmatch(r"[0-9a-fA-F]{32,}", text):
        return True
    digits = sum(c.isdigit() for c in text)
    if digits < 2 or digits == len(text):
        return False
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in text if c.isalnum()]
    changes = sum(kinds[i] != kinds[i - 1] for i in range(1, len(kinds)))
    return len(kinds) >= 16 and changes / len(kinds) > 0.3
