"""The network of a sandbox that the next one takes over: when it does, and that it is as good as a new one."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

import pytest
from worlds import World, run, tar_of

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.docker import keeper as keeper_module
from pytest_stagebuild.engines.docker.dialect import Dialect
from pytest_stagebuild.engines.docker.keeper import network_is_new
from pytest_stagebuild.engines.docker.podman import Podman
from pytest_stagebuild.engines.docker.sandbox import DockerSandbox
from pytest_stagebuild.engines.protocol import Sandbox
from pytest_stagebuild.errors import EngineError

pytestmark = pytest.mark.engine

NETWORK = "readlink /proc/self/ns/net"

CONNECTION = """python3 - <<'end'
import socket
there = socket.socket()
there.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
there.bind(("127.0.0.1", {port}))
there.listen()
here = socket.create_connection(there.getsockname())
other, _ = there.accept()
for one in {order}:
    one.close()
    assert one is not {order}[0] or {order}[1].recv(1) == b""
end"""

SERVERS = CONNECTION.format(port=8000, order="(other, here)")
GRPC = CONNECTION.format(port=50051, order="(other, here)")
DOWNLOADS = CONNECTION.format(port=8000, order="(here, other)")

UDP = "setsid python3 -c 'import socket, time; s = socket.socket(type=2); s.bind((\"\", 8000)); time.sleep(60)' &"
WAITS = "sleep 0.3"


@contextlib.contextmanager
def left_by(world: World, command: str, *, network: bool = False) -> Iterator[Sandbox]:
    """A sandbox whose work is done: it has run a command, and what that left running, and has been committed."""
    with world.started(network=network) as sandbox:
        assert run(sandbox, command).code == 0
        sandbox.end_processes()
        sandbox.put([tar_of({"src/record": b"1"})], later=True)
        sandbox.commit(world.name(), world.labels)
        yield sandbox


@contextlib.contextmanager
def next_to(world: World, after: Sandbox, *, network: bool = False) -> Iterator[Sandbox]:
    made = world.engine.sandbox(world.image, labels=world.labels, network=network, life=60, after=after)
    with made as sandbox:
        sandbox.start()
        yield sandbox


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("command", ["true", "echo built >/src/built", DOWNLOADS], ids=["nothing", "files", "download"])
def test_the_next_sandbox_has_the_network_of_one_that_left_nothing_in_it(docker_world, command, network):
    with (
        left_by(docker_world, command, network=network) as first,
        next_to(docker_world, first, network=network) as last,
    ):
        assert last.lender is first
        resolved = "import socket; socket.gethostbyname(socket.gethostname())"
        assert not network or run(last, f"python3 -c '{resolved}'", cwd="/").code == 0
        assert run(last, CONNECTION.format(port=8001, order="(other, here)"), cwd="/").code == 0
        assert run(last, "ls /src/built", cwd="/").code != 0  # it is the network alone


def test_it_is_the_very_network(docker_world):
    with docker_world.started() as first:
        network = run(first, NETWORK).stdout
        first.end_processes()
        first.commit(docker_world.name(), docker_world.labels)
        with next_to(docker_world, first) as last:
            assert run(last, NETWORK, cwd="/").stdout == network != b""


@pytest.mark.parametrize(
    "command",
    [
        "echo 127.0.0.1 elsewhere >>/etc/hosts",
        ": >/etc/resolv.conf",
        "echo other >/etc/hostname",
        SERVERS,
        GRPC,
        f"{UDP} {WAITS}",
    ],
    ids=["hosts", "resolv.conf", "hostname", "a server's port", "one that may be chosen", "udp"],
)
def test_a_network_in_which_something_was_left_is_not_taken_over(docker_world, command, monkeypatch):
    if command.startswith(UDP):
        # As if what runs had not been seen: nothing but a process has such a socket.
        blind = lambda self, spare: setattr(self, "_nothing_runs", True)  # noqa: E731
        monkeypatch.setattr(DockerSandbox, "_end_processes", blind)
    with left_by(docker_world, command) as first, next_to(docker_world, first) as last:
        assert last.lender is None
        assert b"elsewhere" not in run(last, "cat /etc/hosts", cwd="/").stdout


def test_a_network_is_of_the_kind_that_was_asked_for(docker_world):
    with left_by(docker_world, "true", network=True) as first, next_to(docker_world, first, network=False) as last:
        assert last.lender is None
        assert run(last, "cat /proc/net/dev | wc -l", cwd="/").stdout.strip() == b"3"  # two lines above that of lo


def test_a_sandbox_in_which_something_runs_lends_nothing(docker_world):
    with docker_world.started() as first:
        run(first, "true")
        with next_to(docker_world, first) as last:
            assert last.lender is None


def test_one_in_which_nothing_has_run_lends_its_network_to_all_that_follow(docker_world):
    with docker_world.started() as holder, next_to(docker_world, holder) as second:
        assert second.lender is holder
        assert run(second, "true", cwd="/").code == 0
        second.end_processes()
        second.commit(docker_world.name(), docker_world.labels)
        second.remove()
        with next_to(docker_world, second) as third:
            assert third.lender is holder
            assert run(third, CONNECTION.format(port=8001, order="(other, here)"), cwd="/").code == 0


def test_an_image_that_exposes_ports_and_names_volumes_may_share_a_network(docker_world, docker):
    with left_by(docker_world, "true") as first:
        config = {"ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "Labels": docker_world.labels}
        query = {"container": first.name, "repo": docker_world.name("exposed").partition(":")[0], "tag": "exposed"}
        docker._connection.ask("POST", "/commit", query=query, body=config)
        exposed = docker.find_image(docker_world.name("exposed"))
        with docker.sandbox(exposed, labels=docker_world.labels, network=False, life=60, after=first) as last:
            last.start()
            assert last.lender is first
            assert run(last, "true", cwd="/").code == 0


def test_a_lender_that_is_gone_is_done_without(docker_world):
    with left_by(docker_world, "true") as first:
        first.remove()
        with next_to(docker_world, first) as last:
            assert last.lender is None
            assert run(last, "true", cwd="/").code == 0


def test_a_lender_that_goes_when_files_were_put_is_an_error_that_says_so(docker_world):
    with left_by(docker_world, "true") as first:
        made = docker_world.engine.sandbox(
            docker_world.image, labels=docker_world.labels, network=False, life=60, after=first
        )
        with made as last:
            last.put([tar_of({"src/": b""})])
            first.remove()
            with pytest.raises(
                EngineError, match=r"could not start a container: .*(?i:no such container).*\. Run again\.$"
            ):
                last.start()


def test_every_sandbox_has_the_same_host_name(docker_world):
    with docker_world.started() as first:
        names = {run(first, "hostname").stdout, run(first, "cat /etc/hostname").stdout}
        with next_to(docker_world, first) as last, docker_world.started() as other:
            assert last.lender is None  # something has run in the first
            names |= {run(one, "hostname", cwd="/").stdout for one in (last, other)}
    with docker_world.started() as holder, next_to(docker_world, holder) as borrower:
        assert borrower.lender is holder
        assert names | {run(borrower, "hostname", cwd="/").stdout} == {b"stagebuild\n"}


def test_many_lines_in_the_hosts_file_are_not_read_on_and_on(docker_world):
    """Podman gives containers the host's, which can have 100,000: https://github.com/StevenBlack/hosts."""
    functions = keeper_module._GIVEN
    with docker_world.started() as sandbox:
        grown = "i=0; while [ $i -lt 200 ]; do echo 10.0.0.1 name$i; i=$((i + 1)); done >>/etc/hosts"
        assert run(sandbox, f"{functions}; given >/dev/null").code == 0
        assert run(sandbox, f"{grown}; {functions}; given >/dev/null").code == 1


