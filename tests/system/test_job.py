from __future__ import annotations

import pytest

from jittor_lora.system.job import Job

IN_A_JOB = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


def test_what_open_mpi_says():
    assert Job.of(IN_A_JOB) == Job(3, 4, 2, placed=False) and Job.of(IN_A_JOB).several


@pytest.mark.parametrize("environ", [{}, {**IN_A_JOB, "OMPI_COMM_WORLD_RANK": ""}, {"OMPI_COMM_WORLD_SIZE": "2"}])
def test_no_job(environ):
    assert Job.of(environ) == Job() and not Job.of(environ).several


def test_a_single_process_is_not_a_job():
    assert not Job.of({**IN_A_JOB, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}).several


@pytest.mark.parametrize("name, value, placed", [
    ("OMPI_MCA_hwloc_base_binding_policy", "none", True), ("OMPI_MCA_rmaps_base_mapping_policy", "slot:pe=4", True),
    ("OMPI_MCA_rmaps_base_mapping_policy", "ppr:1:node", False),
])
def test_explicit_binding_is_respected(name, value, placed):
    assert Job.of({**IN_A_JOB, name: value}).placed == placed
