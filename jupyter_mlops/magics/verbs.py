"""The verbs of magics and CLI, each described once: its summary, its arguments, its examples and where its code is."""

from __future__ import annotations

import argparse

from . import serving_verbs
from .arguments import (
    Verb,
    amount,
    count,
    memory,
    named_input,
    named_output,
    names,
    nodes,
    pair,
    ports,
    size,
    span,
    whole,
)

PHASES = ("Queued", "Starting", "Running", "Stopping", "Finalizing", "Completed", "Failed", "Canceled", "Deleted")


def _nothing(p: argparse.ArgumentParser) -> None:
    pass


def _experiment(p: argparse.ArgumentParser, what: str = "experiment name") -> None:
    p.add_argument("-e", "--experiment", metavar="NAME", help=what)


def _yes(p: argparse.ArgumentParser) -> None:
    p.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _log(p: argparse.ArgumentParser) -> None:
    p.add_argument("values", nargs="*", type=pair, metavar="KEY=VALUE", help="numbers become metrics, text parameters")
    p.add_argument("--step", type=int, metavar="N", help="step of the metrics (default 0)")
    p.add_argument("--run", metavar="RUN", help="run id or name; default: the active run, else a new one")
    p.add_argument("--name", metavar="NAME", help="name of a new run")
    _experiment(p, "experiment of a new run")
    p.add_argument("--param", action="append", type=pair, default=[], metavar="KEY=VALUE", help="a parameter")
    p.add_argument("--tag", action="append", type=pair, default=[], metavar="KEY=VALUE", help="a tag")
    p.add_argument("--artifact", action="append", default=[], metavar="PATH", help="a file or folder to keep")


