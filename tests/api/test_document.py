"""The OpenAPI document suffices: who has nothing else knows what everything is, what jobs come to, and which codes there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from blockdev.api.app import create_app
from blockdev.api.recording import kind_of
from blockdev.api.schemas_results import RESULTS
from blockdev.errors import BY_CODE
from tests.cli.served import until

KINDS = {"import_snapshot": "snapshot.import", "inspect_stream": "stream.inspect", "copy_vm": "replicate.copy", "register_vms": "vm.register"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(None).openapi()  # type: ignore[arg-type]  # nobody asks it anything


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for item in document["paths"].values() for operation in item.values()]


def test_each_operation_and_each_parameter_says_what_it_is(document: dict[str, Any]) -> None:
    for operation in operations(document):
        assert operation["description"], operation["operationId"]
        for parameter in operation.get("parameters", ()):
            assert parameter["in"] == "path" or parameter["description"], (operation["operationId"], parameter["name"])


def test_what_is_referred_to_is_there(document: dict[str, Any]) -> None:
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named <= set(document["components"]["schemas"])


def test_fields_have_the_words_that_are_beside_them_in_the_code(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    snapshot, replicated = schemas["Snapshot"]["properties"], schemas["Replicated"]["properties"]
    assert snapshot["asked"]["description"] == "what consistency was asked for"
    assert snapshot["changed_bytes"]["description"].endswith("null: not counted yet")
    assert replicated["direction"]["description"] == "null: neither protected nor received"
    assert not re.search(r"\bNone\b", json.dumps(schemas))


def test_all_codes_are_named(document: dict[str, Any]) -> None:
    code = document["components"]["schemas"]["ErrorDetail"]["properties"]["code"]
    assert set(code["enum"]) == set(BY_CODE)


def test_each_long_operation_says_what_its_job_comes_to(document: dict[str, Any]) -> None:
    told = document["components"]["schemas"]["JobView"]["properties"]["result"]["description"]
    long = [operation for operation in operations(document) if "202" in operation["responses"]]
    assert len(long) == len(RESULTS)
    for operation in long:
        kind = KINDS.get(operation["operationId"]) or kind_of(operation["operationId"])
        model = RESULTS[kind].__name__
        assert f"{kind}: {model}" in told and re.search(rf"\b{model}\b|result is the {model}", operation["description"]), kind
        assert model in document["components"]["schemas"]


def test_results_of_jobs_are_of_their_schemas(rest: httpx.Client, tmp_path: Path) -> None:
    disks = [{"name": "root", "size_bytes": 1 << 20}, {"name": "data", "size_bytes": 1 << 20}]
    assert rest.post("/vms", json={"name": "resulting", "disks": disks}).status_code == 201
    for name in ("s1", "s2"):
        rest.post("/vms/resulting/snapshots", json={"name": name})
    file = {"path": str(tmp_path / "root.qcow2")}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/vms/resulting/disks/root/export", file),
        ("/vms/resulting/export", {"directory": str(tmp_path / "whole")}),
        ("/vms/resulting/disks/more/import", {"image": file}),
        ("/vms", {"name": "resulting-too", "disks": [{"name": "root", "image": file}]}),
        ("/vms/resulting/snapshots/s1/export", {"path": str(tmp_path / "s1.bds")}),
        ("/vms/resulting/snapshots/s2/export", {"path": str(tmp_path / "s2.bds"), "since": "s1"}),
        ("/streams/inspect", {"path": str(tmp_path / "s2.bds")}),
        ("/streams/import", {"path": str(tmp_path / "s1.bds"), "vm": "resulting-again"}),
        ("/pool/check", {}),
        ("/pool/scrub", {}),
        ("/pool/compact", {}),
    ]
    seen = set()
    for path, body in asked:
        started = rest.post(path, json=body)
        assert started.status_code == 202, started.text
        job = until(lambda started=started: ended(rest, started.json()["id"]), path)
        assert job["state"] == "done", job
        model = RESULTS[job["kind"]]
        whole = TypeAdapter(model)
        assert whole.dump_python(whole.validate_python(job["result"]), mode="json") == job["result"], "a field that is not described"
        seen.add(job["kind"])
    assert set(RESULTS) - seen == {"vm.register", "replicate.copy"}, "they need another machine"


def ended(rest: httpx.Client, id: str) -> Any:
    job = rest.get(f"/jobs/{id}").json()
    return job["finished"] and job
