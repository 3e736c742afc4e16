"""Packages of conda: what a file may name, what the tool of an image is told, and what it means by what it says."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from types import SimpleNamespace

import kubernetes_validate
import pytest
from test_kube_manifests import MINORS, violations

from jupyter_mlops.compute.kubernetes import cache, images, manifests
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.compute.kubernetes.manifests import Names, Order
from jupyter_mlops.core.errors import Refused
from jupyter_mlops.core.resources.compute import ComputeSpec, TrainingOptions
from jupyter_mlops.core.resources.environment import JobEnvironment
from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.runtime import conda, packages, software


def environment(*dependencies, channels=(), **more):
    return JobEnvironment(conda_file={"channels": list(channels), "dependencies": list(dependencies)}, **more)


@pytest.mark.parametrize("spec", [
    "numpy", "numpy>=2,<3", "numpy =2.0", "numpy 2.0", "numpy 2.0 py311_0", "conda-forge::pytorch=2.*=*cuda*",
    "numpy[version='>=2', channel=conda-forge]", "_libgcc_mutex", "r-base",
])
def test_specs_that_conda_takes(spec):
    assert environment(spec).specs() == [spec, "python"]


@pytest.mark.parametrize(("spec", "words"), [
    ("https://ann:s3cret@conda.example/a-1.0-0.conda", "is a file or an address"), ("a-1.0-0.tar.bz2", "is a file"),
    ("--channel=x", "is no package of conda"), ("a\n@EXPLICIT", "is no package"), ("@EXPLICIT", "is no package"),
    ("a; rm -rf /", "is no package"), ("a" * 501, "is no package"), ("$TOKEN", "is no package"),
])
def test_what_is_no_spec_is_refused_without_its_password(spec, words):
    with pytest.raises(ValueError, match=words) as error:
        environment(spec)
    assert "s3cret" not in error.value.errors(include_input=False)[0]["msg"]


@pytest.mark.parametrize("channel", [
    "https://ann:s3cret@conda.example/a", "https://conda.example/t/s3cret/a", "file:///etc", "/etc", "a/../../etc",
    "-x", "a b"])
def test_channels_with_credentials_or_of_this_machine_are_refused(channel):
    with pytest.raises(ValueError, match=r"belong into training.conda.secret|is no channel") as error:
        environment("numpy", channels=[channel])
    assert "s3cret" not in error.value.errors(include_input=False)[0]["msg"]
    for wrong in ("conda-forge", [3]):
        with pytest.raises(ValueError, match="is a list of names or addresses"):
            JobEnvironment(conda_file={"channels": wrong, "dependencies": ["numpy"]})


def test_an_environment_has_python_and_what_pip_needs():
    assert environment("numpy").specs("3.11") == ["numpy", "python=3.11.*"]
    assert environment("numpy", "python>=3.9").specs() == ["numpy", "python>=3.9"]
    assert environment("numpy", "python>=3.9").specs("3.11") == ["numpy", "python>=3.9", "python=3.11.*"]
    assert environment("numpy", "python 3.12").specs("3.11") == ["numpy", "python 3.12"], "is refused elsewhere"
    assert environment("numpy", {"pip": ["a"]}).specs() == ["numpy", "python", "pip"]
    assert environment("numpy", "pip", pip=["a"]).specs() == ["numpy", "pip", "python"]
    assert environment("python=3.11", "pip", {"pip": ["a"]}).specs() == [], "pip alone installs that, on the image"
    assert environment("numpy", channels=["a", "nodefaults", "https://conda.example/b/", "a"]).channels == [
        "a", "https://conda.example/b"]


def order(resources=None, training=None, **packed):
    options = TrainingOptions(image="a:1", **(training or {}))
    cell = {"source": "1", "packed": {"python": "3.11.7", "packages": {}, "by_value": True, **packed}}
    spec = JobSpec.model_validate({
        "cell": cell, "resources": resources or {}, "environment": {"conda_file": {"dependencies": ["numpy"]}}})
    return Order(spec, options, "a:1", 600.0)


def test_what_the_pod_is_told():
    given = {"conda": {"channels": ["own"], "channel_alias": "https://conda.example", "cuda": "12.4"}}
    assert manifests.packages(order(training=given))["conda"] == {
        "specs": ["numpy", "python=3.11.*"], "channels": ["own"], "alias": "https://conda.example", "cuda": "",
        "timeout": 3600}
    assert manifests.packages(order({"gpus": 1}, given))["conda"]["cuda"] == "12.4"
    assert manifests.packages(order(by_value=False))["conda"]["specs"] == ["numpy", "python"]


@pytest.mark.parametrize("minor", MINORS)
def test_the_manifest_fits_the_schema_and_only_the_installation_sees_the_secret(minor):
    made = order(training={"conda": {"secret": "mirror", "channels": ["https://conda.example/a"]},
                           "pip": {"secret": "index"}, "package_cache": {"claim": "packages"}})
    manifest = manifests.job(Names("w", "a", 1), made, suspended=True)
    kubernetes_validate.validate(manifest, minor, strict=True)
    pod = manifest["spec"]["template"]["spec"]
    mounts = {c["name"]: [m["name"] for m in c["volumeMounts"]] for c in [*pod["initContainers"], *pod["containers"]]}
    assert [name for name, listed in mounts.items() if "conda" in listed] == ["packages"]
    assert not any("pip" in listed for listed in mounts.values()), "nothing is for pip to do"
    assert pod["activeDeadlineSeconds"] > 600 + made.options.conda.timeout and violations(pod) == []
    assert "conda.example" not in json.dumps(manifest)


@pytest.mark.parametrize("options", [
    {"channels": ["https://ann:pw@conda.example"]}, {"channel_alias": "https://ann:pw@conda.example"},
    {"channels": ["https://conda.example/t/pw/a"]}, {"channel_alias": "ftp://a"}, {"cuda": "latest"}])
def test_options_that_are_not_safe_are_refused(options):
    with pytest.raises(ValueError):
        TrainingOptions.model_validate({"image": "a:1", "conda": options})
    assert TrainingOptions.model_validate({"conda": {"channels": ["file:///opt/channel"]}}).conda.channels


def test_what_is_wrong_with_its_secret_is_told_when_a_compute_is_attached():
    there = {"empty": {"data": {"pip.conf": ""}}, "mirror": {"data": {"condarc": ""}}}
    kube = SimpleNamespace(namespace="ns", get=lambda kind, name: there.get(name))

    def problems(name):
        found = []
        cache.place(kube, TrainingOptions.model_validate({"image": "a:1", "conda": {"secret": name}}), "", found)
        return [(p["message"], p["hint"], p["fatal"]) for p in found]

    assert problems("mirror") == problems("") == []
    assert problems("gone") == [("there is no Secret 'gone' in namespace 'ns'",
                                 "training.conda.secret names it: one with condarc or ca.crt", True)]
    assert problems("empty") == [("the Secret 'empty' has none of condarc and ca.crt",
                                  "these are the keys that training.conda.secret is looked at for", False)]


# -- versions --------------------------------------------------------------------------------------------------------


def job(*dependencies, **packed):
    cell = {"source": "1", "packed": {"python": "3.11.7", "packages": {}, "by_value": True, **packed}}
    return {"cell": cell, "environment": {"conda_file": {"dependencies": list(dependencies)}}}


def test_another_python_than_the_kernels_is_refused_before_anything_is_submitted():
    driver = KubernetesCompute("w", "gpu", ComputeSpec(type="kubernetes", namespace="ns", training={"image": "a:1"}))
    with pytest.raises(Refused, match=r"of Python 3\.11 and do not run under Python 3\.12 of the conda file"):
        driver.check(job("numpy", "python=3.12"))
    with pytest.raises(Refused, match=r"the conda file asks for Python 3\.8, and jobs need 3\.9 or newer"):
        driver.check(job("numpy", "python=3.8", by_value=False))
    driver.check(job("numpy", "python=3.12", by_value=False))
    driver.check(job("numpy", "python=3.11"))


def test_what_is_not_known_before_is_told_by_a_preview():
    driver = KubernetesCompute("w", "gpu", ComputeSpec(type="kubernetes", namespace="ns", training={"image": "a:1"}))
    unseen, cpus = driver._admission.warnings(order({"gpus": 1}))
    assert "needs one with micromamba, mamba or conda" in unseen and "an operator sets training.conda.cuda" in cpus
    driver.images.learn({"image": "a:1", "python": "3.11.7", "packages": {}, "conda": True})
    for known in (order({"gpus": 1}, {"conda": {"cuda": "12.4"}}), order()):
        assert driver._admission.warnings(known) == []


def test_of_an_image_that_makes_an_environment_only_the_tool_counts():
    known = images.Images()
    there = {"image": "a:1", "python": "3.9.1", "packages": {"numpy": "1.0"}, "pip": False, "conda": True}
    known.learn(there)
    spec = JobSpec.model_validate(job("numpy", "python=3.11", packages={"numpy": "2.0"}))
    assert known.check(spec, "a:1") == [], "its own Python and packages are not used"
    made = {"python": "3.12.1", "packages": {"numpy": "2.0"}, "site": ["/p"], "conda": True}
    assert "under Python 3.12 of the conda file" in software.compare(
        **images.comparison(JobSpec.model_validate(job("numpy", "python>3.10"))), there=made, image="")[0]
    known.learn({**there, "image": "b:1", "conda": False})
    with pytest.raises(Refused, match=r"the image b:1 has neither micromamba, mamba nor conda.*\(numpy\)") as error:
        known.check(spec, "b:1")
    assert error.value.hint == "this one has it: --image a:1"
    spec = spec.model_copy(update={"distribution": JobSpec.model_validate(
        {**job("numpy"), "distribution": {"type": "mpi"}}).distribution})
    known.learn({**there, "mpirun": False})
    with pytest.raises(Refused, match="no mpirun"):
        known.check(spec, "a:1")
    known.check(spec.model_copy(update={"environment": environment("openmpi")}), "a:1")


# -- the tool --------------------------------------------------------------------------------------------------------


def test_one_call_that_all_tools_know():
    asked = {"specs": ["numpy"], "channels": ["own", "conda-forge"]}
    assert conda.arguments("/x/conda", asked, "/p", "/l") == [
        "/x/conda", "create", "--yes", "--prefix", "/p", "--override-channels", "--channel", "own", "--channel",
        "conda-forge", "--file", "/l"]
    assert "--override-channels" not in conda.arguments("/x/conda", {"specs": ["numpy"]}, "/p", "/l")


def test_what_the_tool_is_told_by_its_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDA_CHANNELS", "elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/ours")
    entry, files = tmp_path / "entry", tmp_path / "conda"
    files.mkdir()
    (files / "condarc").write_text("channel_alias: https://tok3n@conda.example/t/t0ken\npassword: 'pa55word'\n")
    listed = conda.prepare(str(entry), ["numpy", "python"])
    env = conda.environment("/x/micromamba", {"alias": "https://own", "cuda": "12.4"}, str(entry), str(files))
    assert Path(listed).read_text() == "numpy\npython\n" and "CONDA_CHANNELS" not in env and "PYTHONPATH" not in env
    assert env["CONDARC"] == env["MAMBARC"] == str(files / "condarc") and "CONDA_SSL_VERIFY" not in env
    assert (env["CONDA_CHANNEL_ALIAS"], env["CONDA_OVERRIDE_CUDA"]) == ("https://own", "12.4")
    written = [env[name] for name in ("HOME", "CONDA_PKGS_DIRS", "MAMBA_ROOT_PREFIX")]
    assert all(path.startswith(str(entry)) for path in written)
    hidden = conda.secrets(str(files))
    assert set(hidden) == {"pa55word", "tok3n", "t0ken"} and conda.secrets("/nowhere") == []
    assert conda.blot("https://conda.example/t/ab-12/own") == "https://conda.example/t/***/own"
    conda.clear(str(entry))
    assert [p.name for p in entry.iterdir()] == ["specs.txt"]


def test_an_environment_is_found_again_by_what_is_in_it():
    asked = {"image": "a:1", "requirements": [], "conda": {"specs": ["a", "b"], "channels": ["x", "y"], "timeout": 1}}
    there = {"python": "3.11.7", "packages": {}}
    key = packages.key(asked, there)

    def other(**more):
        return packages.key({**asked, "conda": {**asked["conda"], **more}}, there)

    assert other(specs=["b", "a"], timeout=2) == key
    assert len({key, other(specs=["a"]), other(channels=["y", "x"]), other(alias="https://z"), other(cuda="12.4"),
                packages.key({**asked, "requirements": ["c"]}, there), packages.key({**asked, "image": "b:1"}, there),
                packages.key({**asked, "conda": None}, there)}) == 8
    assert packages.key({"image": "a:1", "requirements": ["c"]}, there) == packages.key(
        {"image": "a:1", "requirements": ["c"], "conda": None}, there), "what pip has made before is found again"


def test_what_activation_sets_is_taken_over(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    for place, name, text in (("activate.d", "a.sh", 'export A="$B and more" PATH=/nowhere\necho noise\n'),
                              ("activate.d", "b.sh", "false\nexport CONDA_PREFIX=/wrong\n"),
                              ("env_vars.d", "x.json", '{"B": "b", "C": 3}')):
        (tmp_path / "etc" / "conda" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "etc" / "conda" / place / name).write_text(text)
    found = conda.activated(str(tmp_path))
    assert found["variables"] == {"A": "b and more", "B": "b"} and found["python"] == platform.python_version()
    (tmp_path / "bin" / "python").unlink()
    with pytest.raises(conda.CondaError, match=r"its Python does not start: .*/bin/python: No such file"):
        conda.activated(str(tmp_path))


MICROMAMBA = """error    libmamba Could not solve for environment specs
    The following packages are incompatible
    ├─ nowhere =* * does not exist (perhaps a typo or a missing channel).
