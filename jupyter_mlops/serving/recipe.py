"""The texts of a bundle: its launcher, how to serve it, its container."""

from __future__ import annotations

#: Ends at once under a Python that cannot run it, with a line that says so; then goes on in lib/.
SERVE = '''\
"""Serves this bundle: python serve.py --help"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

if sys.version_info[:2] < (3, 11):
    sys.exit("serve.py needs Python 3.11 or later; this is %d.%d" % sys.version_info[:2])
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(HERE, "lib"))

try:
    from jupyter_mlops.serving.bundle_server import main
except ImportError as error:
    sys.exit("serve.py: %s; the bundle's packages: python -m pip install -r %s"
             % (error, os.path.join(HERE, "requirements.txt")))

if __name__ == "__main__":
    sys.exit(main(HERE))
'''


def readme(about: dict[str, object], needed: list[str], keys: str) -> str:
    """README.md of a bundle.

    Args:
        about: its manifest.
        needed: environment variables that the model wants and that are not in it.
        keys: which keys open it, in one sentence.
    """
    endpoint, python = about["endpoint"], about["python"]
    model = f"{about['model']} version {about['version']}" if about["model"] else "a scoring script"
    variables = "".join(f"\nSet `{n}` before it starts: the model wants it, and it is not in here." for n in needed)
    return f"""\
# {endpoint}: {model}

    python{python} -m venv venv && venv/bin/pip install -r requirements.txt   # wheels/: --no-index --find-links wheels
    venv/bin/python serve.py --port 8080                                   # needs no network; Ctrl-C ends it
    curl http://127.0.0.1:8080/endpoints/{endpoint}/invocations -H "Authorization: Bearer $KEY" \\
         -H "Content-Type: application/json" -d '{{"inputs": …}}'            # …/endpoints/{endpoint}/docs says what
    venv/bin/python serve.py --record record.zip                           # also while it runs; then, at home:
    jupyter mlops import-record record.zip                                 # as often as you like: nothing is doubled

{keys}{variables}

`serve.py --address 0.0.0.0 --certfile cert.pem --keyfile key.pem` serves others, with TLS. `serve.py --verify` tells
whether a file has changed since it was made; it does not start then. What it captures and counts is in `state/`, or in
the folder of `--state`: keep that. As a container: `buildah bud -t {endpoint} .`, then
`podman run -p 8080:8080 -v {endpoint}:/bundle/state {endpoint} --plain`, or `--certfile … --keyfile …` in place of
`--plain`, which is for a network where others cannot listen.
"""


def containerfile(about: dict[str, object]) -> str:
    """The recipe of an OCI image."""
    return f"""\
# Build in this folder: buildah bud -t {about['endpoint']} .   (or docker build -f Containerfile …)
# With wheels/ beside it the build needs no index, only the base image.
FROM docker.io/library/python:{about['python']}-slim

RUN useradd --create-home --uid 10001 serve && mkdir -p /bundle/state && chown serve /bundle/state
WORKDIR /bundle
COPY . /bundle/
RUN if [ -d wheels ]; then pip install --no-cache-dir --no-index --find-links wheels -r requirements.txt; \\
    else pip install --no-cache-dir -r requirements.txt; fi && rm -rf wheels && chmod -R a+rX /bundle
USER serve
VOLUME /bundle/state
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "serve.py", "--health"]
# Say how callers reach it: --certfile and --keyfile, or --plain.
ENTRYPOINT ["python", "serve.py", "--address", "0.0.0.0", "--port", "8080"]
"""


#: What does not belong into an image.
IGNORE = "state\nvenv\n**/__pycache__\n"
