"Manifests: valid to the letter on three versions of Kubernetes; planted mistakes, many valid and all wrong."

import gzip
from copy import deepcopy
from dataclasses import replace

import pytest
import yaml

from cv_pipeline.core.types import ConfigError
from cv_pipeline.scale.autoscale import Hours
from cv_pipeline.scale.manifest_checks import Wanted, check_manifests, schema_errors
from cv_pipeline.scale.manifests import (
    Cluster,
    manifests,
    pinned,
    read_cluster,
    read_manifests,
    write_manifests,
)
from tests.helpers.services import require

require("kubernetes_validate")
PLANT = Cluster(
    "nvcr.io/nvidia/tritonserver:26.04-py3", "models", least=2, most=10, hours=(Hours(5.75, 22, 5),)
)
FORMS = {
    "a card, KEDA": PLANT,
    "a card, Kubernetes alone": replace(PLANT, keda=False),
    "processors, KEDA": replace(PLANT, gpus=0, cpus=3.5),
    "processors, Kubernetes alone": replace(PLANT, gpus=0, keda=False),
}
WANTED = Wanted(plan=6)


@pytest.fixture(scope="module")
def taught(real_data):
    "What KEDA and KubeRay teach a cluster."
    made = []
    for path in sorted((real_data / "kubernetes").glob("*.yaml*")):
        text = gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text()
        made.append(yaml.safe_load(text))
    return made


@pytest.mark.parametrize("version", ["1.28", "1.31", "1.34"])
@pytest.mark.parametrize("form", FORMS)
def test_what_kubernetes_knows_is_valid_to_the_letter(form, version):
    for name, document in manifests(FORMS[form], 6).items():
        if document["kind"] not in ("ScaledObject", "PrometheusRule", "Kustomization"):
            assert schema_errors(document, version) == [], name


@pytest.mark.real
@pytest.mark.parametrize("form", ["a card, KEDA", "processors, KEDA"])
@pytest.mark.slow
def test_what_keda_teaches_a_cluster_is_valid_to_the_letter(form, taught):
    document = manifests(FORMS[form], 6)["scaling.yaml"]
    assert schema_errors(document, definitions=taught) == []


@pytest.mark.real
@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("maxReplica",), 9, "maxReplica"),
        (("minReplicas",), 1, "minReplicas"),
        (("maxReplicaCount",), "9", "maxReplicaCount"),
        (("scaleTargetRef",), None, "scaleTargetRef"),
        (("triggers", 0, "metadata", "threshold"), 8, "threshold"),
        (("triggers", 0, "type"), None, "type"),
        (("fallback", "replicas"), "two", "fallback.replicas"),
        (("advanced", "horizontalPodAutoscalerConfig", "behaviour"), {}, "behaviour"),
    ],
)
@pytest.mark.slow
def test_a_mistyped_scaled_object_is_refused(taught, path, value, says):
    document = deepcopy(manifests(PLANT, 6)["scaling.yaml"])
    place = document["spec"]
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    assert any(says in error for error in schema_errors(document, definitions=taught))


def test_without_a_schema_it_says_so_and_a_version_that_there_is_not_is_an_error():
    assert schema_errors(manifests(PLANT)["alerts.yaml"]) == [
        "no schema of monitoring.coreos.com/v1 PrometheusRule"
    ]
    with pytest.raises(ConfigError, match="no schemas of Kubernetes 9.99"):
        schema_errors(manifests(PLANT)["service.yaml"], "9.99")


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_passes_the_reader_with_experience(form):
    assert check_manifests(list(manifests(FORMS[form], 6).values()), WANTED, schema=lambda d: ()) == []


# A mistake: file, what is done to its document, what is said of it


def pod_of(d):
    return d["spec"]["template"]["spec"]


def triton(d):
    return pod_of(d)["containers"][0]


def only(name):
    def change(d):
        d["spec"]["triggers"] = [t for t in d["spec"]["triggers"] if t["name"] == name]

    return change


def setting(*path, value=None):
    "Sets or takes away what a path leads to."

    def change(d):
        *before, last = path
        for key in before:
            d = d[key]
        if value is None:
            del d[last]
        else:
            d[last] = value

    return change