critical libmamba Could not solve for environment specs"""
CLASSIC = """PackagesNotFoundInChannelsError: The following packages are not available from current channels:

  - nowhere=9

Current channels:"""


@pytest.mark.parametrize(("said", "words"), [
    (MICROMAMBA, "the channels have no nowhere"), (CLASSIC, "the channels have no nowhere=9"),
    ("LibMambaUnsatisfiableError: Encountered problems while solving:\n  - nothing provides requested nowhere 9",
     "the channels have no nowhere 9"),
    ("   └─ a =* * is not installable because it requires\n      └─ b >=2, which does not exist (perhaps a missing",
     "the channels have no b >=2"),
    ("LibMambaUnsatisfiableError: Encountered problems while solving:\n  - package a conflicts", "do not go together"),
    ("CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://conda.example/noarch>", "a channel does not answer"),
    ("critical libmamba Multiple errors occurred:\n Download error (6) Could not resolve hostname", "does not answer"),
    ("CondaHTTPError: HTTP 403 FORBIDDEN for url <https://conda.example/noarch>", "wants other credentials"),
    ("critical libmamba Download error (23): No space left on device", "there is no room left"),
    ("SSL certificate problem: unable to get local issuer", "certificate of a channel is not trusted"),
    ("UnavailableInvalidChannel: HTTP 404 NOT FOUND for channel own <https://conda.example/own>", "no channel own"),
    ("critical libmamba something new", "critical libmamba something new"), ("", "it ended with code 2"),
])
def test_why_a_tool_failed(said, words):
    told = conda.explain(said.split("\n"), 2)
    assert told.startswith("the conda environment could not be made: ") and words in told and "\n" not in told


def test_how_far_a_tool_is():
    for line, words in (("Collecting package metadata (repodata.json): ...working... done", "solving"),
                        ("conda-forge/noarch    20.1MB @ 30MB/s", "reading the channels"),
                        ("Solving environment: ...working... done", "downloading"), ("Transaction", "downloading"),
                        ("Linking numpy-2.0-py311_0", "linking"), ("numpy", ""),
                        ("Solving environment: ...working... unsuccessful attempt using repodata from", "")):
        assert conda.progress(line) == words
