"""What a site lends on its command line is what a run of that family reads, with a worker and without; no other."""

import re
from pathlib import Path

import pytest
from kits import make_kit

from clients.deploy.site_processes import Options, plan_of
from clients.errors import Refusal
from clients.handshake import require_fit
from clients.node import LENT, NodeContext, node_context_of
from fedasym.settings import from_run_config
from fedasym.tasks import glue, task_of

# Of each family: what a run of it says (a site says the same), and what a run that reads otherwise says.
FAMILIES: dict[str, tuple[dict[str, str], list[dict[str, str]]]] = {
    "a text": (
        {"task": "classification", "text-columns": "review", "label-column": "stars", "labels": "1,2"},
        [{"text-columns": "diagnosis"}, {"label-column": "name"}, {"labels": "1,2,3"}, {"train-split": "all"}],
    ),
    "a pair": ({"task": "regression", "text-columns": "a,b", "label-column": "s"}, [{"text-columns": "a"}]),
    "a GLUE task": ({"task": "mrpc"}, [{"task": "sst2"}]),
    "instructions": ({"task": "instruct"}, [{"instruct-format": "chat"}, {"train-split": "all"}]),
    "chats": ({"task": "instruct", "instruct-format": "chat"}, [{"instruct-format": "alpaca"}]),
    "plain text": (
        {"task": "instruct", "instruct-format": "text", "text-columns": "page"}, [{"text-columns": "diagnosis"}],
    ),
    "documents": (
        {"task": "summarize", "text-columns": "article", "answer-column": "highlights"},
        [{"text-columns": "diagnosis"}, {"answer-column": "name"}, {"train-split": "all"}],
    ),
    "documents of a decoder alone": (
        {"task": "summarize-causal", "text-columns": "article"}, [{"answer-column": "name"}],
    ),
    "a table of images": (
        {"task": "images", "image-column": "scan", "label-column": "kind", "labels": "a,b"},
        [{"image-column": "face"}, {"label-column": "name"}, {"labels": "b,a"}, {"train-split": "all"}],
    ),
    "a folder of domains": (
        {"task": "images", "image-layout": "domains", "labels": "a,b"},
        [{"image-layout": "classes"}, {"train-split": "all"}],
    ),
    "a folder of classes": (
        {"task": "images", "image-layout": "classes", "labels": "a,b"}, [{"image-layout": "domains"}],
    ),
}  # fmt: skip


def site_of(root: Path, said: dict[str, str], worker: bool) -> NodeContext:
    """Return what the node of a site says of itself, as its command line would make it."""
    if not (root / "kit").exists():
        make_kit(root / "kit")
    options = {key.replace("-", "_"): value for key, value in said.items()}
    plan = plan_of(Options(kit=root / "kit", data=root / "data", worker=worker, **options))
    if worker:
        return plan.place
    return node_context_of(dict(re.findall(r'(\S+?)="([^"]*)"', plan.node_config)))


def run_of(said: dict[str, str]) -> dict[str, str]:
    """Return the run config of a run that says this; its model, and what judges it, are not of the site."""
    judged = {} if said["task"] in glue.TABLE else {"data": "elsewhere"}
    return {"sites": "north", "model": "of-the-run", **judged, **said}


@pytest.mark.parametrize("worker", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_site_takes_part_in_a_run_that_reads_what_it_lends_and_in_no_other(
    tmp_path: Path, family: str, worker: bool
) -> None:
    said, others = FAMILIES[family]
    place = site_of(tmp_path, said, worker)
    run = run_of({**said, "choices-data": "quiz"} if said["task"] == "instruct" else said)
    assert place.lends == task_of(from_run_config(run)).reads and {*place.lends} <= {*LENT}
    require_fit(from_run_config(run), place)
    for other in others:
        (key,) = other
        named = "text-columns" if key in ("instruct-format", "task") else key
        with pytest.raises(Refusal, match=f"otherwise than the site lends them .*{named}: '.*' there, '.*' here"):
            require_fit(from_run_config({**run, **other}), place)


def test_every_setting_that_a_family_reads_by_may_be_lent_and_of_other_families_a_site_lends_nothing(
    tmp_path: Path,
) -> None:
    runs = {name: from_run_config(run_of(said)) for name, (said, _) in FAMILIES.items()}
    assert {*LENT} == {key for run in runs.values() for key in task_of(run).reads}
    for name, (said, _) in FAMILIES.items():
        place = site_of(tmp_path, said, worker=False)
        for other, run in runs.items():
            if other != name:
                with pytest.raises(Refusal, match="otherwise than the site lends them"):
                    require_fit(run, place)
