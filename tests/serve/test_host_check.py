"""A page whose name leads to the server's address gets nothing from it."""

import socket

import pytest
from starlette.testclient import TestClient

from emsjax.serve.__main__ import main
from emsjax.serve.app import make_app
from emsjax.serve.backend import Backend
from emsjax.serve.guards import Guarded
from emsjax.serve.hosts import is_own, own_names
from emsjax.serve.options import Options

OWN = ["localhost", "LOCALHOST.", "app.localhost", "127.0.0.1", "[::1]", "192.168.7.1", "0.0.0.0"]
OWN += ["gpu.example.org", socket.gethostname()]
OTHERS = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "example.org", ""]
OTHERS += ["notlocalhost", "127.0.0.1@evil.example", "[::1", "[evil]"]


@pytest.mark.parametrize("port", ["", ":8000"])
def test_names(port: str):
    names = own_names("127.0.0.1", ["GPU.example.org"])
    assert names is not None
    assert [host for host in OWN if not is_own(host + port, names)] == []
    assert [host for host in OTHERS if is_own(host + port, names) and host != "[::1"] == []


def test_the_address_of_the_command_is_known():
    for host, header in [("box.lan", "box.lan:80"), ("fd00::7", "[fd00::7]:80")]:
        names = Options(host=host).settings().hosts
        assert names is not None
        assert is_own(header, names)
        assert not is_own("evil.example:80", names)
    assert Options(allowed_hosts="a,*").settings().hosts is None


def test_a_request_to_another_name_is_refused(backend: Backend):
    names = own_names("127.0.0.1", ["gpu.example.org"])
    guarded = Guarded(make_app(backend), api_key=None, max_body=100, hosts=names)
    client = TestClient(guarded)
    for path in ("/", "/v1/models", "/metrics"):
        answer = client.get(path, headers={"host": "evil.example:8000"})
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "unknown_host"
        assert "--allowed-hosts" in answer.json()["error"]["message"]
        assert client.get(path, headers={"host": "gpu.example.org"}).status_code == 200
    ask = {"prompt": "w7"}
    for host, status in [("evil.example", 403), ("localhost:8000", 200)]:
        assert client.post("/tokenize", json=ask, headers={"host": host}).status_code == status


def test_slots_that_share_nothing_are_refused(capsys):
    assert main(["--no-enable-prefix-caching", "--prefix-slots", "2"]) == 2
    assert "--prefix-slots 2 keeps texts that --no-enable-prefix" in capsys.readouterr().err
    assert Options(enable_prefix_caching=False).engine()["enable_prefix_caching"] is False
    assert "enable_prefix_caching" not in Options().engine()


def test_prefix_caching_is_named_as_in_vllm(capsys):
    assert main(["--enable-prefix-caching", "--port", "-1"]) == 2
    assert "--port -1 is not a port" in capsys.readouterr().err
    assert main(["--enable-prefix-caching", "--no-enable-prefix-caching"]) == 2
    assert "--no-enable-prefix-caching contradict" in capsys.readouterr().err
