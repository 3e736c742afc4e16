"""What pip says, in other words: how far it is, why it failed, and none of the passwords that it was given."""

import configparser
import netrc
import os
import re
import sys

from . import software

_STEP = re.compile(r"\s*(Collecting|Downloading|Building wheel for|Installing collected packages)[: ]+(\S+)?(.*)")


def name_of(requirement):
    """The name of the package that a requirement is about."""
    return software.normal(re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0])


def progress(line):
    """What goes on, by a line of pip; empty when it says nothing of it."""
    match = _STEP.match(line)
    if not match:
        return ""
    what, name, rest = match.groups()
    if what == "Downloading":
        size = re.search(r"\(([^()]+)\)\s*$", rest)
        return "downloading %s%s" % (re.split(r"-\d", (name or "").rpartition("/")[2])[0],
                                     ", " + size.group(1) if size else "")
    if what == "Collecting":
        return "looking for " + name_of(name or "")
    return "building " + (name or "") if what.startswith("Building") else "unpacking"


#: What pip says → what it means; ``%s`` is what was matched.
_CAUSES = (
    (r"No space left on device", "there is no room left for them"),
    (r"THESE PACKAGES DO NOT MATCH THE HASHES", "a package has another hash than was asked for"),
    (r"CERTIFICATE_VERIFY_FAILED", "the certificate of the package index is not trusted; training.pip.secret may hold "
                                   "its ca.crt"),
    (r"(?:401|403) (?:Client )?Error", "the package index wants other credentials: training.pip.secret has them"),
    (r"User for \S+", "the package index wants credentials: training.pip.secret can have them"),
    (r"Cannot install (.+?) because these package versions have conflicting dependencies", "%s do not go together"),
    (r"ERROR: Cannot install (.+?) because", "%s cannot be installed together"),
    (r"(?:Failed building wheel for|Could not build wheels for) ([^\s,]+)", "%s could not be built; is there a wheel "
                                                                            "of it for this Python?"),
    (r"requires a different Python: (.+)", "another Python is wanted: %s"),
    (r"No module named ensurepip", "the image has no pip"),
)


def explain(lines, code):
    """Why pip failed, in one line, from the end of what it said."""
    text = "\n".join(lines)
    away = re.search(r"connection broken by|Failed to establish a new connection|Temporary failure in name resolution|"
                     r"Max retries exceeded|Read timed out|ConnectTimeout", text)
    missing = re.search(r"ERROR: No matching distribution found for (.+)", text)
    why = ""
    for pattern, words in _CAUSES:
        match = re.search(pattern, text)
        if match:
            why = words % match.group(1).strip() if "%s" in words else words
            break
    if not why and away:
        why = "the package index does not answer" + (", so %s was not found" % missing.group(1) if missing else "")
    if not why and missing:
        some = re.search(r"from versions: (.+)\)", text)
        known = [v.strip() for v in some.group(1).split(",")] if some else []
        have = "; there is %s" % ", ".join(known[-4:]) if known and known != ["none"] else ""
        why = "the package index has no %s for Python %d.%d%s" % (missing.group(1).strip(), *sys.version_info[:2], have)
    if not why:
        errors = [line for line in lines if line.lstrip().startswith("ERROR:")] or [i for i in lines if i.strip()]
        why = errors[-1].strip()[:500] if errors else "pip ended with code %d" % code
    return "packages could not be installed: " + why[:1000]


def secrets(folder):
    """Passwords in the operator's files, which nobody may read in a log."""
    found = set()  # type: set[str]
    try:
        for _, account, password in netrc.netrc(os.path.join(folder, "netrc")).hosts.values():
            found.update(word for word in (account, password) if word)
    except (OSError, ValueError, netrc.NetrcParseError):
        pass
    parser = configparser.RawConfigParser()
    try:
        parser.read(os.path.join(folder, "pip.conf"), encoding="utf-8")
        values = " ".join(value for name in parser.sections() for _, value in parser.items(name))
        for user in re.findall(r"://([^/@\s]+)@", values):
            found.add(user.partition(":")[2] or user)  # a token alone is its own user
    except (configparser.Error, ValueError):
        pass
    return sorted((s for s in found if len(s) > 2), key=len, reverse=True)


def blot(line, hidden):
    """A line without passwords."""
    line = re.sub(r"://[^/@\s]*@", "://***@", line)
    for secret in hidden:
        line = line.replace(secret, "***")
    return line