POD = ("spec", "template", "spec")
BOX = (*POD, "containers", 0)
META = ("spec", "triggers", 2, "metadata")
PLANTED = {
    "replicas as text": ("deployment", setting("spec", "replicas", value="2"), "is not of type 'integer'"),
    "unknown key": ("deployment", setting("spec", "replica", value=2), "replica"),
    "unknown key of a pod": ("deployment", setting(*POD, "toleration", value=[]), "toleration"),
    "port as text": (
        "service",
        setting("spec", "ports", 0, "port", value="8000"),
        "is not of type 'integer'",
    ),
    "backlog alone": ("scaling", only("backlog"), "the backlog alone takes copies away"),
    "busy alone": ("scaling", only("busy"), "no signal of what waits"),
    "fewer than planned": ("scaling", setting("spec", "maxReplicaCount", value=5), "the plan asks for 6"),
    "none": ("scaling", setting("spec", "minReplicaCount", value=0), "waits for a cold start"),
    "no fallback": ("scaling", setting("spec", "fallback"), "without Prometheus"),
    "restless": (
        "scaling",
        setting(
            "spec",
            "advanced",
            "horizontalPodAutoscalerConfig",
            "behavior",
            "scaleDown",
            "stabilizationWindowSeconds",
            value=30,
        ),
        "copies go after 30 calm seconds",
    ),
    "threshold as number": (
        "scaling",
        setting("spec", "triggers", 0, "metadata", "threshold", value=8),
        "are texts",
    ),
    "no timezone": ("scaling", setting(*META, "timezone"), "cron without a timezone"),
    "no time": ("scaling", setting(*META, "start", value="0 22 * * *"), "cron begins when it ends"),
    "of nobody": (
        "scaling",
        setting("spec", "scaleTargetRef", "name", value="detectr"),
        "there is no Deployment 'detectr'",
    ),
    "fixed and scaled": ("deployment", setting("spec", "replicas", value=2), "every apply sets back"),
    "latest": ("deployment", setting(*BOX, "image", value="triton:latest"), "another one tomorrow"),
    "no tag": ("deployment", setting(*BOX, "image", value="nvcr.io:443/triton"), "another one tomorrow"),
    "no limit": ("deployment", setting(*BOX, "resources", "limits", "memory"), "a leak takes the whole node"),
    "no request": ("deployment", setting(*BOX, "resources", "requests", "memory"), "thrown out first"),
    "card not limited": (
        "deployment",
        setting(*BOX, "resources", "limits", "nvidia.com/gpu"),
        "it gets none",
    ),
    "no toleration": ("deployment", setting(*POD, "tolerations"), "nodes with a card refuse it"),
    "no readiness": ("deployment", setting(*BOX, "readinessProbe"), "while it still loads its models"),
    "probe of nothing": (
        "deployment",
        setting(*BOX, "readinessProbe", "httpGet", "port", value="web"),
        "asks port web",
    ),
    "killed while it loads": ("deployment", setting(*BOX, "startupProbe"), "kills it while it loads"),
    "ended too soon": (
        "deployment",
        setting(*POD, "terminationGracePeriodSeconds", value=5),
        "a call takes up to 10 s",
    ),
    "privileged": ("deployment", setting(*BOX, "securityContext", "privileged", value=True), "privileged"),
    "root": ("deployment", setting(*POD, "securityContext", value={"runAsUser": 0}), "it runs as root"),
    "host network": ("deployment", setting(*POD, "hostNetwork", value=True), "hostNetwork"),
    "host path": (
        "deployment",
        setting(*POD, "volumes", 0, value={"name": "models", "hostPath": {"path": "/models"}}),
        "another node has other files",
    ),
    "secret in plain text": (
        "deployment",
        setting(*BOX, "env", value=[{"name": "S3_SECRET_KEY", "value": "planted"}]),
        "S3_SECRET_KEY in plain text",
    ),
    "all at once": (
        "deployment",
        setting("spec", "strategy", value={"type": "Recreate"}),
        "takes all copies away at once",
    ),
    "own labels": (
        "deployment",
        setting("spec", "template", "metadata", "labels", value={"app": "other"}),
        "does not fit the labels of its own pods",
    ),
    "service of nobody": (
        "service",
        setting("spec", "selector", value={"app": "x"}),
        "its selector fits no pod",
    ),
    "port of nobody": (
        "service",
        setting("spec", "ports", 0, "targetPort", value=9000),
        "port 9000 is none of the container's",
    ),
    "nobody may be missing": ("budget", setting("spec", "maxUnavailable", value=0), "updates of nodes hang"),
    "budget of nobody": (
        "budget",
        setting("spec", "selector", "matchLabels", value={"app": "x"}),
        "its selector fits no pod",
    ),
    "everybody": ("network", setting("spec", "ingress", 0, "from"), "everybody may ask"),
    "policy of nobody": (
        "network",
        setting("spec", "podSelector", value={"matchLabels": {"app": "x"}}),
        "its selector fits no pod",
    ),
    "another namespace": ("service", setting("metadata", "namespace", value="default"), "several namespaces"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_refused(name):
    file, change, says = PLANTED[name]
    documents = deepcopy(manifests(PLANT, 6))
    change(documents[f"{file}.yaml"])
    known = ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy")
    schema = lambda d: schema_errors(d) if d["kind"] in known else ()
    found = check_manifests(list(documents.values()), WANTED, schema)
    assert any(says in what for _, what in found), found


def test_there_are_enough_of_them():
    assert len(PLANTED) >= 20


def test_two_autoscalers_and_two_of_a_name_and_no_policy():
    both = [*manifests(PLANT).values(), manifests(FORMS["a card, Kubernetes alone"])["scaling.yaml"]]
    assert ("Deployment/detector", "2 autoscalers pull at it: leave one") in check_manifests(both)
    twice = [*manifests(PLANT).values(), manifests(PLANT)["service.yaml"]]
    assert any("the later one wins" in what for _, what in check_manifests(twice))
    open_ = [d for d in manifests(PLANT).values() if d["kind"] != "NetworkPolicy"]
    assert [where for where, _ in check_manifests(open_)] == ["all"]


def test_none_is_allowed_where_it_is_said():
    zero = list(manifests(replace(PLANT, least=0)).values())
    assert check_manifests(zero, Wanted(zero=True)) == [] and len(check_manifests(zero)) == 1


@pytest.mark.parametrize(
    "document",
    [{}, {"kind": "Deployment"}, {"kind": "Deployment", "metadata": {}, "spec": {"template": []}}, "text"],
)
def test_what_is_no_manifest_is_named_and_ends_nothing(document):
    assert len(check_manifests([document])) >= 1


def test_files_are_written_and_read_and_many_documents_of_a_file_too(tmp_path):
    paths = write_manifests(PLANT, tmp_path / "k8s", 6)
    documents = read_manifests(tmp_path / "k8s")
    assert len(documents) == len(paths) == 7
    kustom = next(d for d in documents if d["kind"] == "Kustomization")
    assert set(kustom["resources"]) == {p.name for p in paths} - {"kustomization.yaml"}
    whole = tmp_path / "all.yaml"
    whole.write_text("# all\n---\n" + "---\n".join(p.read_text() for p in paths))
    assert len(read_manifests(whole)) == 7
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_manifests(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("image", "good"),
    [
        ("nvcr.io/nvidia/tritonserver:26.04-py3", True),
        ("triton@sha256:" + "0" * 64, True),
        ("registry:5000/triton", False),
        ("registry:5000/triton:1.0", True),
        ("triton:latest", False),
        ("", False),
    ],
)
def test_an_image_that_is_the_same_tomorrow(image, good):
    assert pinned(image) is good


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image: a:1", "claim missing"),
        ("image: a:1\nclaim: m\nmoust: 3", "unknown moust"),
        ("image: a\nclaim: m", "no tag or digest"),
        ("image: a:1\nclaim: m\nmost: -100", "most: -100"),
        ("image: a:1\nclaim: m\nbusy: 1.0", "busy: 1.0"),
        ("image: a:1\nclaim: m\nname: Big_Name", "not a valid name in Kubernetes"),
        ("image: a:1\nclaim: m\nhours: [6, 22]", "a list of {begin"),
        ("image: a:1\nclaim: m\nhours: [{begin: 22, end: 6, copies: 2}]", "a part of one day"),
        ("[]", "cluster.yaml"),
    ],
)
def test_settings_that_are_wrong_name_their_file(tmp_path, text, says):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"cluster\.yaml") as e:
        read_cluster(path)
    assert says in str(e.value)
