"""What experiments/cluster asks of clusters, as far as it can be checked without one."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ganstyle_jax.gan import dcgan
from ganstyle_jax.loop.processes import Processes
from ganstyle_jax.loop.train import Loop

CLUSTER = Path(__file__).resolve().parents[1] / "experiments" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
MANIFESTS = sorted(CLUSTER.glob("*.yaml"))
FLAGS = {"data"} | {field.name for of in (Loop, Processes, dcgan.Config) for field in dataclasses.fields(of)}


def test_there_are_some():
    assert len(SCRIPTS) == 3 and len(MANIFESTS) == 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts(script):
    shellcheck = shutil.which("shellcheck") or Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert script.stat().st_mode & 0o111  # executable
    # Without arguments each says how it is used, before it does anything.
    said = subprocess.run(["bash", script], capture_output=True, text=True)
    assert said.returncode != 0 and "usage:" in said.stderr


@pytest.mark.parametrize("path", [*SCRIPTS, *MANIFESTS], ids=lambda path: path.name)
def test_settings_are_those_of_the_command(path):
    # Each command of ganstyle with what follows it, in comments too.
    text = path.read_text()
    given = re.findall(r"(?:ganstyle train|sbatch [^\n]*dcgan|- )([^\n]*(?:\\\n[^\n]*)*)", text)
    flags = {name.replace("-", "_") for part in given for name in re.findall(r"--([a-z][a-z0-9-]*)", part)}
    assert flags and flags <= FLAGS | {"array"}, flags - FLAGS


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests(path):
    """By JobSet's and Kubernetes' reference: what must be there, and what must agree."""
    jobset = yaml.safe_load(path.read_text())
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    name = jobset["metadata"]["name"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0  # a run that was interrupted goes on
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0  # JobSet restarts all of them, not Kubernetes a single one
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["command"][:2] == ["ganstyle", "train"] and "--resume=auto" in container["args"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    arguments = dict(argument.lstrip("-").split("=", 1) for argument in container["args"])
    shared = next(mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared")
    assert arguments["run-dir"].startswith(shared) and arguments["data"].startswith(shared)
    if "coordinator" in arguments:
        host, port = arguments["coordinator"].split(":")
        # The name that JobSet gives the first pod: JOBSET-REPLICATED_JOB-JOB_INDEX-POD_INDEX.SUBDOMAIN
        assert host == f"{name}-{replicated['name']}-0-0.{name}" and jobset["spec"]["network"]["enableDNSHostnames"]
        assert {"containerPort": int(port)} in container["ports"]
        assert int(arguments["process-count"]) == job["completions"]
        variable = re.fullmatch(r"\$\((\w+)\)", arguments["process-id"])
        assert variable and variable[1] in {entry["name"] for entry in container["env"]}
