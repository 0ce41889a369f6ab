"""Which host this process is: by options, by environment, or refused."""

import pytest

from emsjax.cluster.place import Place, find_place
from emsjax.errors import UserError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)


def test_what_is_given_is_taken():
    assert find_place("[::1]:9000", 3, 2) == Place("[::1]:9000", 3, 2)
    assert (find_place("[::1]:9000", 3, 2).name, find_place("a:9000", 3, 2).port) == ("::1", 9000)


def test_the_address_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "first:9000")
    assert find_place(None, 2, 1) == Place("first:9000", 2, 1)


def test_slurm_is_found(monkeypatch):
    slurm = {
        "SLURM_JOB_ID": "26",
        "SLURM_STEP_NODELIST": "node[07-09]",
        "SLURM_NTASKS": "3",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    place = find_place(None, None, None)
    assert (place.name, place.number, place.index) == ("node07", 3, 1)
    assert place.local_devices == (0,)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ((None, None, None), "jax finds no cluster here, and coordinator_address is not given; "),
        (("a:9000", None, 0), "jax finds no cluster here, and num_processes is not given; "),
        (("a:9000", 2, None), "jax finds no cluster here, and process_id is not given; "),
        (("a", 2, 0), "coordinator_address=a is no address; give the name of host 0 and a free "),
        (("a:b", 2, 0), "coordinator_address=a:b is no address; "),
        (("a:70000", 2, 0), "coordinator_address=a:70000 is no address; "),
        (("a:9000", 0, 0), "num_processes=0 is too small; give 1 or more"),
        (("a:9000", 2, 2), "process_id=2 is none of 2 hosts; give 0 to 1"),
        (("a:9000", 2, -1), "process_id=-1 is none of 2 hosts; give 0 to 1"),
    ],
)
def test_what_is_wrong_or_missing_is_named(given, error):
    with pytest.raises(UserError, match="^" + error):
        find_place(*given)
