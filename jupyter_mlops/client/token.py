"""A bearer token of an endpoint, which is in no output."""

from __future__ import annotations

from . import render


class Token(str):
    """The token itself, as text; what is displayed of it is whose it is and how long it is good."""

    __slots__ = ("endpoint", "expires_at")

    endpoint: str
    expires_at: str

    def __new__(cls, endpoint: str, value: str, expires_at: str) -> Token:
        made = super().__new__(cls, value)
        made.endpoint, made.expires_at = endpoint, expires_at
        return made

    def text(self) -> str:
        """For people, without the token."""
        return (f"Bearer token of endpoint {self.endpoint}, good until {render.local_time(self.expires_at)}; "
                "it is not shown: str(token) is its text")

    def html(self) -> str:
        """The same as HTML."""
        return f'<div style="color:{render.TEXT}">{render.escape(self.text())}</div>'

    def __repr__(self) -> str:
        return f"<Token of endpoint {render.clean(self.endpoint)} until {render.local_time(self.expires_at)}>"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/plain": self.text(), "text/html": self.html()}
