"""What the mirror in a pod is told: nothing of it is lost in silence."""

from __future__ import annotations

import io
import json

import pytest

from jupyter_mlops.runtime.jobfolder import JobFolder
from jupyter_mlops.runtime.mirror import Mirror


def word(**said) -> bytes:
    return json.dumps(said).encode() + b"\n"


def test_a_stop_that_comes_before_the_folder_is_there(tmp_path):
    """A container's first moment: one can execute in it, and nothing has been made there yet."""
    folder = tmp_path / "work" / "job"
    Mirror(str(folder), "2", io.BytesIO()).listen([word(put="stop", text=json.dumps({"attempt": 2, "grace": 1.0}))])
    assert JobFolder(str(folder)).stop_wish(2) == 1.0 and JobFolder(str(folder)).stop_wish(1) is None


@pytest.mark.parametrize("wrong", [word(put="stop"), b"{\n", b"[1]\n", word(got="many"), word(urls=[1], good=1)])
def test_who_cannot_follow_says_so_and_speaks_no_further(tmp_path, capsys, wrong):
    """Else the other side would believe that it was heard."""
    mirror = Mirror(str(tmp_path), "1", io.BytesIO())
    mirror.listen([wrong, word(put="stop", text=json.dumps({"attempt": 1, "grace": 1.0}))])
    assert mirror.closed and "Error: " in capsys.readouterr().err
    assert JobFolder(str(tmp_path)).stop_wish(1) is None, "it is said again, over the next connection"


def test_a_stop_that_cannot_be_kept_ends_the_connection(tmp_path, capsys):
    (tmp_path / "job").write_text("no folder")
    mirror = Mirror(str(tmp_path / "job"), "1", io.BytesIO())
    mirror.listen([word(put="stop", text="{}")])
    assert mirror.closed and "Error: " in capsys.readouterr().err
