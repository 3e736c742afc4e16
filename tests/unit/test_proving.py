"""The proof of a new deployment, whatever the gateway answers to it."""

from __future__ import annotations

import asyncio
import json

import pytest

from jupyter_mlops.core.controllers import proving
from jupyter_mlops.core.controllers.proving import Subject, prove
from jupyter_mlops.core.errors import BackendTimeout, Unavailable
from jupyter_mlops.core.resources import ProofSpec

REQUEST = {"inputs": [[1.0], [2.0]]}
EQUAL = ProofSpec(request=REQUEST, expected=[1.0, 2.0], packages={"numpy": "2.4"})


class Gateway:
    """Answers one after the other; the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list = []

    async def __call__(self, endpoint, body, content_type, timeout, deployment):
        self.asked.append((endpoint, json.loads(body), deployment))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        status, value = answer
        return status, value if isinstance(value, bytes) else json.dumps(value).encode(), "application/json"


def subject(sample=EQUAL, example=None, packages=None, gone="") -> Subject:
    async def alive():
        return gone

    return Subject("digits", "green", sample, example, packages or {"numpy": "2.4"}, 30.0, alive)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(proving, "PATIENCE", 0.3)
    monkeypatch.setattr(proving, "_PAUSE", 0.01)


async def test_equal_answers_pass():
    ask = Gateway((200, {"predictions": [1.0, 2.000001]}))
    outcome = await prove(subject(), ask)
    assert (outcome.passed, outcome.kind, outcome.rows) == (True, "equal", 2)
    assert outcome.message == "its answer to 2 rows is the notebook's"
    assert outcome.max_difference == pytest.approx(1e-6, rel=1e-3) and outcome.took_ms is not None
    assert ask.asked == [("digits", REQUEST, "green")]


async def test_another_answer_fails_and_names_the_packages():
    found = await prove(subject(packages={"numpy": "1.26"}), Gateway((200, {"predictions": [1.0, 3.0]})))
    assert found.passed is False and found.kind == "equal"
    assert "row 1: expected 2.0, got 3.0" in found.message
    assert "numpy 2.4 in the notebook, 1.26 in the deployment" in found.message
    assert [p.model_dump() for p in found.packages] == [{"name": "numpy", "kernel": "2.4", "deployment": "1.26"}]


async def test_other_packages_alone_are_told_and_pass():
    found = await prove(subject(packages={"numpy": "1.26"}), Gateway((200, {"predictions": [1.0, 2.0]})))
    assert found.passed and found.message.endswith("numpy 2.4 in the notebook, 1.26 in the deployment")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((424, {"message": "ValueError: no"}), "the model raised on the sample: ValueError: no"),
        ((400, {"message": "column 'x' is missing"}), "the sample was refused: column 'x' is missing"),
        ((504, {}), "did not answer the sample within 30 s"),
        (BackendTimeout("late"), "did not answer the sample within 30 s"),
        ((200, b"<html>"), "its answer is not JSON"),
        ((500, b"\xff\n\nbroken"), "refused"),
    ],
)
async def test_what_goes_wrong_is_told_in_one_line(answer, words):
    found = await prove(subject(), Gateway(answer))
    assert found.passed is False and words in found.message and "\n" not in found.message


async def test_starting_is_waited_for():
    ask = Gateway((404, {}), (503, {}), (429, {}), Unavailable("no gateway"), (200, {"predictions": [1.0, 2.0]}))
    assert (await prove(subject(), ask)).passed and len(ask.asked) == 5


async def test_without_a_gateway_nothing_is_decided():
    for answer in (Unavailable("no gateway"), (503, {"message": "the deployment does not answer"})):
        with pytest.raises(Unavailable):
            await prove(subject(), Gateway(answer))


async def test_a_scorer_that_the_sample_kills_has_failed():
    found = await prove(subject(gone="the scorer ended by SIGSEGV"), Gateway((503, {})))
    assert found.passed is False and "ended while it answered the sample: the scorer ended by SIGSEGV" in found.message


async def test_nobody_waits_for_a_scorer_that_has_ended(monkeypatch):
    monkeypatch.setattr(proving, "_LOOK", 0.01)

    async def never(*_):
        await asyncio.sleep(60)

    found = await asyncio.wait_for(prove(subject(gone="the scorer ended"), never), 5)
    assert found.passed is False and "ended while it answered" in found.message


async def test_without_a_sample_the_models_own_example_is_tried():
    ask = Gateway((200, {"predictions": [1, 2, 3]}))
    found = await prove(subject(None, json.dumps(REQUEST)), ask)
    assert (found.passed, found.kind, found.rows) == (True, "answered", 3)
    assert ask.asked[0][1] == REQUEST
    failed = await prove(subject(None, json.dumps(REQUEST)), Gateway((424, {"message": "KeyError: 'x'"})))
    assert failed.passed is False
    unfit = await prove(subject(None, json.dumps(REQUEST)), Gateway((400, {"message": "column 'y' is missing"})))
    assert (unfit.passed, unfit.kind) == (None, "none") and "column 'y' is missing" in unfit.message


async def test_nothing_to_ask():
    ask = Gateway((500, {}))
    assert "no sample was given" in (await prove(subject(None), ask)).message
    assert "no proof was asked for" in (await prove(subject(ProofSpec(), json.dumps(REQUEST)), ask)).message
    assert ask.asked == []


async def test_a_sample_without_an_expected_answer():
    found = await prove(subject(ProofSpec(request=REQUEST)), Gateway((200, {"predictions": "fine"})))
    assert (found.passed, found.kind, found.message) == (True, "answered", "it answered the sample")
