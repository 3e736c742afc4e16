"""A form for moving an endpoint's traffic: sliders that add up to 100, buttons, live figures."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..client import render
from ..core.errors import MlopsError
from .base import rebalanced, widgets

if TYPE_CHECKING:
    from ..client.sync import Client
    from ..client.traffic import Traffic

#: Seconds between looks at the figures.
PERIOD = 2.0


class TrafficForm:
    """Sliders for the shares of one endpoint. Nothing changes until *Apply*; figures follow by themselves.

    It is drawn by ipywidgets where the front end has them; what is saved with the notebook is its text and HTML.

    Raises:
        Refused: ipywidgets is not installed.
    """

    def __init__(self, client: Client, endpoint: str) -> None:
        w = widgets()
        self._client, self._endpoint, self._widgets = client, endpoint, w
        self.view: Traffic = client.traffic(endpoint)
        self.sliders: dict[str, Any] = {}
        self._moving = False
        self._dirty = False
        self._task: Any = None
        self.figures = w.HTML()
        self.message = w.HTML()
        self.apply_button = w.Button(description="Apply", button_style="primary", disabled=True,
                                     tooltip="let the shares of the sliders be in force")
        self.reset_button = w.Button(description="Reset", disabled=True, tooltip="back to what is in force")
        self.promote_button = w.Button(description="Promote", tooltip="end the canary: it takes all")
        self.rollback_button = w.Button(description="Roll back", tooltip="back to the traffic before")
        for button, action in ((self.apply_button, self._apply), (self.reset_button, self._reset),
                               (self.promote_button, self._promote), (self.rollback_button, self._rollback)):
            button.on_click(lambda _, act=action: self._safely(act))
        self._rows = w.VBox()
        self.box = w.VBox([
            self._rows,
            w.HBox([self.apply_button, self.reset_button, self.promote_button, self.rollback_button]),
            self.message, self.figures,
        ])
        self._draw()

    # -- actions -----------------------------------------------------------------------------------------------------

    @property
    def shares(self) -> dict[str, int]:
        """What the sliders say."""
        return {name: slider.value for name, slider in self.sliders.items()}

    def _apply(self) -> None:
        self._client.route(self._endpoint, self.shares)
        self._say("in force")
        self.refresh(anew=True)

    def _reset(self) -> None:
        self._say("")
        self.refresh(anew=True)

    def _promote(self) -> None:
        self._client.promote(self._endpoint)
        self._say("promoted")
        self.refresh(anew=True)

    def _rollback(self) -> None:
        self._client.rollback(self._endpoint)
        self._say("rolled back")
        self.refresh(anew=True)

    def _safely(self, action: Any) -> None:
        """An exception in a button's callback would end in a log that nobody sees."""
        try:
            action()
        except MlopsError as error:
            hint = f' <span style="color:{render.MUTED}">{render.escape(error.hint)}</span>' if error.hint else ""
            self.message.value = f'<span style="color:{render.BAD}">{render.escape(error.message)}</span>{hint}'

    def _say(self, text: str) -> None:
        self.message.value = f'<span style="color:{render.MUTED}">{render.escape(text)}</span>'

    # -- drawing -----------------------------------------------------------------------------------------------------

    def refresh(self, anew: bool = False) -> None:
        """Ask for shares and figures; sliders that were moved stay where they are unless ``anew``."""
        self.view.refresh()
        if anew:
            self._dirty = False
        self._draw()

    def _draw(self) -> None:
        names = [d.name for d in self.view.deployments]
        if list(self.sliders) != names:
            self._dirty = False
            self.sliders = {name: self._slider(name) for name in names}
            self._rows.children = tuple(self.sliders.values())
        if not self._dirty:
            self._set({name: self.view.shares.get(name, 0) for name in names})
        running = self.view.endpoint.canary.get("phase") == "Running"
        self.promote_button.disabled = not running
        self.rollback_button.disabled = not (running or self.view.endpoint.previous)
        self._mark()
        self.figures.value = self.view.html()

    def _slider(self, name: str) -> Any:
        slider = self._widgets.IntSlider(
            min=0, max=100, description=name, readout_format="d", continuous_update=True,
            style={"description_width": "120px"}, layout={"width": "420px"},
        )
        slider.observe(lambda change, moved=name: self._moved(moved, change["new"]), names="value")
        return slider

    def _set(self, shares: dict[str, int]) -> None:
        self._moving = True
        try:
            for name, value in shares.items():
                self.sliders[name].value = value
        finally:
            self._moving = False

    def _moved(self, name: str, percent: int) -> None:
        if self._moving:
            return
        before = {**self.shares, name: 0}
        self._dirty = True
        self._set(rebalanced(before, name, percent))
        self._mark()

    def _mark(self) -> None:
        differs = self.shares != {name: self.view.shares.get(name, 0) for name in self.sliders}
        self._dirty = self._dirty and differs
        self.apply_button.disabled = self.reset_button.disabled = not differs
        if differs:
            self._say("not in force yet: Apply")
        elif "not in force" in self.message.value:
            self._say("")

    # -- forms -------------------------------------------------------------------------------------------------------

    def text(self) -> str:
        """Shares and figures for a terminal."""
        return self.view.text()

    def html(self) -> str:
        """Shares and figures as self-contained HTML."""
        return self.view.html()

    def to_dict(self) -> dict[str, Any]:
        """JSON of the view."""
        return self.view.to_dict()

    def __repr__(self) -> str:
        return f"<TrafficForm {render.clean(self.view._line())}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        self.follow()
        try:
            drawn = self.box._repr_mimebundle_()
        except Exception:  # no kernel: there is nothing that could draw it
            drawn = {}
        live = drawn.get("application/vnd.jupyter.widget-view+json")
        made: dict[str, Any] = {"text/plain": self.text(), "text/html": self.html()}
        return {**made, "application/vnd.jupyter.widget-view+json": live} if live else made

    def follow(self) -> None:
        """Keep the figures fresh while the kernel lives and the form is there; does nothing without an event loop."""
        if self._task is not None and not self._task.done():
            return
        try:
            self._task = asyncio.get_running_loop().create_task(self._follow())
        except RuntimeError:
            self._task = None

    async def _follow(self) -> None:
        """Look again now and then; the blocking client must not hold the kernel's loop up."""
        while self.box.comm is not None:
            await asyncio.sleep(PERIOD)
            try:
                await asyncio.to_thread(self.view.refresh)
            except MlopsError as error:
                if error.status == 404:
                    self._say("the endpoint is gone")
                    return
                continue
            self._draw()

    def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
        self.box.close()
