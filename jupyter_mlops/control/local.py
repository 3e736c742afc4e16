"""Routes of the unix socket only: where we are, and tokens for local processes of this same user."""

from __future__ import annotations

import json
import os

from tornado import web

from ..core.errors import Forbidden, ParameterError
from .base import BaseHandler, peer_is_us


class LocalHandler(BaseHandler):
    """No token here: the 0600 socket in a 0700 folder and the peer's uid are the proof."""

    def identify(self) -> None:
        if not peer_is_us(self):
            raise Forbidden("this route is for local processes of the owner only")

    def json_body(self) -> dict:
        """The request's JSON object."""
        try:
            body = json.loads(self.request.body or b"{}")
        except ValueError:
            raise ParameterError("the body is not valid JSON") from None
        if not isinstance(body, dict):
            raise ParameterError("the body must be a JSON object")
        return body


class InfoHandler(LocalHandler):
    """Who answers."""

    def get(self) -> None:
        plane = self.plane
        self.write({"pid": os.getpid(), "port": plane.port, "url": plane.url, "version": plane.version,
                    "workspace": plane.name, "home": str(plane.home)})


class TokenHandler(LocalHandler):
    """A token for a process of this user."""

    async def post(self) -> None:
        body = self.json_body()
        pid, role, job = body.get("pid"), body.get("role") or "owner", body.get("job") or ""
        if not (pid is None or (isinstance(pid, int) and pid > 0)) or not all(isinstance(v, str) for v in (role, job)):
            raise ParameterError("pid must be a number, role and job text")
        token = await self.plane.issue_token(pid, role, job)
        self.set_status(201)
        self.write({"token": token, "url": self.plane.url})


class ShutdownHandler(LocalHandler):
    """End the control plane; jobs and endpoints go on."""

    def post(self) -> None:
        self.plane.request_exit()
        self.write({"stopping": True})


def handlers() -> list[tuple[str, type[web.RequestHandler]]]:
    """The socket-only routes."""
    return [(r"/local/info", InfoHandler), (r"/local/token", TokenHandler), (r"/local/shutdown", ShutdownHandler)]


