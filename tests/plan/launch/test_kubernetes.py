from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from narrows.plan.launch.kubernetes import Kubernetes
from narrows.plan.launch.work import Work
from narrows.spec import record
from narrows.spec.errors import BadInput
from narrows.spec.plan import Plan

MakeWork = Callable[..., Work]
yaml = pytest.importorskip("yaml")
TARGET = Kubernetes(device="gpu", image="ghcr.io/me/narrows:1", claim="plays", namespace="lab")


def documents(work: Work, target: Kubernetes = TARGET) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the TrainJob."""
    config, job = yaml.safe_load_all(target.text(work))
    return config, job


def test_the_plan_travels_whole(make_work: MakeWork) -> None:
    work = make_work(run="/runs/plays")
    config, _ = documents(work)
    assert record.loads(Plan, config["data"]["plan.toml"]) == work.plan


def test_the_job_is_what_was_asked(make_work: MakeWork) -> None:
    config, job = documents(make_work(run="/runs/plays"))
    assert job["metadata"] == {"name": "narrows-plays-of-1600", "namespace": "lab"}
    trainer = job["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["command"] == [
        "torchrun", "--max-restarts", "3", "--no-python", "--", "narrows", "train",
        "/narrows/plan.toml", "--run", "/runs/plays",
    ]  # fmt: skip
    assert trainer["resourcesPerNode"] == {
        "requests": {"cpu": "12"}, "limits": {"nvidia.com/gpu": "4"},
    }  # fmt: skip
    jobs = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]
    pod = jobs["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    mounts = {each["mountPath"]: each["name"] for each in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/narrows": "plan", "/data": "kept", "/runs": "kept"}
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]


def test_processors_alone_ask_for_no_gpu(make_work: MakeWork) -> None:
    target = Kubernetes(device="cpu", image="i", claim="c")
    _, job = documents(make_work(run="/runs/plays"), target)
    assert job["spec"]["trainer"]["resourcesPerNode"]["limits"] == {"cpu": "12"}


@pytest.mark.parametrize("run", ["runs/plays", "/plays"])
def test_a_run_needs_a_folder_to_mount_the_claim_at(run: str, make_work: MakeWork) -> None:
    with pytest.raises(BadInput, match="a pod cannot keep a run") as caught:
        TARGET.text(make_work(run=run))
    assert caught.value.hint is not None and "--run /runs/plays" in caught.value.hint


def test_a_plan_larger_than_a_config_map_is_refused(make_work: MakeWork) -> None:
    work = make_work(run="/runs/plays")
    long = msgspec.structs.replace(work.plan, why={"model.width": "because " * 200_000})
    with pytest.raises(BadInput, match="more than a ConfigMap holds"):
        TARGET.text(msgspec.structs.replace(work, plan=long))


def test_kubeflows_own_models_accept_it(make_work: MakeWork) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    config, job = documents(make_work(run="/runs/plays"))
    read = models.TrainerV1alpha1TrainJob.from_dict(job)
    # They drop what they do not know: nothing may be lost.
    assert read.to_dict() == job
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(config, "1.31", strict=True)
