"""Kubernetes: a TrainJob of Kubeflow Trainer (trainer.kubeflow.org/v1alpha1, release 2.2 or newer),
and the plan beside it in a ConfigMap.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import ClassVar

import msgspec

from narrows.plan.launch.work import Device, Work
from narrows.spec.errors import BadInput
from narrows.spec.record import Record, to_toml

_FOLDER = "/narrows"
# A ConfigMap holds a megabyte (https://kubernetes.io/docs/concepts/configuration/configmap/).
_CONFIG_BYTES = 1_000_000

_TEXT = """\
# {title}
# Submit: kubectl apply -f FILE. Yours to change: resources, and what the pods need besides.
# The volume claim keeps the run in its folder runs, and the text in {data_inside}:
# a copy of {data}
# Where pods are on several nodes it must be ReadWriteMany.
apiVersion: v1
kind: ConfigMap
metadata:
  name: {label}
  namespace: {namespace}
data:
  plan.toml: |
{plan}
---
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata:
  name: {label}
  namespace: {namespace}
spec:
  runtimeRef:
    name: {runtime}
  trainer:
    image: {image}
    numNodes: {nodes}
    numProcPerNode: {per_node}
    # The runtime tells torchrun nodes, processes and addresses (PET_NNODES and so on).
    command: {command}
    env:
      - name: OMP_NUM_THREADS
        value: "{threads}"
      # What narrows measures of a pod is the pod's own.
      - name: NARROWS_HOME
        value: /tmp/narrows
    resourcesPerNode:
      # Yours to change: memory.
      requests:
        cpu: "{cores}"
      limits:
{limits}
  runtimePatches:
    - manager: narrows.launch/files
      trainingRuntimeSpec:
        template:
          spec:
            replicatedJobs:
              - name: node
                template:
                  spec:
                    template:
                      spec:
                        volumes:
                          - name: plan
                            configMap:
                              name: {label}
                          - name: kept
                            persistentVolumeClaim:
                              claimName: {claim}
                        containers:
                          - name: node
                            volumeMounts:
                              - name: plan
                                mountPath: {folder}
                              - name: kept
                                mountPath: {data}
                                subPath: {data_inside}
                              - name: kept
                                mountPath: {runs}
                                subPath: runs
"""


class Kubernetes(Record):
    """`image` has narrows in it; `claim` is the volume claim that keeps the text and the run."""

    device: Device
    image: str
    claim: str
    namespace: str = "default"
    runtime: str = "torch-distributed"

    suffix: ClassVar[str] = ".yaml"
    runs: ClassVar[str | None] = "/runs"

    def text(self, work: Work) -> str:
        """Two YAML documents; raises BadInput for paths that a pod cannot have."""
        run = PurePosixPath(work.run)
        if not run.is_absolute() or len(run.parts) < 3:
            hint = f"--run /runs/{run.name or 'NAME'}: the claim is mounted at the first folder"
            raise BadInput(f"a pod cannot keep a run in {work.run}", hint=hint)
        plan = to_toml(work.plan)
        if len(plan.encode()) > _CONFIG_BYTES:
            raise BadInput(f"the plan is {len(plan)} characters, more than a ConfigMap holds")
        there = msgspec.structs.replace(work, file=f"{_FOLDER}/plan.toml")
        limits = {"cpu": str(work.per_node * work.threads)}
        if self.device == "gpu":
            limits = {"nvidia.com/gpu": str(work.per_node)}
        quoted = {
            "namespace": self.namespace, "runtime": self.runtime, "image": self.image,
            "claim": self.claim, "label": work.label, "data": work.data, "runs": str(run.parent),
            "data_inside": f"data/{PurePosixPath(work.data).name}", "folder": _FOLDER,
            "command": ["torchrun", *there.under_torchrun],
        }  # fmt: skip
        return _TEXT.format(
            **{name: _yaml(value) for name, value in quoted.items()},
            title=work.title, threads=work.threads, cores=work.per_node * work.threads,
            nodes=work.nodes, per_node=work.per_node,
            plan="\n".join(f"    {line}".rstrip() for line in plan.splitlines()),
            limits="\n".join(f"        {name}: {_yaml(value)}" for name, value in limits.items()),
        )  # fmt: skip

    def submission(self, work: Work, file: str) -> list[str]:
        """What hands it to the cluster."""
        return ["kubectl", "apply", "-f", file]


def _yaml(value: object) -> str:
    """JSON, which YAML 1.2 reads as it is; ASCII alone, so every reader does."""
    return json.dumps(value)