def events_of(docker: DockerEngine, sandbox: Sandbox, since: float) -> list[str]:
    filters = json.dumps({"container": [sandbox.name]})
    query = {"since": f"{since:.6f}", "until": f"{time.time():.6f}", "filters": filters}
    whole = docker._connection.open("GET", "/events", query=query).whole()
    return [json.loads(line)["Action"] for line in whole.splitlines()]


def test_a_commit_pauses_a_sandbox_only_where_something_may_run_in_it(docker_world, docker):
    since = time.time()
    with left_by(docker_world, "true") as first, docker_world.started() as second:
        run(second, "true")
        second.commit(docker_world.name("other"), docker_world.labels)
        actions = [events_of(docker, one, since) for one in (first, second)]
    assert ["commit" in one for one in actions] == [True, True]
    assert ["pause" in one for one in actions] == [False, True]


HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
COUNTS = (
    "as given\nsockets: used 1\nTCP: inuse 0 orphan 0 tw {waiting} alloc 1 mem 130\nUDP: inuse {udp} mem 0\n"
    "RAW: inuse 0\nFRAG: inuse 0 memory 0\nTCP6: inuse {tcp6}\nUDP6: inuse 0\n"
)


def counts(*, waiting: int = 0, udp: int = 0, tcp6: int = 0, rows: tuple[str, ...] = ()) -> bytes:
    lines = "".join(
        f"   {n}: {row} 00:00000000 03:00000176 00000000     0        0 0 3\n" for n, row in enumerate(rows)
    )
    return (COUNTS.format(waiting=waiting, udp=udp, tcp6=tcp6) + (HEADER + lines if rows else "")).encode()


CHOSEN, WELL_KNOWN = "020011AC:ADDE", "0100007F:1F40"


@pytest.mark.parametrize(
    ("printed", "new"),
    [
        (counts(), True),
        (counts(waiting=1, rows=(f"{CHOSEN} 22D8B8C6:01BB 06",)), True),
        (counts(waiting=1, rows=(f"{CHOSEN} 22D8B8C6:01BB 05",)), True),
        (counts(waiting=2, rows=(f"{CHOSEN} 22D8B8C6:01BB 06",)), False),
        (counts(waiting=2, rows=(f"{CHOSEN} 22D8B8C6:01BB 06", f"{WELL_KNOWN} 0100007F:9C40 06")), False),
        (counts(waiting=16, rows=(f"{CHOSEN} 22D8B8C6:01BB 06",) * 16), True),
        (counts(waiting=17, rows=(f"{CHOSEN} 22D8B8C6:01BB 06",) * 17), False),
        (counts(waiting=1, rows=("0100007F:C383 0100007F:9C40 06",)), False),
        (counts(waiting=1), False),
        (counts(waiting=1, rows=(f"{CHOSEN} 22D8B8C6:01BB 01",)), False),
        (counts(waiting=1, rows=(f"{CHOSEN} 00000000:0000 0A",)), False),
        (counts(udp=1), False),
        (counts(tcp6=1), False),
        (counts().removeprefix(b"as given\n"), False),
        (b"as given\n", False),
        (b"", False),
        (b"as given\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 130\n", False),
        (b"as given\nno such file\n", False),
    ],
)
def test_what_counts_as_a_new_network(printed, new):
    assert network_is_new(printed) is new


@pytest.mark.parametrize(
    ("dialect", "runtime", "lends"),
    [(Dialect(), "runc", True), (Dialect(), "kata", False), (Dialect(), None, False), (Podman(), "runc", False)],
)
def test_only_the_kernels_own_networks_are_lent(dialect, runtime, lends):
    assert dialect.lends_networks({"DefaultRuntime": runtime}) is lends
