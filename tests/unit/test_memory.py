"""Kills for lack of memory: the kernel's counts in both versions of control groups, and how they are told."""

from __future__ import annotations

import pytest

from jupyter_mlops.runtime import jobfolder, memory, verdict


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up /sys/fs/cgroup and /proc; ``put(path, text)`` writes a file there."""
    monkeypatch.setattr(memory, "CGROUPS", str(tmp_path / "cgroup"))
    monkeypatch.setattr(memory, "PROC", str(tmp_path / "proc"))

    def put(path: str, text: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    put("proc/vmstat", "nr_free_pages 5\noom_kill 7\n")
    return put


def test_version_2_with_the_groups_around(machine):
    machine("proc/self/cgroup", "0::/user/job\n")
    machine("cgroup/user/job/memory.events", "low 0\noom 3\noom_kill 1\noom_group_kill 0\n")
    machine("cgroup/user/memory.events", "oom_kill 4\n")
    assert memory.kills() == 5
    machine("cgroup/user/job/memory.max", "max\n")
    machine("cgroup/user/memory.max", "4000000\n")
    assert memory.limit() == 4_000_000


def test_version_1(machine):
    machine("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/process/x\n0::/\n")
    machine("cgroup/memory/process/x/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    machine("cgroup/memory/process/x/memory.limit_in_bytes", "5000000\n")
    assert (memory.kills(), memory.limit()) == (2, 5_000_000)


def test_a_container_sees_its_group_as_the_root(machine):
    machine("proc/self/cgroup", "0::/\n")
    machine("cgroup/memory.events", "oom_kill 3\n")
    assert memory.kills() == 3


def test_without_readable_groups_the_machine_tells(machine):
    machine("proc/self/cgroup", "0::/\n")
    assert memory.kills() == 7
    machine("proc/vmstat", "nothing here\n")
    assert memory.kills() is None and memory.limit() > 0


@pytest.mark.parametrize(("size", "killed", "text"), [
    (1, True, "killed by the kernel for lack of memory (out of memory): rank 1 used 3.1 GB of 4.0 GB"),
    (2, True, "rank 1 was killed by the kernel for lack of memory (out of memory): rank 1 used 3.1 GB of 4.0 GB"),
    (1, False, "killed by signal 9 (SIGKILL), memory 3.1 GB of 4.0 GB"),
    (2, False, "rank 1 was killed by signal 9 (SIGKILL), memory 3.1 GB of 4.0 GB"),
])
def test_how_it_is_told(tmp_path, monkeypatch, size, killed, text):
    monkeypatch.setattr(memory, "limit", lambda: 4_000_000_000)
    rank = verdict.Rank(1)
    rank.pid, rank.exit_code, rank.peak = 5, -9, 3_100_000_000
    attempt = jobfolder.JobFolder(tmp_path).attempt(1)
    assert verdict.explain(attempt, rank, size, killed) == text
    rank.peak = 0
    assert ("had too little" in verdict.explain(attempt, rank, size, killed)) == killed


def test_a_worker_that_was_killed_is_told_with_the_rank_that_failed_for_it(tmp_path):
    rank = verdict.Rank(0)
    rank.pid, rank.exit_code, rank.error = 5, 1, "RuntimeError: DataLoader worker is killed"
    told = verdict.explain(jobfolder.JobFolder(tmp_path).attempt(1), rank, 1, True)
    assert told == ("ended with exit code 1: RuntimeError: DataLoader worker is killed; "
                    "meanwhile the kernel killed a process for lack of memory")
