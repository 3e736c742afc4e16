"""The verbs export and import-record: a deployment leaves as a folder, and what it did there comes back."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .arguments import Verb
from .context import Context

if TYPE_CHECKING:
    from ..client.export import Exported
    from ..client.report import Report


def export(a: argparse.Namespace, context: Context) -> Exported:
    """Make a bundle. Its keys are shown in a terminal only: a notebook would save them."""
    from ..client.export import export as hand_off

    made = hand_off(context.client, a.source, a.folder, a.deployment or "", a.name or "", a.keys, a.wheels,
                    a.force, context.say)
    if made.keys and context.face == "cli":
        made._data["keys"] = made.keys
        made.facts([(f"{name} key", value) for name, value in made.keys.items()]).note(
            "the keys are told only now; the bundle holds their hashes")
    elif made.keys:
        made.note("its keys are told only now and not shown: the attributes .key and .keys of this object")
    else:
        made.note("the keys of the endpoint open it")
    return made


def import_record(a: argparse.Namespace, context: Context) -> Report:
    """Merge the record of a bundle."""
    from ..client.export import import_record as merge

    report = merge(context.client, a.file, a.endpoint or "", context.say)
    return report.note(f"all of them: {context.command('endpoints ' + report['endpoint'] + ' --stats')}")


def _export(p: argparse.ArgumentParser) -> None:
    p.add_argument("source", metavar="WHAT", help="an endpoint, NAME@ALIAS or NAME/VERSION of a model")
    p.add_argument("-o", "--output", dest="folder", required=True, metavar="DIR", help="the folder to make")
    p.add_argument("-d", "--deployment", metavar="NAME",
                   help="which one of the endpoint (default: the one with most of the traffic)")
    p.add_argument("--name", metavar="NAME", help="of a model: the endpoint's name there (default: the model's)")
    p.add_argument("--keys", choices=("new", "same"), default="new",
                   help="new ones, told once, or the same as the endpoint's (default new)")
    p.add_argument("--wheels", action="store_true",
                   help="with its packages for this Python and platform, to be installed without network")
    p.add_argument("--force", action="store_true", help="replace a bundle that is there; its state stays")


def _import(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", metavar="ZIP", help="what python serve.py --record ZIP has written")
    p.add_argument("-e", "--endpoint", metavar="NAME", help="merge it into this endpoint (default: that of its name)")


VERBS = (
    Verb("export", "hand a deployment off as a folder that serves without network", "export:export", _export,
         ("export digits@champion -o bundle/", "export digits -o bundle/ --wheels")),
    Verb("import-record", "merge what a bundle captured and counted", "export:import_record", _import,
         ("import-record record.zip",)),
)
