"""What a job asks for on top of an image: what is a requirement, what files say, what a cluster gets of it."""

from __future__ import annotations

import json

import kubernetes_validate
import pytest
from test_kube_manifests import MINORS, violations

from jupyter_mlops.client import requirements
from jupyter_mlops.compute.kubernetes import images, manifests
from jupyter_mlops.compute.kubernetes.manifests import Names, Order
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.core.errors import ParameterError, Refused
from jupyter_mlops.core.resources.compute import TrainingOptions
from jupyter_mlops.core.resources.environment import JobEnvironment
from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.runtime import packages, pipwords
from jupyter_mlops.runtime import software as programs


@pytest.mark.parametrize("line", [
    "xgboost", "pandas==3.*", "torch>=2,<3; python_version >= '3.9'", "uvicorn[standard]~=0.30",
    "a @ https://example.org/a-1.0-py3-none-any.whl", "a @ git+https://example.org/a.git@main",
    f"numpy==2.0 --hash=sha256:{'0' * 64} --hash=sha256:{'a' * 64}",
])
def test_requirements_that_pip_takes(line):
    assert JobEnvironment(pip=[f"  {line} ", line]).requirements == [line]


@pytest.mark.parametrize(("line", "words"), [
    ("--index-url https://u:pw@example.org", "is an option of pip"), ("-e .", "is an option of pip"),
    ("./wheels/a.whl", "is a path"), ("a-1.0-py3-none-any.whl", "is a path"), ("/tmp/a", "is a path"),
    ("a b", "is no requirement"), ("a==1; rm -rf /", "is no requirement"), ("a\n--pre", "one requirement an item"),
    ("a @ file:///etc/passwd", "only packages at http or https"), ("${TOKEN}", "is no requirement"),
    ("a @ https://ann:s3cret@example.org/a.whl", "holds credentials"),
])
def test_what_is_no_requirement_is_refused_without_its_password(line, words):
    with pytest.raises(ValueError, match=words) as error:
        JobEnvironment(pip=[line])
    told = error.value.errors(include_input=False)[0]["msg"]
    assert "pw@" not in told and "s3cret" not in told


CONDA = {"name": "x", "channels": ["conda-forge"], "dependencies": [
    "python=3.11", "pip", {"pip": ["xgboost==3.0", "pandas"]}]}


def test_of_a_conda_file_pip_installs_its_section():
    found = JobEnvironment(pip=["xgboost==3.0", "a"], conda_file=CONDA)
    assert found.requirements == ["xgboost==3.0", "a", "pandas"]
    assert (found.python, found.conda_packages) == ("3.11", [])
    more = {"dependencies": ["conda-forge::cudatoolkit=11.8", "numpy>=2", "python>=3.9", {"pip": []}]}
    found = JobEnvironment(conda_file=more)
    assert (found.python, found.conda_packages) == ("", ["cudatoolkit", "numpy"])
    for wrong, words in (("env.yml", "send the content"), ({}, "a list of `dependencies`"), (
            {"dependencies": [{"pip": "a"}]}, "is a list of requirements"), ({"dependencies": [3]}, "are texts")):
        with pytest.raises(ValueError, match=words):
            JobEnvironment(conda_file=wrong)


def test_on_this_machine_nothing_is_installed():
    driver = LocalCompute()
    with pytest.raises(Refused, match="take what is there"):
        driver.check({"cell": {"source": "1"}, "environment": {"image": "", "pip": ["a"], "conda_file": None}})


