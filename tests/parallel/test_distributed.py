"""How a process learns its place: every source, in fake environments."""

import logging
import socket
from dataclasses import replace

import pytest

from dongwu_jax.errors import UserError
from dongwu_jax.parallel import cluster_detection
from dongwu_jax.parallel.cluster_detection import Cluster, detect_cluster
from dongwu_jax.parallel.distributed import describe, initialization_timeout

VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "1",
}
SLURM_ADDRESS = "gpu007:62346"  # 61440 + (5000 + 2) % 4096
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


def test_a_process_alone():
    assert detect_cluster({}) is None
    assert detect_cluster({**VARIABLES, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}) is None
    assert detect_cluster({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    assert detect_cluster({"JOB_COMPLETION_INDEX": "3"}) is None  # a job that says no more


def test_a_batch_script_without_srun_is_one_process(caplog):
    script = {name: value for name, value in SLURM.items() if "STEP" not in name}
    with caplog.at_level(logging.WARNING):
        assert detect_cluster({**script, "SLURM_PROCID": "0"}) is None
    assert "srun did not start this process" in caplog.text


def test_flags_win_over_variables_and_variables_over_slurm():
    both = {**SLURM, **VARIABLES}
    expected = Cluster("JAX_* variables", "10.0.0.1:1234", 4, 3, num_hosts=2)
    assert detect_cluster(both) == expected
    flags = detect_cluster(both, "head:99", 2, 1)
    assert flags == Cluster("command line", "head:99", 2, 1, num_hosts=2)
    mixed = detect_cluster(both, process_id=0)
    assert mixed == replace(expected, source="command line and JAX_* variables", process_id=0)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[007-008]", "gpu007"),
        ("gpu[7,9-12],other3", "gpu7"),
        ("gpu1,gpu2", "gpu1"),
        ("a-b-c01", "a-b-c01"),
        ("rack[1-2]n[03,05-09]", "rack1n03"),
        ("n[1-2]-ib,other", "n1-ib"),
    ],
)
def test_slurm_coordinator_is_the_first_host(nodes, first):
    cluster = detect_cluster({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert cluster == Cluster("Slurm", f"{first}:62346", 16, 11, (3,), 2)


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({}, (3,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, (3,)),
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),  # the launcher has shared them out
        ({"SLURM_GPUS_PER_TASK": "1"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x16)", "SLURM_NODEID": "11"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "12,4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (3,)),
        (
            {
                "SLURM_STEP_TASKS_PER_NODE": "2(x8)",
                "SLURM_LOCALID": "1",
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
            },
            (4, 5, 6, 7),
        ),
        ({"JAX_LOCAL_DEVICE_IDS": "2,5"}, (2, 5)),
    ],
    ids=str,
)
def test_gpus_of_a_slurm_task(changes, devices):
    cluster = detect_cluster(SLURM | changes)
    assert cluster is not None
    assert cluster.local_device_ids == devices


def test_kubernetes_index_is_the_process_id():
    pod = {name: VARIABLES[name] for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")}
    cluster = detect_cluster({**pod, "JOB_COMPLETION_INDEX": "2"})
    source = "JAX_* variables and the index of a Kubernetes job"
    assert cluster == Cluster(source, "10.0.0.1:1234", 4, 2, num_hosts=4)

    flags = detect_cluster({"JOB_COMPLETION_INDEX": "2"}, "10.0.0.1:1234", 4)
    assert flags == replace(cluster, source="command line and the index of a Kubernetes job")


def test_open_mpi():
    cluster = detect_cluster(OPEN_MPI)
    assert cluster is not None
    assert cluster.coordinator[0] == "10.96.0.1"
    assert (cluster.num_processes, cluster.process_id, cluster.local_device_ids) == (4, 1, (1,))
    assert cluster.num_hosts == 2
    one_host = detect_cluster({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert one_host is not None
    assert one_host.coordinator[0] == "localhost"
    assert one_host.coordinator[1] == cluster.coordinator[1]  # the same on all ranks


def test_mpi_that_names_no_host_needs_an_address():
    ranks = {"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "2"}
    with pytest.raises(UserError, match="--coordinator-address or JAX_COORDINATOR_ADDRESS"):
        detect_cluster(ranks)
    cluster = detect_cluster({**ranks, "JAX_COORDINATOR_ADDRESS": "head:99"})
    assert cluster == Cluster("JAX_* variables and MPI", "head:99", 4, 2, (0,), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "--process-id or JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": ""}, "--num-processes or JAX_NUM_PROCESSES"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "--coordinator-address or JAX_COORDINATOR_ADDRESS"),
        ({"JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID='one': must be a whole number"),
        ({"JAX_PROCESS_ID": "4"}, "process 4 of 4"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES='0': must be .* at least 1"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "write HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "http://a:1"}, "write HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "a:0"}, "no port has this number"),
        ({"JAX_COORDINATOR_ADDRESS": "a:70000"}, "no port has this number"),
        ({"JAX_LOCAL_DEVICE_IDS": "a"}, "JAX_LOCAL_DEVICE_IDS='a'"),
    ],
    ids=str,
)
def test_impossible_variables(changes, message):
    with pytest.raises(UserError, match=message):
        detect_cluster(VARIABLES | changes)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "[::1]", "to-myself"])
