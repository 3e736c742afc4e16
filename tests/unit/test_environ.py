"""What reaches a model of the environment, and how it shares the cores."""

from __future__ import annotations

from jupyter_mlops.runtime import batchworker, environ
from jupyter_mlops.serving import environment


def test_nothing_secret_reaches_a_model_on_any_way(monkeypatch):
    secret = ("MLFLOW_TRACKING_URI", "_MLFLOW_SERVER", "mlflow_tracking_uri", "JUPYTER_TOKEN", "JUPYTERHUB_USER",
              "JPY_PARENT_PID", "AWS_SECRET_ACCESS_KEY", "hf_token", "DB_PASSWORD", "MY_CREDENTIALS", "OPENAI_API_KEY")
    for name in secret:
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("MONKEY", "a word with key in it")
    ways = [environ.scrubbed(dict.fromkeys((*secret, "MONKEY", "TOKENIZERS_PARALLELISM"), "")),
            environment.gateway_env(), batchworker.environment({}, 1)]
    for env in ways:
        assert not set(secret) & set(env) and {"MONKEY", "TOKENIZERS_PARALLELISM"} <= set(env)
    assert environ.scrubbed({"JUPYTER_MLOPS_HOME": "/h"}, ("JUPYTER_MLOPS_HOME",)) == {"JUPYTER_MLOPS_HOME": "/h"}


def test_cores_are_shared_where_nobody_says_otherwise(monkeypatch):
    monkeypatch.setattr(environ, "cores", lambda: 8)
    env = {"MKL_NUM_THREADS": "5"}
    environ.share_cores(env, 3)
    assert env == {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "5"}
    few: dict[str, str] = {}
    environ.share_cores(few, 64)
    assert few["OMP_NUM_THREADS"] == "1"