def test_a_requirements_file_is_read_with_what_it_includes(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("numpy  # fast\n\n")
    file = tmp_path / "requirements.txt"
    file.write_text("# what it needs\npandas==3.*\n-r more/base.txt\n"
                    f"torch==2.0 \\\n    --hash=sha256:{'0' * 64}\na @ https://example.org/a#egg=a\n")
    assert requirements.read(file) == ["pandas==3.*", "numpy", f"torch==2.0 --hash=sha256:{'0' * 64}",
                                       "a @ https://example.org/a#egg=a"]
    for text, words in (("a\n--extra-index-url https://x", "line 2 of .*--extra-index-url"),
                        ("-e .", "line 1 of .*-e is"),
                        ("-r requirements.txt", "include one another"), ("./a", "a path of this machine"),
                        ("-r gone.txt", "cannot be read: No such file")):
        file.write_text(text)
        with pytest.raises(ParameterError, match=words):
            requirements.read(file)
    conda = tmp_path / "conda.yml"
    (tmp_path / "requirements.txt").write_text("xgboost\n")
    conda.write_text("name: x\nprefix: /home/ann\ndependencies:\n  - python=3.11\n"
                     "  - pip:\n    - -r requirements.txt\n    - b\n")
    assert requirements.read_conda(conda) == {"name": "x", "dependencies": ["python=3.11", {"pip": ["xgboost", "b"]}]}
    conda.write_text("- a\n")
    with pytest.raises(ParameterError, match="no conda environment file"):
        requirements.read_conda(conda)


# -- what a cluster gets ---------------------------------------------------------------------------------------------


def made(**training):
    options = TrainingOptions(image="a:1", **training)
    spec = JobSpec.model_validate({
        "cell": {"source": "1"}, "environment": {"pip": ["xgboost"]}, "resources": {"gpus": 2}})
    return Order(spec, options, "a:1", 600.0)


@pytest.mark.parametrize("cache", [
    None, {"claim": "packages"}, {"claim": "packages", "shared": True}, {"host_path": "/var/lib/mlops"}])
@pytest.mark.parametrize("minor", MINORS)
def test_the_manifest_fits_the_schema_and_the_ranks_cannot_write_to_the_cache(minor, cache):
    order = made(package_cache=cache, pip={"secret": "index", "index_url": "https://example.org/simple"})
    manifest = manifests.job(Names("w", "a", 1), order, suspended=True)
    kubernetes_validate.validate(manifest, minor, strict=True)
    pod = manifest["spec"]["template"]["spec"]
    keeper, install = pod["initContainers"]
    mounts = {m["name"]: m.get("readOnly", False) for m in pod["containers"][0]["volumeMounts"]}
    assert [keeper["name"], install["name"]] == ["keeper", "packages"] and "restartPolicy" not in install
    assert mounts.get("packages", True) is True and "pip" not in mounts
    seen = [*install["volumeMounts"], *pod["containers"][0]["volumeMounts"]]
    parts = {m.get("subPath") for m in seen if m["mountPath"] == manifests.CACHE}
    assert parts == ({None if cache.get("shared") else "w"} if cache else set()), "no workspace sees another's"
    assert "nvidia.com/gpu" not in json.dumps(install) and "example.org" not in json.dumps(manifest)
    assert pod["activeDeadlineSeconds"] > 600 + order.options.pip.timeout
    if not (cache or {}).get("host_path"):
        assert violations(pod) == [], "it passes Pod Security restricted"
    else:
        assert {"name": "packages", "hostPath": {"path": "/var/lib/mlops", "type": "Directory"}} in pod["volumes"]


def test_without_packages_nothing_is_added():
    spec = JobSpec.model_validate({"cell": {"source": "1"}, "environment": {"image": "b:1"}})
    order = Order(spec, TrainingOptions(image="a:1", package_cache={"claim": "c"}, pip={"secret": "s"}), "b:1")
    pod = manifests.job(Names("w", "a", 1), order, suspended=True)["spec"]["template"]["spec"]
    assert len(pod["initContainers"]) == 1 and manifests.packages(order) is None
    assert not any(v["name"] in ("packages", "pip") for v in pod["volumes"])


@pytest.mark.parametrize(("options", "words"), [
    ({"pip": {"index_url": "https://ann:pw@example.org"}}, "belongs into pip.conf of a Secret"),
    ({"pip": {"options": ["--proxy=http://ann:pw@example.org"]}}, "belongs into pip.conf of a Secret"),
    ({"pip": {"options": ["--target=/etc"]}}, "cannot be given to pip"),
    ({"pip": {"options": ["a"]}}, "cannot be given"),
    ({"pip": {"index_url": "ftp://a"}}, "no address of a package index"),
    ({"package_cache": {}}, "one of claim and host_path"),
    ({"package_cache": {"claim": "a", "host_path": "/a"}}, "one of claim and host_path"),
    ({"package_cache": {"host_path": "/a/../etc"}}, "must be an absolute path"),
])
def test_options_that_are_not_safe_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TrainingOptions.model_validate({"image": "a:1", **options})


# -- what pip says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "words"), [
    (["ERROR: Could not find a version that satisfies the requirement a==9 (from versions: 1.0, 2.0)",
      "ERROR: No matching distribution found for a==9"], "has no a==9 for Python .*; there is 1.0, 2.0"),
    (["WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'",
      "ERROR: No matching distribution found for a"], "the package index does not answer, so a was not found"),
    (["ERROR: Cannot install a==1 and b==2 because these package versions have conflicting dependencies.",
      "ERROR: ResolutionImpossible: for help visit https://pip.pypa.io"], "a==1 and b==2 do not go together"),
    (["ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"], "no room left"),
    (["  error: subprocess-exited-with-error", "ERROR: Failed building wheel for a",
      "ERROR: Could not build wheels for a, which is required"], "a could not be built"),
    (["WARNING: 401 Error, Credentials not correct for https://example.org"], "wants other credentials"),
    (["ERROR: something new"], "ERROR: something new"), ([], "pip ended with code 2"),
])
def test_why_pip_failed(lines, words):
    import re

    assert re.fullmatch(f"packages could not be installed: .*{words}.*", pipwords.explain(lines, 2))


