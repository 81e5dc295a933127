"""The pages of models, metrics and messages say what the code says."""

import ast
import re
from functools import cache

import pytest
import yaml

from tests.support.models_page import PAGE, cells_of, written
from tests.support.places import ROOT
from ti2v_dist.scheduling.losses import LOSSES
from ti2v_dist.telemetry.metrics import LOSS_REASONS, MEASURES, OUTCOMES, PHASES, Metrics

METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = re.findall(r"(?m)^\| `([^`]+)` \|", TROUBLES)


def test_the_tables_of_models_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "python -m tests.support.models_page writes the tables anew"
    assert "| ? |" not in page, "fill in what is said by hand"


def test_the_table_of_metrics_is_the_registrys() -> None:
    found = {}
    for family in Metrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = family.type
    rows = {name.strip("`"): cells[1] for name, cells in cells_of(METRICS).items() if name.startswith("`ti2v_")}
    assert rows == found
    named = re.findall(r"\bti2v_\w+", METRICS.replace("ti2v_dist", ""))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in named} == set(found)


def test_the_labels_of_metrics_are_those_of_the_code() -> None:
    metrics = Metrics()
    labelled = {
        "`outcome`": metrics.videos,
        "`error_type`": metrics.failures,
        "`reason`": metrics.worker_losses,
        "`phase`": metrics.frame_seconds,
        "`measure`": metrics.seams,
    }
    for label, metric in labelled.items():
        assert [f"`{name}`" for name in metric._labelnames] == [label]
        assert re.search(rf"(?m)^\| `{metric._name}(_total)?` \| {metric._type} \| {label} ", METRICS)
    assert {value for value in (*PHASES, *MEASURES, *OUTCOMES, *LOSS_REASONS) if f"`{value}`" not in METRICS} == set()
    limits = {name.strip("`"): cells[3] for name, cells in cells_of(METRICS).items() if name.strip("`") in LOSSES}
    assert limits == {name: str(policy.limit) for name, policy in LOSSES.items() if policy.limit}


def test_the_alerts_are_those_of_the_rules() -> None:
    rules = yaml.safe_load((ROOT / "dashboards" / "rules.yaml").read_text())["groups"][0]["rules"]
    listed = re.findall(r"(?m)^\| `(Ti2v\w+)` \| .* \| (\w+) \|$", METRICS)
    assert listed == [(rule["alert"], rule["labels"]["severity"]) for rule in rules]


@cache
def texts() -> list[str]:
    """Every text of the package's code, with an ellipsis for each value that is put into it."""
    found = []
    for path in sorted((ROOT / "ti2v_dist").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_stands_in_the_code(message: str) -> None:
    assert [text for text in texts() if message in text], "no text of the package holds it"


def test_the_messages_inside_of_cells_stand_in_the_code_too() -> None:
    others = [text for text in re.findall(r"`([^`]+)`", TROUBLES) if "…" in text or ";" in text]
    lacking = [one for one in others if not any(one in text for text in texts())]
    assert lacking == []
    assert len(MESSAGES) >= 40
