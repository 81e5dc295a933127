"""What KubeRay's objects may hold, by name, from the API reference of KubeRay 1.6; what is in a pod is Kubernetes' own.

The whole schema is a file of the operator's, of a megabyte, that no package has. So this knows which fields there are
and which must be, and of their values only those that are used here.
"""

from typing import Any

import jsonschema

STRINGS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
POD: dict[str, Any] = {
    "type": "object",
    "properties": {"metadata": {"type": "object"}, "spec": {"type": "object"}},
    "additionalProperties": False,
}


def _object(fields: dict[str, Any], required: tuple[str, ...] = (), others: str = "") -> dict[str, Any]:
    """An object of these fields, and of `others` whose values are not looked at."""
    return {
        "type": "object",
        "properties": {**{name: {} for name in others.split()}, **fields},
        "required": list(required),
        "additionalProperties": False,
    }


AUTH = _object({"mode": {"enum": ["disabled", "token"]}}, others="secretName enableK8sTokenAuth")
AUTOSCALER = _object(
    {"idleTimeoutSeconds": COUNT, "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]}},
    others="version resources image imagePullPolicy securityContext env envFrom volumeMounts",
)
HEAD = _object(
    {"template": POD, "rayStartParams": STRINGS, "labels": STRINGS, "resources": STRINGS},
    ("template",),
    "headService enableIngress serviceType",
)
WORKERS = _object(
    {
        **{"groupName": {"type": "string"}, "template": POD, "labels": STRINGS, "resources": STRINGS},
        **{"rayStartParams": STRINGS, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT},
    },
    ("groupName", "template", "minReplicas", "maxReplicas"),
    "numOfHosts idleTimeoutSeconds suspend scaleStrategy",
)
CLUSTER = _object(
    {
        **{"rayVersion": {"type": "string"}, "authOptions": AUTH, "autoscalerOptions": AUTOSCALER},
        **{"enableInTreeAutoscaling": {"type": "boolean"}, "headGroupSpec": HEAD},
        "workerGroupSpecs": {"type": "array", "items": WORKERS},
    },
    ("headGroupSpec",),
    "suspend managedBy headServiceAnnotations gcsFaultToleranceOptions upgradeStrategy",
)
JOB = _object(
    {
        **{"entrypoint": {"type": "string"}, "backoffLimit": COUNT, "ttlSecondsAfterFinished": COUNT},
        **{"shutdownAfterJobFinishes": {"type": "boolean"}, "rayClusterSpec": CLUSTER},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    },
    others="activeDeadlineSeconds submitterPodTemplate metadata clusterSelector submitterConfig managedBy "
    "deletionStrategy runtimeEnvYAML jobId entrypointResources entrypointNumCpus entrypointNumGpus suspend "
    "preRunningDeadlineSeconds",
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}


def validate(manifest: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` for what KubeRay would not take, or not know."""
    assert manifest["apiVersion"] == "ray.io/v1"
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.validate(manifest["spec"], SPECS[manifest["kind"]])