def test_how_far_pip_is():
    assert pipwords.progress("Collecting pandas==3.*") == "looking for pandas"
    assert pipwords.progress("  Downloading https://x/pandas-3.0-cp311.whl (11.2 MB)") == "downloading pandas, 11.2 MB"
    assert pipwords.progress("Installing collected packages: a, b") == "unpacking" and not pipwords.progress("hello")


def test_passwords_are_blotted_out(tmp_path):
    (tmp_path / "pip.conf").write_text("[global]\nextra-index-url =\n  https://tok3n@a/simple\n  https://u:pa:ss@b/x%2F\n")
    (tmp_path / "netrc").write_text("machine example.org login ann password pa55word\n")
    hidden = pipwords.secrets(str(tmp_path))
    assert {"tok3n", "pa:ss", "pa55word"} <= set(hidden)
    line = pipwords.blot("at https://u:pa:ss@b/x with pa55word and tok3n", hidden)
    assert line == "at https://***@b/x with *** and ***" and pipwords.secrets(str(tmp_path / "none")) == []


def test_what_an_image_brings_for_its_devices_is_kept():
    installed = {"torch": "2.6.0+cu124", "numpy": "2.0"}
    assert packages.kept(["lightning", "numpy==1.26"], installed) == ["torch==2.6.0+cu124"]
    assert packages.kept(["Torch==2.7"], installed) == []
    assert packages.kept([f"a==1 --hash=sha256:{'0' * 64}"], installed) == []


def test_packages_are_read_off_their_folders(tmp_path):
    for name in ("Scikit_Learn-1.7.2.dist-info", "torch-2.6.0+cu124.dist-info", "old-1.0-py3.9.egg-info",
                 "x.dist-info"):
        (tmp_path / name).mkdir()
    assert programs.packages([str(tmp_path), "/nowhere"]) == {
        "scikit-learn": "1.7.2", "torch": "2.6.0+cu124", "old": "1.0"}
    assert programs.facts()["pip"] is True and "pytest" in programs.facts()["packages"]


def test_what_is_known_of_images_is_kept_and_believed_for_a_while(tmp_path, monkeypatch):
    path = tmp_path / "computes" / "gpu-images.json"
    facts = {"image": "a:1", "python": "3.12.4", "packages": {"torch": "2.6.0"}, "pip": False, "conda": False}
    known = images.Images(path)
    for image in ("b:1", "a:1", "c@sha256:" + "0" * 64):
        known.learn({**facts, "image": image}, "a@sha256:1")
    known.learn({"image": 3}), known.learn({"image": "x", "packages": None})
    again = images.Images(path)
    assert [i["image"][:3] for i in again.shown()] == ["c@s", "a:1", "b:1"]
    assert again.shown()[1] | {"seen": ""} == {
        "image": "a:1", "digest": "a@sha256:1", "python": "3.12.4", "packages": {"torch": "2.6.0"}, "count": 1,
        "pip": False, "conda": False, "seen": ""}
    job = JobSpec.model_validate({"cell": {"source": "1", "packed": {"python": "3.12.1", "by_value": True, "packages": {
        "torch": "2.7.1", "cloudpickle": "3.1.2"}}}, "environment": {"pip": ["x"]}})
    assert again.check(job, "a:1") == ["torch is 2.7.1 here and 2.6.0 in the image",
                                       "the image a:1 has no pip: the one that comes with its Python is tried"]
    job.cell.packed.python = "3.11.2"
    again.learn({**facts, "image": "d:1", "python": "3.11.9"})
    with pytest.raises(Refused, match=r"use an image with Python 3\.11") as error:
        again.check(job, "a:1")
    assert error.value.hint == "this one has it: --image d:1"
    now = images.time.time()
    monkeypatch.setattr(images.time, "time", lambda: now + images.TRUSTED + 60)
    assert again.check(job, "a:1") == [], "a tag may have moved since"
    with pytest.raises(Refused):
        again.check(job, "c@sha256:" + "0" * 64)