def _runs(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", nargs="?", metavar="RUN", help="show this run only")
    _experiment(p, "only this experiment")
    p.add_argument("--filter", metavar="EXPR", help="MLflow search filter, e.g. \"metrics.accuracy > 0.9\"")
    p.add_argument("--order-by", metavar="EXPR", help="e.g. \"metrics.accuracy DESC\"")
    p.add_argument("-n", "--limit", type=count, default=20, metavar="N", help="at most so many (default 20)")


def _compare(p: argparse.ArgumentParser) -> None:
    p.add_argument("runs", nargs="*", metavar="RUN", help="run ids, names or variables")
    _experiment(p, "compare the runs of this experiment")
    p.add_argument("-m", "--metric", metavar="METRIC", help="the metric that decides")
    p.add_argument("-n", "--limit", type=count, default=5, metavar="N", help="of an experiment: the best N (default 5)")


def _register(p: argparse.ArgumentParser) -> None:
    p.add_argument("run", metavar="RUN|best", help="run id, name or variable; best: the best run with a model")
    p.add_argument("name", metavar="MODEL", help="name of the registered model")
    p.add_argument("-m", "--metric", metavar="METRIC", help="what best means")
    order = p.add_mutually_exclusive_group()
    order.add_argument("--max", dest="lower", action="store_const", const=False, help="highest is best")
    order.add_argument("--min", dest="lower", action="store_const", const=True, help="lowest is best")
    _experiment(p, "where to look for the best run (default: this notebook's)")
    p.add_argument("-a", "--alias", metavar="ALIAS", help="alias for the new version, e.g. champion")
    p.add_argument("--artifact", metavar="NAME", help="which model, when the run has several")
    p.add_argument("--description", metavar="TEXT", help="description of the version")


def _models(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="MODEL", help="show this model with its versions")


def _delete(p: argparse.ArgumentParser) -> None:
    p.add_argument("kind", choices=("job", "run", "endpoint", "deployment", "model"), metavar="KIND",
                   help="job, run, endpoint, deployment or model")
    p.add_argument("name", metavar="NAME", help="its name; ENDPOINT/NAME for a deployment, MODEL/3 for one version")
    _yes(p)


def _restore(p: argparse.ArgumentParser) -> None:
    p.add_argument("kind", choices=("job", "run"), metavar="KIND", help="job or run")
    p.add_argument("name", metavar="NAME", help="name of the job, id of the run")


def _purge(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="NAME", help="a job that has ended")
    _yes(p)


def _train(p: argparse.ArgumentParser) -> None:
    p.add_argument("script", nargs="?", metavar="SCRIPT", help="a Python script; in the cell form the cell is the code")
    p.add_argument("-n", "--name", metavar="NAME", help="name of the job; a taken one gets a number")
    p.add_argument("-p", "--processes", type=count, default=1, metavar="N",
                   help="processes; several are ranks of torch.distributed (default 1)")
    _experiment(p, "experiment of its run (default: this notebook's)")
    p.add_argument("--compute", default="local", metavar="NAME", help="where it runs (default local)")
    p.add_argument("--nodes", type=nodes, default=(1, None), metavar="N[:MAX]",
                   help="machines of a cluster, each with --processes (default 1); with MAX it begins with N of them, "
                        "and takes more when there is room")
    p.add_argument("--distribution", choices=("pytorch", "tensorflow", "mpi"), default="pytorch",
                   help="how several processes find each other (default pytorch)")
    p.add_argument("--instance", metavar="NAME", help="on a cluster: the kind of node, as the operator has named it")
    p.add_argument("--image", metavar="IMAGE", help="on a cluster: container image (default: the compute's)")
    p.add_argument("--pip", action="append", default=[], metavar="PACKAGE",
                   help="on a cluster: a package to install on the image, such as xgboost or 'pandas==3.*'")
    p.add_argument("-r", "--requirements", action="append", default=[], metavar="FILE",
                   help="the same for each line of a requirements file")
    p.add_argument("--conda-file", metavar="FILE",
                   help="on a cluster: a conda environment file; where it names packages of conda, the image needs "
                        "micromamba, mamba or conda")
    p.add_argument("--env", action="append", type=pair, default=[], metavar="KEY=VALUE", help="environment of the job")
    p.add_argument("--tag", action="append", type=pair, default=[], metavar="KEY=VALUE", help="a tag of its run")
    p.add_argument("--input", action="append", type=named_input, default=[], metavar="NAME=PATH",
                   help="files that it reads as inputs[\"NAME\"]: a path, s3://, https://, claim://CLAIM/PATH; "
                        "NAME:MODE=PATH says how (download, ro_mount, direct)")
    p.add_argument("--output", action="append", type=named_output, default=[], metavar="NAME[=PATH]",
                   help="a folder that it writes to as outputs[\"NAME\"] (default: outputs/NAME, which comes back)")
    p.add_argument("--grace", type=float, default=None, metavar="S",
                   help="seconds to end by itself when stopped (default 10)")
    p.add_argument("-w", "--wait", action="store_true", help="return when it has ended")
    p.add_argument("--use", action="extend", type=names, default=[], metavar="A,B",
                   help="variables to send beside those that the cell is seen to need")
    p.add_argument("--returns", action="extend", type=names, default=[], metavar="A,B",
                   help="variables that the cell brings back")
    p.add_argument("--no-ship", action="store_true", help="send nothing: the cell must stand alone")
    p.add_argument("--ship-limit", type=size, metavar="SIZE", help="most bytes to send, e.g. 2G (default 256Mi)")
    p.add_argument("--dry-run", "--manifest", dest="dry_run", action="store_true",
                   help="show what would be sent and whether it fits, and start nothing")
    p.add_argument("--yaml", action="store_true",
                   help="print what a cluster would get (or the job's spec) as YAML, and start nothing")
    p.add_argument("--interpreter", metavar="PATH", help="another Python to run it (default: this one)")
    p.add_argument("--retries", type=whole, metavar="N", help="further attempts when it fails (default 0)")
    p.add_argument("--timeout", type=span, metavar="T",
                   help="longest time that it may run: 90s, 10m, 2h (default none)")
    p.add_argument("--priority", choices=("low", "medium", "high"),
                   help="who goes first when all is in use (default medium)")
    p.add_argument("--spot", action="store_true",
                   help="on a cluster: cheaper room that can be taken away; then it goes on from its checkpoint")
    p.add_argument("--cpus", type=amount, metavar="X", help="CPUs that it occupies (default: one for each process)")
    p.add_argument("--memory", type=memory, metavar="SIZE",
                   help="memory that it occupies, e.g. 4Gi (default: not counted)")
    p.add_argument("--gpus", type=amount, metavar="X",
                   help="GPUs that it occupies, on each machine: whole ones, or 0.5 of one (default 0)")


def _compute(p: argparse.ArgumentParser) -> None:
    p.add_argument("action", nargs="?", choices=("list", "show", "attach", "detach"), default="list", metavar="ACTION",
                   help="list (default), show, attach or detach")
    p.add_argument("name", nargs="?", metavar="NAME", help="name of the compute")
    p.add_argument("--kubernetes", metavar="CONTEXT", help="a context of the kubeconfig (default: its current one)")
    p.add_argument("--namespace", metavar="NAME", help="where everything lies that is made there")
    p.add_argument("--create-namespace", action="store_true", help="make the namespace when it is not there")
    p.add_argument("--image", metavar="IMAGE", help="of jobs: Python 3.9 and what they import")
    p.add_argument("--serving-image", metavar="IMAGE", help="of endpoints: Python 3.9 and what the models import")
    p.add_argument("--queue", metavar="NAME", help="a LocalQueue of Kueue for the jobs")
    p.add_argument("--gpu-resource", metavar="NAME", help="what a GPU is called there (default nvidia.com/gpu)")
    p.add_argument("--pip-index", metavar="URL", help="where packages of jobs come from (default: PyPI)")
    p.add_argument("--package-cache", metavar="PLACE",
                   help="where they stay for further jobs: a claim, or a /FOLDER of each node (default: nowhere)")
    p.add_argument("-f", "--file", metavar="FILE", help="a compute as YAML, with instance types and all else")
    p.add_argument("--force", action="store_true", help="attach although something stands in the way")
    _yes(p)


def _attach(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="JOB", help="job name or variable")
    p.add_argument("--rank", type=whole, default=0, metavar="R", help="terminal: whose log to follow (default 0)")
    p.add_argument("-t", "--tail", type=whole, metavar="N", help="terminal: only the last N lines of what is there")
    p.add_argument("-w", "--wait", action="store_true", help="notebook: return when it has ended")
    p.add_argument("--no-returns", action="store_true", help="notebook: set no variables")


def _resume(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="JOB", help="name or variable of a job that failed or was stopped")
    p.add_argument("-w", "--wait", action="store_true", help="return when it has ended")


def _jobs(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", nargs="?", metavar="JOB", help="show this job only")
    p.add_argument("--phase", type=str.capitalize, choices=PHASES, metavar="PHASE",
                   help="only jobs in this phase: " + ", ".join(PHASES))
    p.add_argument("-n", "--limit", type=count, default=20, metavar="N", help="at most so many (default 20)")


def _logs(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="JOB", help="job name or variable; ENDPOINT/DEPLOYMENT for a scorer's log")
    p.add_argument("--rank", type=whole, default=0, metavar="R", help="which process (default 0)")
    p.add_argument("-t", "--tail", type=whole, metavar="N", help="only the last N lines")
    p.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
    p.add_argument("--attempt", type=whole, metavar="N", help="of which attempt (default the newest)")
    p.add_argument("-s", "--search", metavar="TEXT", help="only lines that hold this")
    p.add_argument("--regex", action="store_true", help="TEXT is a regular expression")


def _usage(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="JOB", help="job name or variable")


def _shell(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="JOB", help="job name or variable; it runs")
    p.add_argument("--rank", type=whole, default=0, metavar="R", help="beside which process (default 0)")


def _tensorboard(p: argparse.ArgumentParser) -> None:
    p.add_argument("sources", nargs="+", metavar="JOB|RUN|FOLDER",
                   help="what has written event files: jobs into outputs/, runs as artifacts; several are compared")


def _port_forward(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="JOB", help="job name; it runs")
    p.add_argument("ports", type=ports, metavar="PORT[:HERE]", help="port there, and here where it is another one")
    p.add_argument("--rank", type=whole, default=0, metavar="R", help="of which process (default 0)")


def _stop(p: argparse.ArgumentParser) -> None:
    p.add_argument("name", metavar="JOB", help="job name or variable")
    p.add_argument("-w", "--wait", action="store_true", help="return when it has ended")


def _config(p: argparse.ArgumentParser) -> None:
    p.add_argument("key", nargs="?", metavar="KEY", help="what to set")
    p.add_argument("value", nargs="?", metavar="VALUE", help="its value; an empty one removes the setting")


def _down(p: argparse.ArgumentParser) -> None:
    p.add_argument("--all", action="store_true", help="stop jobs and endpoints too")
    p.add_argument("--force", action="store_true", help="end a control plane that does not answer")
    _yes(p)


def _help(p: argparse.ArgumentParser) -> None:
    p.add_argument("verb_name", nargs="?", metavar="VERB", help="a verb")


VERBS: dict[str, Verb] = {
    v.name: v
    for v in (
        Verb("status", "what runs, and which tracking server is in force", "admin:status", _nothing, ("status",)),
        Verb("log", "log metrics, parameters, tags and files", "tracking:log", _log,
             ("log loss=0.3 acc=0.9 optimizer=adam --step 5", "log --artifact plot.png --run RUN")),
        Verb("runs", "list runs", "tracking:runs", _runs,
             ("runs", "runs --experiment digits --order-by \"metrics.accuracy DESC\" -n 5")),
        Verb("compare", "put runs side by side", "tracking:compare", _compare,
             ("compare --experiment digits --metric accuracy", "compare RUN1 RUN2")),
        Verb("register", "register a run's model", "tracking:register", _register,
             ("register best digits --metric accuracy --alias champion", "register RUN digits")),
        Verb("models", "list registered models", "tracking:models", _models, ("models", "models digits")),
        *serving_verbs.VERBS,
        Verb("train", "run a script or a cell as a job that outlives the kernel", "jobs:train", _train,
             ("train script.py -n digits --processes 2 -- --epochs 3", "train script.py --retries 2 --timeout 2h"),
             rest="arguments of the script", cell=True),
        Verb("compute", "list computes; attach a cluster, show what is free there", "computes:compute", _compute,
             ("compute", "compute attach gpu --kubernetes CONTEXT --namespace ml --image IMAGE", "compute show gpu")),
        Verb("attach", "take up a job that was started elsewhere: output, log, results", "jobs:attach", _attach,
             ("attach NAME",)),
        Verb("jobs", "list jobs", "jobs:jobs", _jobs, ("jobs", "jobs NAME")),
        Verb("logs", "show a job's log", "jobs:logs", _logs, ("logs NAME --tail 20", "logs NAME --rank 1 -f")),
        Verb("usage", "show what the ranks of a job use: CPU, memory, GPU", "jobs:usage", _usage, ("usage NAME",)),
        Verb("shell", "a shell beside a process of a job that runs", "inside:shell", _shell,
             ("shell NAME", "shell NAME --rank 1")),
        Verb("port-forward", "hold a port of a job on a cluster open here", "inside:port_forward", _port_forward,
             ("port-forward NAME 8080", "port-forward NAME 6006:16006 --rank 1")),
        Verb("tensorboard", "show event files of jobs, runs or folders in TensorBoard", "boards:tensorboard",
             _tensorboard, ("tensorboard NAME", "tensorboard ./runs")),
        Verb("stop", "stop a job", "jobs:stop", _stop, ("stop NAME --wait",)),
        Verb("resume", "run a failed or stopped job again, under the same run", "jobs:resume", _resume,
             ("resume NAME",)),
        Verb("delete", "delete something", "admin:delete", _delete, ("delete job NAME", "delete deployment digits/v1")),
        Verb("restore", "take the deletion of a job or run back", "admin:restore", _restore, ("restore job NAME",)),
        Verb("purge", "remove an ended job for good", "admin:purge", _purge, ("purge NAME",)),
        Verb("config", "show settings and where each comes from; set one", "admin:config", _config,
             ("config", "config experiment digits")),
        Verb("doctor", "check everything, list what is ours", "admin:doctor", _nothing, ("doctor",)),
        Verb("env", "print what other tools need to reach MLflow", "admin:env", _nothing, ("env",)),
        Verb("down", "stop the control plane; jobs and endpoints go on", "admin:down", _down, ("down", "down --all")),
        Verb("help", "show help", "admin:help_text", _help, ("help train",)),
    )
}
