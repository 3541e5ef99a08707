"""What ``deploy/`` says must be true of the server: its flags, its metrics; and linters pass."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from server import health, metrics
from server.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[1] / "deploy"
PAGE = DEPLOY.parent / "docs" / "deploying.md"
BIN = Path(sys.executable).parent


def docker_command() -> list[str]:
    (line,) = re.findall(r"^CMD (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    command: list[str] = json.loads(line)
    return command


def compose_command() -> list[str]:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return list(compose["services"]["server"]["command"])


def container() -> Any:
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text())
    return deployment["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    "command", [docker_command(), compose_command(), container()["args"]], ids=str
)
def test_the_server_knows_every_flag(command: list[str]) -> None:
    assert "serve" == command[0]
    flags = dict(zip(command[1::2], command[2::2], strict=True))
    named = {flag.removeprefix("--").replace("-", "_"): value for flag, value in flags.items()}
    settings = load_settings(named)
    assert "0.0.0.0" == settings.host
    assert 9464 == settings.metrics_port


def test_the_builder_of_the_image_is_sent_what_it_copies() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    sent = re.findall(r"^!(.+?)(?:/\*\*)?$", ignored, re.MULTILINE)
    assert sorted(" ".join(copied).split()) == sorted(sent)


def test_the_image_has_extras_that_there_are() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", dockerfile, re.MULTILINE)
    assert '".[$EXTRAS]"' in dockerfile
    pyproject = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    given = [extras, *re.findall(r"EXTRAS=([a-z,]+)", PAGE.read_text())]
    assert {"serve,trace", "train"} <= set(given)
    for extra in ",".join(given).split(","):
        assert extra in pyproject["project"]["optional-dependencies"]


def named_in(node: Any) -> set[str]:
    """Return what a manifest expects others to have made: volumes, secrets, keys, images."""
    if isinstance(node, list):
        return set().union(*map(named_in, node))
    if not isinstance(node, dict):
        return set()
    named = {node[key] for key in ("claimName", "secretName", "image") if key in node}
    for reference in ("secretKeyRef", "secretRef", "configMap"):
        named |= set((node.get(reference) or {}).values())
    return named.union(*map(named_in, node.values()))


def test_the_page_says_how_to_make_all_that_the_manifests_expect() -> None:
    manifests = sorted(DEPLOY.glob("kubernetes/**/*.yaml"))
    expected = named_in([list(yaml.safe_load_all(path.read_text())) for path in manifests])
    assert {"candidate-search-indexes", "candidate-search-tls", "page-token-key"} <= expected
    page = PAGE.read_text()
    assert {name for name in expected if name not in page} == {"rclone/rclone:1.69.1"}


def test_the_page_names_files_that_there_are() -> None:
    paths = set(re.findall(r"deploy/[\w./-]*\w", PAGE.read_text()))
    assert "deploy/kubernetes/base" in paths
    assert [] == sorted(path for path in paths if not (DEPLOY.parent / path).exists())


def test_no_pod_beside_the_servers_passes_for_one() -> None:
    """The Service and the scrape job find servers by their label."""
    paths = [*DEPLOY.glob("kubernetes/indexes/*.yaml"), *DEPLOY.glob("kubernetes/client/*.yaml")]
    for manifest in map(yaml.safe_load, (path.read_text() for path in paths)):
        pod = manifest["spec"].get("template", manifest)
        assert pod["metadata"].get("labels", {}).get("app") != "candidate-search"


def test_an_index_is_fetched_whole_or_not_at_all(tmp_path: Path) -> None:
    patch = DEPLOY / "kubernetes" / "object-storage" / "fetch-index.yaml"
    fetch, verify = yaml.safe_load(patch.read_text())["spec"]["template"]["spec"]["initContainers"]
    indexes, store = tmp_path / "indexes", tmp_path / "store" / "v1"
    indexes.mkdir()
    store.mkdir(parents=True)
    (store / "manifest.json").write_text("{}")
    rclone = tmp_path / "rclone"
    rclone.write_text('#!/bin/sh\ntest -z "$BROKEN" || exit 1\ncp -r "$STORE${2#store:}" "$3"\n')
    rclone.chmod(0o755)
    script = fetch["args"][0].replace("/indexes", str(indexes))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "STORE": f"{tmp_path}/"}
    environment |= {"BUCKET": "store", "VERSION": "v1"}

    def run(**more: str) -> int:
        return subprocess.run(
            [*fetch["command"], script], env=environment | more, check=False
        ).returncode

    assert run(BROKEN="1") != 0
    assert not (indexes / "current").exists()
    for _ in range(2):  # a container may be started again
        assert run() == 0
        assert "{}" == (indexes / "current" / "manifest.json").read_text()
    assert ["current", "v1"] == sorted(path.name for path in indexes.iterdir())
    assert ["python", "-m", "indexer", "verify", "/indexes/current"] == verify["command"]


def test_the_workers_of_a_training_find_each_other() -> None:
    training = DEPLOY / "kubernetes" / "training"
    job = yaml.safe_load((training / "job.yaml").read_text())
    service = yaml.safe_load((training / "service.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (trainer,) = pod["containers"]
    before, _, command = trainer["args"][0].rpartition("exec ")
    assert command.startswith("python -m trainer fit ")
    for index in range(job["spec"]["completions"]):
        printed = subprocess.run(
            [*trainer["command"], f'{before}printf %s "$TF_CONFIG"'],
            env={"JOB_COMPLETION_INDEX": str(index), "PATH": "/usr/bin:/bin"},
            check=True,
            capture_output=True,
        ).stdout
        config = json.loads(printed)
        assert {"type": "worker", "index": index} == config["task"]
        # An indexed job's pods are called by its name and their index, in the service's domain.
        name, domain = job["metadata"]["name"], service["metadata"]["name"]
        port = service["spec"]["ports"][0]["port"]
        workers = [f"{name}-{one}.{domain}:{port}" for one in range(job["spec"]["completions"])]
        assert {"worker": workers} == config["cluster"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "OnFailure"


def test_the_pods_end_after_they_have_drained() -> None:
    deployment = yaml.safe_load((DEPLOY / "kubernetes" / "base" / "deployment.yaml").read_text())
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    (waits,) = re.findall(r"sleep\((\d+)\)", str(container()["lifecycle"]))
    assert grace >= int(waits) + Settings().drain_seconds + 5


def test_probes_wait_longer_than_the_command_that_asks() -> None:
    probes = [container()[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]
    (docker,) = re.findall(r"--timeout=(\d+)s", (DEPLOY / "Dockerfile").read_text())
    waits = [int(docker), *(probe.get("timeoutSeconds", 1) for probe in probes)]
    starting_python_seconds = 5
    assert min(waits) >= health.TIMEOUT_SECONDS + starting_python_seconds


@pytest.mark.parametrize("path", ["prometheus/alerts.yml", "grafana/dashboard.json"])
def test_every_metric_there_is_one_of_ours(path: str) -> None:
    text = (DEPLOY / path).read_text()
    assert yaml.safe_load(text)
    named = set(re.findall(r"candidate_search_\w+", text))
    families = {family.name for family in metrics.REGISTRY.collect()}
    suffixes = "_total|_bucket|_sum|_count"
    assert named
    assert {re.sub(f"({suffixes})$", "", name) for name in named} <= families


def test_a_server_that_nobody_scrapes_is_down() -> None:
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    rules = {rule["alert"]: rule for group in alerts["groups"] for rule in group["rules"]}
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (job,) = [one["job_name"] for one in prometheus["scrape_configs"]]
    series = f'up{{job="{job}"}}'
    assert rules["SearchDown"]["expr"] == f"{series} == 0 or absent({series})"


def test_every_alert_is_in_the_runbook() -> None:
    alerts = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    runbook = (DEPLOY.parent / "docs" / "operations.md").read_text()
    names = [rule["alert"] for group in alerts["groups"] for rule in group["rules"]]
    assert [] == [name for name in names if f"### {name}\n" not in runbook]


@pytest.mark.parametrize(
    "command",
    [
        ["hadolint", "deploy/Dockerfile"],
        ["kubernetes-validate", "--strict", *map(str, sorted(DEPLOY.glob("kubernetes/**/*.yaml")))],
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "deploy/compose.yaml"],
    ],
    ids=["hadolint", "kubernetes-validate", "check-jsonschema"],
)
def test_linters_pass(command: list[str]) -> None:
    checked = subprocess.run(
        [BIN / command[0], *command[1:]], check=False, capture_output=True, cwd=DEPLOY.parent
    )
    assert 0 == checked.returncode, checked.stdout + checked.stderr


def objects_of(kustomization: Path) -> list[Any]:
    """Return what a kustomization applies, before its patches."""
    found: list[Any] = []
    for name in yaml.safe_load(kustomization.read_text())["resources"]:
        path = (kustomization.parent / name).resolve()
        if path.is_dir():
            found += objects_of(path / "Kustomization")
        else:
            found += yaml.safe_load_all(path.read_text())
    return found


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("Kustomization")), ids=str)
def test_a_kustomization_names_what_there_is_and_forgets_nothing(path: Path) -> None:
    """No linter of the package index knows these files."""
    content = yaml.safe_load(path.read_text())
    assert "kustomize.config.k8s.io/v1beta1" == content.pop("apiVersion")
    assert "Kustomization" == content.pop("kind")
    assert content.keys() <= {"resources", "patches"}  # kustomize refuses a key that is misspelt
    folders = [(path.parent / name).resolve() for name in content["resources"]]
    assert not any(one == path.parent or one in path.parent.parents for one in folders)  # a cycle
    applied = [(one["kind"], one["metadata"]["name"]) for one in objects_of(path)]
    assert applied
    assert len(set(applied)) == len(applied)
    patches = [path.parent / one["path"] for one in content.get("patches", [])]
    for patch in patches:
        patched = yaml.safe_load(patch.read_text())
        assert (patched["kind"], patched["metadata"]["name"]) in applied
    named = {path.parent / name for name in content["resources"]} | set(patches)
    assert set(path.parent.glob("*.yaml")) <= named


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("Kustomization")), ids=str)
def test_kubectl_builds_a_kustomization(path: Path) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(path.parent)], check=False, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    kinds = [one["kind"] for one in yaml.safe_load_all(built.stdout)]
    assert sorted(kinds) == sorted(one["kind"] for one in objects_of(path))
