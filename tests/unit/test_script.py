"""Scoring scripts, and the zips that they come in."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jupyter_mlops.core.errors import Refused
from jupyter_mlops.serving import archive
from jupyter_mlops.serving.archive import check_archive, unpack
from jupyter_mlops.serving.store import describe_script, fingerprint

SCORE = '''
import json, os
import helper, beside
calls = []
def init():
    calls.append("init")
    global folder
    folder = os.environ.get("AZUREML_MODEL_DIR")
def run(raw_data):
    assert isinstance(raw_data, str)
    asked = json.loads(raw_data)
    if asked == "bytes":
        return b'{"ready": [1, 2]}'
    if asked == "broken":
        return b"not json"
    if asked == "exit":
        raise SystemExit(4)
    if asked == "text":
        return json.dumps({"a": 1})
    if asked == "array":
        import numpy
        return {"scores": numpy.arange(3.0)}
    return {"calls": calls, "model": folder, "helper": helper.NAME, "beside": beside.NAME, "cwd": os.getcwd(),
            "file": open("table.txt").read(), "same": os.environ.get("JUPYTER_MLOPS_MODEL_DIR") == folder,
            "module": __name__}
'''

#: Loads a script as the scorer does and answers the bodies in argv; in a process, since it changes folder and path.
CALL = """
import json, sys
from jupyter_mlops.runtime.loading import load
from jupyter_mlops.runtime.answers import answer
model = load(sys.argv[1] + "/model", {"script": {"file": sys.argv[2]}})
out = [model.loader, model.wants, model.batch_safe]
for body in sys.argv[3:]:
    try:
        out.append(model.predict(body, {}))
    except BaseException as error:
        out.append(type(error).__name__)
print(json.dumps(out, default=lambda v: v.tolist()))
"""


def packed(folder: Path, files: dict[str, str | bytes], name: str = "code.zip") -> Path:
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as z:
        for path, text in files.items():
            z.writestr(path, text)
    return folder / name


def call(folder: Path, script: str, *bodies: object) -> list[object]:
    done = subprocess.run([sys.executable, "-c", CALL, str(folder), script, *map(json.dumps, bodies)], timeout=60,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_script_serves_with_its_model_and_modules(tmp_path):
    files = {"online/score.py": SCORE, "online/beside.py": "NAME = 'b'", "helper.py": "NAME = 'h'", "table.txt": "t"}
    code = packed(tmp_path, files)
    (tmp_path / "model").mkdir()
    about = describe_script(code, "online/score.py", tmp_path / "model")
    assert about["signature"] == {} and about["script"]["file"] == "online/score.py"
    unpack(code, tmp_path / "code")
    assert stat.S_IMODE((tmp_path / "code" / "online" / "score.py").stat().st_mode) == 0o600
    *head, whole, ready, text, array, broken, ended = call(
        tmp_path, "online/score.py", {"x": 1}, "bytes", "text", "array", "broken", "exit")
    assert head == ["script", "frame", False]
    assert whole == {"calls": ["init"], "model": str(tmp_path / "model"), "helper": "h", "beside": "b", "same": True,
                     "cwd": str(tmp_path / "code"), "file": "t", "module": "score"}
    assert ready == {"ready": [1, 2]} and text == '{"a": 1}' and array == {"scores": [0.0, 1.0, 2.0]}
    assert broken == "ValueError" and ended == "SystemExit"


def test_a_script_needs_no_model(tmp_path):
    unpack(packed(tmp_path, {"json.py": "import os\ndef run(raw): return [raw, os.environ.get('AZUREML_MODEL_DIR')]"}),
           tmp_path / "code")
    assert call(tmp_path, "json.py", {"a": "é"})[3] == ['{"a": "\\u00e9"}', None]  # and hides no module of Python's


@pytest.mark.parametrize(("text", "said"), [
    ("def init():\n    raise ValueError('no weights')\ndef run(d): pass", "ValueError: no weights"),
    ("def init(): pass", "has no function run"), ("import not_there", "No module named 'not_there'"),
    ("def run(:", "SyntaxError"),
])
def test_what_is_wrong_with_a_script_is_said_with_a_traceback(tmp_path, text, said):
    unpack(packed(tmp_path, {"score.py": text}), tmp_path / "code")
    done = subprocess.run([sys.executable, "-c", CALL, str(tmp_path), "score.py"], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 1 and said in done.stderr and "Traceback" in done.stderr


def test_a_script_that_is_not_there_is_named_with_those_that_are(tmp_path):
    with pytest.raises(Refused) as found:
        describe_script(packed(tmp_path, {"a/score.py": "", "readme.md": ""}), "score.py")
    assert "a/score.py" in found.value.hint
    with pytest.raises(Refused) as found:
        describe_script(packed(tmp_path, {"readme.md": ""}), "score.py")
    assert "no Python file" in found.value.hint


@pytest.mark.parametrize("name", ["../out.py", "a/../../out.py", "/etc/out.py", "a\\..\\out.py", "C:/out.py",
                                  "x" * 1200])
def test_no_path_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(Refused):
        check_archive(packed(tmp_path, {name: "1", "score.py": ""}))
    with pytest.raises(Refused):
        unpack(tmp_path / "code.zip", tmp_path / "code")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code.zip"]


def test_links_doubles_and_files_as_folders_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as z:
        z.writestr(link, "/etc/passwd")
    with pytest.raises(Refused, match="a link"):
        check_archive(tmp_path / "l.zip")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as z, pytest.warns(UserWarning):
        z.writestr("score.py", "1")
        z.writestr("score.py", "2")
    with pytest.raises(Refused, match="twice"):
        check_archive(tmp_path / "d.zip")
    with pytest.raises(Refused, match="below a file"):
        check_archive(packed(tmp_path, {"a": "", "a/b": ""}))


def test_bombs_and_crowds_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    bomb = packed(tmp_path, {"zeros": b"\0" * (80 << 20)})
    with pytest.raises(Refused, match="more than is taken"):
        unpack(bomb, tmp_path / "code")
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    with pytest.raises(Refused, match="4 files"):
        check_archive(packed(tmp_path, {f"f{i}": "" for i in range(4)}))
    assert not (tmp_path / "code").exists()


def test_a_damaged_zip_leaves_what_was_there(tmp_path):
    good = packed(tmp_path, {"score.py": "first = 1"})
    unpack(good, tmp_path / "code")
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as z:
        z.writestr("score.py", os.urandom(4000))
    cut = bytearray(raw.getvalue())
    cut[200:300] = bytes(100)
    for text in (bytes(cut), b"PK\x03\x04 no", b"", good.read_bytes()[:-30]):
        (tmp_path / "bad.zip").write_bytes(text)
        with pytest.raises(Refused):
            unpack(tmp_path / "bad.zip", tmp_path / "code")
    assert (tmp_path / "code" / "score.py").read_text() == "first = 1"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip", "code", "code.zip"]
    unpack(packed(tmp_path, {"other.py": ""}), tmp_path / "code")
    assert [p.name for p in (tmp_path / "code").iterdir()] == ["other.py"]


def test_a_folder_of_files_for_a_script_is_told_apart_by_content(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"one")
    first = fingerprint(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"two")
    assert fingerprint(tmp_path) != first
