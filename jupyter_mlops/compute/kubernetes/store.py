"""An object store that large files of jobs go through, in place of the cluster's API.

Pods get signed addresses of single objects, never credentials. Objects are pieces on their way: the control plane takes
what a pod has put there, and removes it. What nobody took is removed with the attempt, or hours later with another one.
"""

from __future__ import annotations

import base64
import logging
import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ...core.errors import BackendUnreachable, MlopsError, Refused
from ...core.resources.compute import StoreOptions
from ...kube.client import Kube

log = logging.getLogger(__name__)

#: Seconds for which a signed address is good.
GOOD = 3600
#: Bytes from which on a file goes through the store, and those of one piece of it.
LEAST, PIECE = 8 << 20, 8 << 20
#: Seconds for which it is not tried again after it failed here.
REST = 60.0
#: Age in seconds of objects that nobody will ask for any more.
OLD = 2 * GOOD
#: Keys of a Secret, and of the environment.
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def place_of(job: str, attempt: int) -> str:
    """Where objects of an attempt lie."""
    return f"{job}/{attempt}"


class ObjectStore:
    """The store of one compute, for one workspace. All calls are blocking, and may be made from any thread.

    Raises:
        Refused: it cannot be used as it is configured.
        BackendUnreachable: it does not answer, or does not let us.
    """

    def __init__(self, kube: Kube, options: StoreOptions, workspace: str) -> None:
        self.kube = kube
        self.options = options
        self.bucket, _, prefix = options.url.removeprefix("s3://").partition("/")
        self._root = "/".join(part for part in (prefix.strip("/"), workspace) if part) + "/"
        self._lock = threading.Lock()
        self._clients: tuple[Any, Any] | None = None
        self._rests = 0.0
        #: Why it is not used now, in one line; empty when it is. And what a pod told last of why it does not.
        self.trouble = self.pods = ""

    # -- whether it is used

    @property
    def route(self) -> str:
        """The way of files through it, in words."""
        return f"through {self.options.url}"

    @property
    def usable(self) -> bool:
        """Whether to try it."""
        return time.monotonic() >= self._rests

    def took(self, trouble: str) -> None:
        """A pod has put something there, or could not, and why."""
        self.pods = trouble
        if not trouble:
            self.trouble = ""

    def failed(self, error: Exception) -> None:
        """It did not work from here: for a while all goes over the cluster's API."""
        self.trouble = str(getattr(error, "message", error))[:300]
        self._rests = time.monotonic() + REST
        self._clients = None  # perhaps other credentials are there by then
        log.warning("%s: %s", self.options.url, self.trouble)

    # -- objects

    def key(self, attempt: str, name: str = "") -> str:
        """A key for an object of an attempt; without a name one that is nobody else's."""
        return f"{self._root}{attempt}/{name or secrets.token_hex(16)}"

    def put_address(self, key: str) -> str:
        """A signed address under which a pod may put an object."""
        return self._sign("put_object", key)

    def get_address(self, key: str) -> str:
        """A signed address under which a pod may read an object."""
        return self._sign("get_object", key)

    def _sign(self, what: str, key: str) -> str:
        _, pods = self._connect()
        return str(pods.generate_presigned_url(what, {"Bucket": self.bucket, "Key": key}, GOOD))

    def take(self, key: str, size: int) -> bytes:
        """An object of so many bytes."""
        answer = self._ask("get_object", Key=key)
        with answer["Body"] as body:
            data = bytes(body.read(size + 1))
        if len(data) != size:
            raise BackendUnreachable(f"{self.options.url} has a piece of another size than was put there")
        return data

    def put(self, key: str, content: bytes | Path) -> None:
        """Put an object there."""
        if isinstance(content, bytes):
            self._ask("put_object", Key=key, Body=content)
            return
        with content.open("rb") as f:
            self._ask("upload_fileobj", Fileobj=f, Key=key)

    def there(self, key: str) -> bool:
        """Whether an object is there."""
        try:
            self._ask("head_object", Key=key)
        except BackendUnreachable as error:
            if error.detail == 404:
                return False
            raise
        return True

    def remove(self, *keys: str) -> None:
        """Remove objects, there or not."""
        for begin in range(0, len(keys), 1000):
            some = [{"Key": key} for key in keys[begin:begin + 1000]]
            self._ask("delete_objects", Delete={"Objects": some, "Quiet": True})

    def clear(self, attempt: str) -> None:
        """Remove what is left of an attempt, and what nobody will ask for any more."""
        before = datetime.now(UTC) - timedelta(seconds=OLD)
        token: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", Prefix=self._root, **token)
            self.remove(*(found["Key"] for found in page.get("Contents") or []
                          if found["Key"].startswith(f"{self._root}{attempt}/") or found["LastModified"] < before))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def check(self) -> str:
        """Put an object there, read it under a signed address of pods' kind, and remove it.

        Returns:
            why that cannot be done, in one line; empty when it can
        """
        key = self.key("check")
        try:
            self.put(key, b"jupyter-mlops")
            if self.take(key, 13) != b"jupyter-mlops":
                return f"{self.options.url} gives something else than was put there"
            self.get_address(key)
            self.remove(key)
        except MlopsError as error:
            return error.message
        return ""

    # -- the library

    def _ask(self, what: str, **arguments: Any) -> Any:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        client, _ = self._connect()
        try:
            return getattr(client, what)(Bucket=self.bucket, **arguments)
        except ClientError as error:
            about = error.response
            code = str((about.get("Error") or {}).get("Code") or "")
            status = (about.get("ResponseMetadata") or {}).get("HTTPStatusCode")
            raise BackendUnreachable(f"{self.options.url} answers {status} {code}", _hint(status),
                                     detail=status) from error
        except (BotoCoreError, Boto3Error) as error:
            raise BackendUnreachable(f"{self.options.url} does not answer: {' '.join(str(error).split())[:200]}",
                                     "check training.store") from error

    def _connect(self) -> tuple[Any, Any]:
        """Clients for what we do, and for addresses as pods see them."""
        with self._lock:
            if self._clients is None:
                self._clients = self._client(self.options.endpoint_url), self._client(
                    self.options.pod_endpoint_url or self.options.endpoint_url)
            return self._clients

    def _client(self, endpoint: str) -> Any:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise Refused("the control plane lacks boto3, which training.store needs",
                          "pip install 'jupyter-mlops[s3]'") from None
        config = Config(
            signature_version="s3v4", connect_timeout=5, read_timeout=30, retries={"max_attempts": 3},
            max_pool_connections=32,
            # What others than AWS do not know; pieces carry a checksum of ours.
            request_checksum_calculation="when_required", response_checksum_validation="when_required")
        try:
            return boto3.session.Session(**self._credentials()).client(
                "s3", endpoint_url=endpoint or None, config=config,
                **({"region_name": self.options.region} if self.options.region else {}))
        except (BotoCoreError, ValueError) as error:
            raise Refused(f"training.store cannot be used: {error}", "correct it in the compute") from error

    def _credentials(self) -> dict[str, str]:
        """Those of the Secret; without one, boto3 finds them where the control plane has them."""
        name = self.options.secret
        if not name:
            return {}
        found = self.kube.get("Secret", name)
        if found is None:
            raise Refused(f"there is no Secret '{name}', which training.store names",
                          f"make it in the namespace '{self.kube.namespace}'")
        values = {k: base64.b64decode(v).decode().strip() for k, v in (found.get("data") or {}).items() if k in _KEYS}
        if not values.get(_KEYS[0]) or not values.get(_KEYS[1]):
            raise Refused(f"the Secret '{name}' lacks {_KEYS[0]} or {_KEYS[1]}", "training.store names it")
        return {key.lower(): value for key, value in values.items()}


def _hint(status: Any) -> str:
    if status in (401, 403):
        return "the credentials of training.store need to put, get, list and delete objects there"
    return "check the bucket of training.store" if status == 404 else "check training.store"
