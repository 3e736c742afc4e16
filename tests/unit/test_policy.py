"""The policy point."""

import pytest

from jupyter_mlops.control.operations import TABLE
from jupyter_mlops.control.routes import jobs  # noqa: F401  (registers the operations)
from jupyter_mlops.core import policy
from jupyter_mlops.core.errors import Forbidden
from jupyter_mlops.core.identity import Identity

OWNER, READER = Identity("ann", "owner"), Identity("bob", "reader")
JOB = Identity("ann", "job", job="mine", run_id="r1")


def test_owner_may_all():
    assert all(policy.allowed(OWNER, op.action) for op in TABLE)


def test_reader_may_read_only():
    for op in TABLE:
        expected = op.action.endswith("/read") and op.action not in ("audit/read", "endpoints/data/read")
        assert policy.allowed(READER, op.action) is expected, op.action


def test_reader_never_sees_secrets():
    assert not policy.allowed(READER, "endpoints/secrets/read")


def test_reader_sees_how_much_was_captured_but_not_what():
    assert policy.allowed(READER, "endpoints/read") and not policy.allowed(READER, "endpoints/data/read")


@pytest.mark.parametrize(
    "action", ["jobs/write", "jobs/delete", "endpoints/write", "endpoints/invoke", "endpoints/read", "audit/read",
               "workspaces/write", "runs/delete", "models/delete", "computes/write", "endpoints/secrets/write"]
)
def test_job_may_not(action):
    assert not policy.allowed(JOB, action)


def test_job_sees_itself_only():
    assert policy.allowed(JOB, "jobs/read", "mine")
    assert not policy.allowed(JOB, "jobs/read", "other")


def test_unknown_role_may_nothing():
    with pytest.raises(Forbidden, match="may not"):
        policy.require(Identity("eve", "nobody"), "jobs/read")