def test_loopback_is_refused_where_there_are_several_hosts(monkeypatch, host):
    real = socket.getaddrinfo
    names = {"to-myself": "127.0.1.1"}
    monkeypatch.setattr(
        cluster_detection.socket,
        "getaddrinfo",
        lambda name, port: real(names.get(name, name), port),
    )
    address = {"JAX_COORDINATOR_ADDRESS": f"{host}:99"}
    with pytest.raises(UserError, match="loopback address.*--coordinator-address"):
        detect_cluster({**SLURM, **address})
    with pytest.raises(UserError, match="loopback address.*2 in all"):
        detect_cluster({**OPEN_MPI, **address})
    everything = {**VARIABLES, **address}
    for launcher in (SLURM, OPEN_MPI):  # which gives no more than the number of hosts
        with pytest.raises(UserError, match="loopback address.*2 in all"):
            detect_cluster({**launcher, **everything})
        with pytest.raises(UserError, match="loopback address.*2 in all"):
            detect_cluster(launcher, f"{host}:99", 4, 3)
    pod = {"JAX_PROCESS_ID": "", "JOB_COMPLETION_INDEX": "2"}
    with pytest.raises(UserError, match="loopback address.*4 in all"):
        detect_cluster({**everything, **pod})
    one_host = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "16"}
    assert detect_cluster({**SLURM, **address, **one_host}) is not None
    assert detect_cluster(everything) is not None


def test_the_tasks_of_a_heterogeneous_step_need_their_number():
    with pytest.raises(UserError, match="heterogeneous step.*JAX_NUM_PROCESSES"):
        detect_cluster({**SLURM, "SLURM_PROCID": "17"})
    given = {"JAX_COORDINATOR_ADDRESS": "head:99", "JAX_NUM_PROCESSES": "20"}
    cluster = detect_cluster({**SLURM, **given, "SLURM_PROCID": "17"})
    assert cluster is not None
    assert (cluster.num_processes, cluster.process_id) == (20, 17)


def test_own_host_name_may_stand_for_a_loopback_address(monkeypatch):
    monkeypatch.setattr(cluster_detection.socket, "gethostname", lambda: "gpu007")
    loopback = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(cluster_detection.socket, "getaddrinfo", lambda *_: loopback)
    assert detect_cluster(SLURM) is not None


def test_the_decision_in_one_line():
    line = describe(Cluster("Slurm", SLURM_ADDRESS, 16, 11, (3,), 2))
    for part in ("process 11 of 16", socket.gethostname(), SLURM_ADDRESS, "devices: 3", "Slurm"):
        assert part in line


def test_initialization_timeout(monkeypatch):
    monkeypatch.delenv("JAX_DISTRIBUTED_INITIALIZATION_TIMEOUT", raising=False)
    assert initialization_timeout(None) == 300
    monkeypatch.setenv("JAX_DISTRIBUTED_INITIALIZATION_TIMEOUT", "20")
    assert initialization_timeout(None) == 20
    assert initialization_timeout(5) == 5
    monkeypatch.setenv("JAX_DISTRIBUTED_INITIALIZATION_TIMEOUT", "soon")
    with pytest.raises(UserError, match="JAX_DISTRIBUTED_INITIALIZATION_TIMEOUT=soon"):
        initialization_timeout(None)
    with pytest.raises(UserError, match="--initialization-timeout=-1"):
        initialization_timeout(-1)
