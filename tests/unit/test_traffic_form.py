"""The form that moves traffic: sliders that add up to 100, and what its buttons do."""

from __future__ import annotations

import builtins
import itertools
import subprocess
import sys

import pytest

from jupyter_mlops.client.serving import Deployment, Endpoint
from jupyter_mlops.client.traffic import Traffic
from jupyter_mlops.core.errors import Conflict, Refused
from jupyter_mlops.widgets.base import rebalanced


def test_shares_always_add_up() -> None:
    for start in ({"a": 100, "b": 0, "c": 0}, {"a": 33, "b": 33, "c": 34}, {"a": 0, "b": 0, "c": 0}):
        for name, percent in itertools.product(start, (0, 1, 33, 50, 99, 100, 140, -3)):
            made = rebalanced(start, name, percent)
            assert sum(made.values()) == 100 and made[name] == max(0, min(100, percent)), (start, name, percent, made)
            assert all(0 <= v <= 100 for v in made.values())
    assert rebalanced({"a": 60, "b": 30, "c": 10}, "c", 55) == {"a": 30, "b": 15, "c": 55}
    assert rebalanced({"a": 3}, "a", 5) == {"a": 100}


class Plane:
    """An endpoint in memory, in the place of a control plane: what the form sends is what it shows next."""

    def __init__(self) -> None:
        self.shares = {"v1": 90, "v2": 10}
        self.canary: dict = {}
        self.calls: list = []

    def traffic(self, name: str, detailed: bool = False) -> Traffic:
        data = {"name": name, "spec": {"traffic": self.shares}, "status": {
            "phase": "Ready", "traffic": dict(self.shares), "canary": self.canary, "previous_traffic": {"v1": 100}}}
        behind = [Deployment(self, {"name": d, "parent": name, "spec": {"model": "m/1"}, "status": {"phase": "Ready"},
                                    "created_at": d}) for d in self.shares]
        return Traffic(self, Endpoint(self, data), behind, {}, detailed)

    def route(self, name: str, shares: dict) -> None:
        self.calls.append(("route", dict(shares)))
        if shares["v1"] == 7:
            raise Conflict("somebody <b>else</b> was faster", "look again")
        self.shares = dict(shares)

    def promote(self, name: str) -> None:
        self.calls.append(("promote",))
        self.shares, self.canary = {"v1": 0, "v2": 100}, {"phase": "Promoted", "deployment": "v2"}

    def rollback(self, name: str) -> None:
        self.calls.append(("rollback",))
        self.shares = {"v1": 100, "v2": 0}


@pytest.fixture
def form():
    pytest.importorskip("ipywidgets")
    from jupyter_mlops.widgets.traffic import TrafficForm

    made = TrafficForm(Plane(), "digits")
    yield made
    made.close()


def test_moving_one_slider_moves_the_others_and_nothing_else(form) -> None:
    assert form.shares == {"v1": 90, "v2": 10} and form.apply_button.disabled and form.promote_button.disabled
    form.sliders["v2"].value = 40
    assert form.shares == {"v1": 60, "v2": 40} and not form.apply_button.disabled
    assert "not in force yet" in form.message.value and not form._client.calls
    form.refresh()  # new figures leave alone what is being moved
    assert form.shares == {"v1": 60, "v2": 40}
    form.apply_button.click()
    assert form._client.calls == [("route", {"v1": 60, "v2": 40})] and form.apply_button.disabled
    assert "v1 60 %, v2 40 %" in form.figures.value
    form.sliders["v1"].value = 0
    form.reset_button.click()
    assert form.shares == {"v1": 60, "v2": 40} and form.reset_button.disabled


def test_a_canary_is_promoted_and_traffic_taken_back(form) -> None:
    form._client.canary = {"phase": "Running", "deployment": "v2", "percent": 10}
    form.refresh()
    assert not form.promote_button.disabled
    form.promote_button.click()
    assert form.shares == {"v1": 0, "v2": 100} and form.promote_button.disabled
    form.rollback_button.click()
    assert form.shares == {"v1": 100, "v2": 0} and form._client.calls == [("promote",), ("rollback",)]


def test_a_refusal_is_shown_in_the_form(form) -> None:
    form.sliders["v1"].value = 7
    form.apply_button.click()
    assert "&lt;b&gt;else" in form.message.value and "look again" in form.message.value
    assert form.shares == {"v1": 7, "v2": 93}  # what was moved is not lost


def test_it_has_text_and_html_beside(form) -> None:
    made = form._repr_mimebundle_()
    assert "v1" in made["text/plain"] and "<svg" in made["text/html"] and "<script" not in made["text/html"]
    assert repr(form) == "<TrafficForm digits v1=90% v2=10%>"
    form._client.shares = {"v1": 50, "v2": 25, "v3": 25}
    form.refresh()
    assert list(form.sliders) == ["v1", "v2", "v3"]


def test_without_ipywidgets_it_says_what_to_install(monkeypatch) -> None:
    real = builtins.__import__
    monkeypatch.setattr("jupyter_mlops.widgets.base.import_module", lambda name: real("no_such_module_at_all"))
    from jupyter_mlops.widgets.traffic import TrafficForm

    with pytest.raises(Refused, match="ipywidgets") as raised:
        TrafficForm(Plane(), "digits")
    assert "jupyter-mlops[widgets]" in raised.value.hint


def test_nothing_loads_ipywidgets_before_a_form_is_made() -> None:
    code = ("import sys, jupyter_mlops.widgets.traffic, jupyter_mlops.client.traffic, jupyter_mlops.magics.traffic\n"
            "print('ipywidgets' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
