"""`deploy/`: manifests that are valid, agree with the service, and an image whose steps work."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import httpx
import kubernetes_validate
import pytest
import yaml

from pulsecart import load_catalog
from pulsecart.app import create_app
from pulsecart.serve.environment import read_settings
from pulsecart.serve.settings import Settings

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
KUBERNETES = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
START_SECONDS = 60


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def variables(container: Any) -> dict[str, str]:
    """Return the variables of a container, without the path of a file that only exists there."""
    return {each["name"]: each["value"] for each in container["env"]}


DEPLOYMENT = read("kubernetes/deployment.yaml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
CLOUD_RUN = read("cloudrun/service.yaml")["spec"]["template"]["spec"]
(CLOUD_RUN_CONTAINER,) = CLOUD_RUN["containers"]
COMPOSE = read("compose.yaml")["services"]
TERRAFORM = {path.stem: hcl2.loads(path.read_text()) for path in sorted((DEPLOY / "terraform").glob("*.tf"))}


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_kubernetes_manifest_is_valid(path):
    """Each manifest follows the schema of its kind, without unknown fields."""
    kubernetes_validate.validate(yaml.safe_load(path.read_text()), kubernetes_validate.latest_version(), strict=True)


def test_kustomization_lists_all_manifests():
    """Kustomize applies all of them, and builds."""
    assert sorted(read("kubernetes/kustomization.yaml")["resources"]) == [path.name for path in KUBERNETES]
    if kubectl := shutil.which("kubectl"):
        built = subprocess.run(
            [kubectl, "kustomize", DEPLOY / "kubernetes"], capture_output=True, check=True, text=True
        )
        assert len(list(yaml.safe_load_all(built.stdout))) == len(KUBERNETES)
        assert "image: us-central1-docker.pkg.dev/shop-project/images/pulsecart:latest" in built.stdout


def test_selectors_and_ports_fit_together():
    """What the Service, autoscaler, budget and policy select is the Deployment's pods, and their ports exist."""
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    service, budget = read("kubernetes/service.yaml"), read("kubernetes/pdb.yaml")
    policy, scaler = read("kubernetes/networkpolicy.yaml"), read("kubernetes/hpa.yaml")
    selectors = (
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        budget["spec"]["selector"]["matchLabels"],
        policy["spec"]["podSelector"]["matchLabels"],
    )
    for selector in selectors:
        assert selector.items() <= labels.items()
    assert scaler["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    named = [port["targetPort"] for port in service["spec"]["ports"]]
    named += [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert set(named) == ports.keys()
    environment = variables(CONTAINER)
    assert (ports["http"], ports["metrics"]) == (int(environment["PORT"]), int(environment["PULSECART_METRICS_PORT"]))
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == environment["PULSECART_METRICS_PORT"]
    assert POD["serviceAccountName"] == read("kubernetes/serviceaccount.yaml")["metadata"]["name"]


def test_pods_are_restricted():
    """The pod meets the restricted level of Kubernetes' pod security standards, and its root is read-only."""
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_pods_have_time_to_drain():
    """The grace period covers the delay, the requests, the messages in flight and the telemetry."""
    from pulsecart.serve.server import GRACE_SECONDS
    from pulsecart.telemetry.export import FLUSH_SECONDS
    from pulsecart.transports.pubsub.publisher import DRAIN_SECONDS

    delay = read_settings({**variables(CONTAINER), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}).drain_delay
    assert POD["terminationGracePeriodSeconds"] > delay + GRACE_SECONDS + DRAIN_SECONDS + FLUSH_SECONDS


TERRAFORM_VARIABLES = {
    "GCP_PROJECT_ID": "shop-project",
    "PULSECART_ENDPOINT": "us-central1-pubsub.googleapis.com:443",
    "PULSECART_TOPICS": "pulsecart.user-actions=shop.clicks",
}


def of_terraform() -> tuple[dict[str, str], list[str]]:
    """Return the variables of Cloud Run's container, and the paths of its probes."""
    text = (DEPLOY / "terraform/cloudrun.tf").read_text()
    pairs = re.findall(r'name  = "([A-Z_]+)"\n\s+value = (.+)', text)
    found = {name: TERRAFORM_VARIABLES.get(name, value.strip('"')) for name, value in pairs}
    return found, re.findall(r'path = "(/[a-z?=]+)"', text)


ENVIRONMENTS = {
    "kubernetes": {**variables(CONTAINER), "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    "cloudrun": {**variables(CLOUD_RUN_CONTAINER), "K_SERVICE": "pulsecart", "PORT": "8080"},
    "terraform": {**of_terraform()[0], "K_SERVICE": "pulsecart", "PORT": "8080"},
    "compose": COMPOSE["pulsecart"]["environment"],
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_settings_are_accepted(name):
    """The service takes the variables, and listens where the platform looks for it."""
    settings = read_settings(ENVIRONMENTS[name])
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert settings.transport == ("emulator" if name == "compose" else "pubsub")
    assert settings.sources in ("", "/etc/pulsecart/sources.toml")


@pytest.mark.parametrize("name", ["kubernetes", "cloudrun"])
def test_sources_are_mounted(name):
    """The file of sources is in a volume, which comes from a secret."""
    pod, container = (POD, CONTAINER) if name == "kubernetes" else (CLOUD_RUN, CLOUD_RUN_CONTAINER)
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert mount["name"] == volume["name"]
    assert variables(container)["PULSECART_SOURCES"].startswith(mount["mountPath"])
    assert "secret" in volume


def test_probes_ask_for_routes_that_exist():
    """Every probe's path is a route of the service, and none depends on the broker."""
    routes = {route.path for route in create_app(Settings(transport="memory")).routes}
    containers = (CONTAINER, CLOUD_RUN_CONTAINER)
    paths = [probe["httpGet"]["path"] for each in containers for key, probe in each.items() if key.endswith("Probe")]
    paths += of_terraform()[1]
    assert len(paths) == 7
    for path in paths:
        assert path.partition("?")[0] in routes
        assert path in ("/livez", "/readyz?exclude=broker")


def test_terraform_has_the_topics_of_the_catalog():
    """The default of the variable has each topic of the catalog once, and each file is HCL."""
    (topics,) = [
        body["default"]
        for block in TERRAFORM["variables"]["variable"]
        for name, body in block.items()
        if name.strip('"') == "topics"
    ]
    assert {key.strip('"') for key in topics} == set(load_catalog().topics)


def test_terraform_grants_the_service_only_to_publish():
    """Of Pub/Sub's roles the service has the publisher's, on topics and not on the project."""
    resources = [resource for file in TERRAFORM.values() for resource in file.get("resource", [])]
    kinds = [kind.strip('"') for resource in resources for kind in resource]
    assert "google_project_iam_member" not in kinds
    text = "".join(path.read_text() for path in (DEPLOY / "terraform").glob("*.tf"))
    roles = set(re.findall(r'"(roles/[a-z.A-Z]+)"', text))
    assert roles == {
        "roles/pubsub.publisher",
        "roles/pubsub.subscriber",
        "roles/run.invoker",
        "roles/secretmanager.secretAccessor",
    }
    if terraform := shutil.which("terraform"):
        subprocess.run([terraform, "fmt", "-check", DEPLOY / "terraform"], check=True, capture_output=True)


def test_compose_file_is_valid(tmp_path):
    """It follows the schema of the Compose specification, which finds a misspelt key."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*command, DEPLOY / "compose.yaml"], check=True)
    broken = tmp_path / "compose.yaml"
    broken.write_text((DEPLOY / "compose.yaml").read_text().replace("cap_drop:", "cap_dropp:"))
    found = subprocess.run([*command, broken], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "'cap_dropp' was unexpected" in found.stdout


def test_compose_files_and_ports_exist():
    """What is mounted or built exists, what is depended on is a service, and ports are on loopback only."""
    for service in COMPOSE.values():
        for volume in service.get("volumes", []):
            assert (DEPLOY / volume.partition(":")[0]).is_file()
        assert set(service.get("depends_on", [])) <= COMPOSE.keys()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    build = COMPOSE["pulsecart"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    target = read("monitoring/prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == [f"pulsecart:{COMPOSE['pulsecart']['environment']['PULSECART_METRICS_PORT']}"]


def instructions() -> Iterator[tuple[str, str]]:
    for line in (DEPLOY / "Dockerfile").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest


def test_image_is_not_root_and_gets_signals():
    """The last user is a number other than 0, and the entry point is in exec form."""
    found = dict(instructions())
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", found["USER"])
    assert found["ENTRYPOINT"] == '["pulsecart"]'
    assert found["CMD"] == '["serve"]'


NOBODY: dict[str, Any] = {"user": 65532, "group": 65532, "extra_groups": []} if os.getuid() == 0 else {}


def interpreter() -> str:
    """Return a Python that the image's user can run, too: this one may be in the home of another user."""
    for found in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([found, "-c", "import ensurepip"], check=True, cwd="/", **NOBODY)
        except (OSError, subprocess.CalledProcessError):
            continue
        return found
    pytest.skip("needs a Python that every user can run, with the package venv")


def test_steps_of_the_image_work(tmp_path_factory):
    """The build stage's steps make an environment that is compiled and has no pip; another user serves from it."""
    root = tmp_path_factory.mktemp("image")
    context = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    source, app = root / "src", root / "app"
    source.mkdir()
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            *files, target = rest.split()
            for file in files:
                assert file in context, f".dockerignore leaves {file} out"
                to = source / (file if target == "./" else target)
                to.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (REPOSITORY / file).is_dir() else shutil.copy
                copy(REPOSITORY / file, to)
        elif name == "RUN":
            command = re.sub(r"(?<![\w.])/app\b", str(app), rest)
            python = shlex.quote(interpreter())
            command = re.sub(r"^python3 ", f"{python} ", command)
            done = subprocess.run(command, shell=True, cwd=source, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    shutil.rmtree(source)
    packages = next((app / "lib").glob("python3*/site-packages"))
    assert not (packages / "pip").exists()
    assert list((packages / "pulsecart/__pycache__").glob("producer.*.pyc"))

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    root.chmod(0o755)
    for parent in (root.parent, root.parent.parent):
        parent.chmod(0o755)
    environment = {"PATH": f"{app / 'bin'}:/usr/bin", "PYTHONDONTWRITEBYTECODE": "1", "PORT": str(port)}
    with subprocess.Popen(
        ["pulsecart", "serve"],
        executable=app / "bin/pulsecart",
        env=environment,
        cwd="/",
        stderr=subprocess.PIPE,
        text=True,
        **NOBODY,
    ) as process:
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                try:
                    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
                    break
                except httpx.TransportError:
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    assert time.monotonic() < end, "it did not start in time"
                    time.sleep(0.1)
        finally:
            process.terminate()
        assert process.wait(30) == 0
