"""netlab: links have the rates asked for, ranks find each other, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from trimtab.comm import namespaces
from trimtab.comm.netlab import Netlab, parse_rate, parse_rates
from trimtab.errors import CommandFailed, NetlabUnavailable, UsageError

ABLE = namespaces.abilities()
REASON = ABLE.tools or (ABLE.namespace_mode() is None and f"{ABLE.root}; {ABLE.user}") or ABLE.veth or ABLE.tbf
needs_namespaces = pytest.mark.skipif(REASON is not None, reason=str(REASON))
MODES = [
    pytest.param(mode, marks=pytest.mark.skipif(bool(getattr(ABLE, mode)), reason=str(getattr(ABLE, mode))))
    for mode in ("root", "user")
]
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"}


def processes_with(marker: str) -> list[str]:
    """Return the command lines of processes whose environment holds a marker, but for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(folder.name) != os.getpid() and marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


def wait_until_gone(marker: str) -> None:
    deadline = time.monotonic() + 10
    while processes_with(marker):
        assert time.monotonic() < deadline, processes_with(marker)
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("text", "rate"), [("100mbit", 100e6), ("1.5Gbit", 1.5e9), ("64 kbit", 64e3), ("8000bit", 8e3), ("1e3gbit", 1e12)]
)
def test_rates(text, rate):
    assert parse_rate(text) == rate
    assert parse_rates(f"1:{text}", 3) == [None, rate, None]
    assert parse_rates(text, 2) == [rate, rate]


@pytest.mark.parametrize(
    "text",
    ["", "100", "mbit", "100mb", "100mbps", "nanmbit", "infgbit", "-5mbit", "0mbit", "1bit", "1001gbit", "5 5mbit"],
)
def test_texts_that_are_no_rates(text):
    with pytest.raises(UsageError, match="rate"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["2:1mbit", "x:1mbit", "0:1mbit,0:2mbit", "0:1mbit,", "0:", "-1:1mbit"])
def test_rates_of_no_node(text):
    with pytest.raises(UsageError):
        parse_rates(text, 2)


@pytest.mark.parametrize(
    "settings", [{"nodes": 1}, {"nodes": 251}, {"ranks_per_node": 0}, {"delay": -1}, {"delay": 11}, {"mode": "magic"}]
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(UsageError):
        Netlab(**settings)


@pytest.mark.parametrize("interface", ["link0", "lo"])
def test_shaping(interface):
    assert namespaces.shaping(interface, None) == "true"
    text = namespaces.shaping(interface, 1e9, 0.005)
    assert text.startswith(f"tc qdisc add dev {interface} root handle 1: netem delay 5000us limit ")
    assert text.split(" && ")[1].startswith(f"tc qdisc add dev {interface} parent 1:1 tbf rate 1000000000bit burst ")
    burst = int(namespaces.shaping(interface, 1e6).split("burst ")[1].split("b ")[0])
    assert burst > (65536 if interface == "lo" else 1514)  # else the largest packet never passes


TALK = """
import json, os, socket, sys
from trimtab.comm import counters
rank, port = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
before = counters.read()
if rank == 0:
    with socket.create_server(("", port)) as server:
        for _ in range(int(os.environ["WORLD_SIZE"]) - 1):
            with server.accept()[0] as one:
                while one.recv(1 << 16):
                    pass
else:
    while True:
        try:
            one = socket.create_connection((os.environ["MASTER_ADDR"], port))
            break
        except ConnectionRefusedError:
            continue
    with one:
        one.sendall(bytes(300_000))
        one.shutdown(socket.SHUT_WR)
        one.recv(1)  # all has arrived
sent = (counters.read() - before).sent_bytes
print(json.dumps({"environment": dict(os.environ), "sent": sent, "cwd": os.getcwd()}))
"""


@needs_namespaces
@pytest.mark.parametrize("mode", MODES)
def test_ranks_talk_over_links_that_are_counted(mode, tmp_path, monkeypatch):
    """Three nodes of two ranks: those beside rank 0 reach it past the link, the others over it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Netlab(nodes=3, ranks_per_node=2, rate="0:200mbit,2:20mbit", mode=mode) as lab:
        result = lab.run([sys.executable, "-c", TALK], env={**ENVIRONMENT, "OF_MINE": "1"}, timeout=60).check()
    assert lab.mode == result.mode == mode
    told = [json.loads(rank.stdout) for rank in result.ranks]
    for rank, found in enumerate(told):
        expected = {
            "RANK": rank,
            "LOCAL_RANK": rank % 2,
            "WORLD_SIZE": 6,
            "LOCAL_WORLD_SIZE": 2,
            "NODE_RANK": rank // 2,
            "GROUP_RANK": rank // 2,
            "MASTER_ADDR": "10.77.0.1",
            "OMP_NUM_THREADS": 1,
            "OF_MINE": 1,
            "GLOO_SOCKET_IFNAME": "link0",
        }
        assert {name: found["environment"][name] for name in expected} == {k: str(v) for k, v in expected.items()}
        assert found["cwd"] == str(tmp_path)
    assert [node.bits_per_second for node in result.nodes] == [200e6, None, 20e6]
    for node in result.nodes[1:]:
        assert (
            600_000 < node.sent_bytes < 900_000
        )  # headers, and what was lost and sent again: less than a third message
        assert all(told[2 * node.node + local]["sent"] > 300_000 for local in range(2))
    assert 1_200_000 < result.nodes[0].received_bytes < 1_500_000  # four messages, not the fifth, which stays inside
    assert result.nodes[0].sent_bytes < 300_000  # acknowledgements, less than one message
    assert result.nodes[2].seconds > 0.9 * 600_000 * 8 / 20e6 - 0.05  # no link is faster than it was asked to be
    report = result.report
    assert report["ok"]
    assert report["nodes"][1]["sent_bytes"] == result.nodes[1].sent_bytes
    assert "6 ranks: ok" in repr(result)


@needs_namespaces
def test_links_reach_their_rates():
    with Netlab(nodes=3, rate="0:100mbit,1:20mbit,2:100mbit") as lab:
        reached = lab.check_rates()
    for rate, asked in zip(reached, (20e6, 20e6, 100e6), strict=True):
        assert 0.6 * asked < rate < 1.1 * asked
    with Netlab(rate="1:40mbit") as lab:  # of two links in a row the slower decides, both ways
        assert all(24e6 < rate < 44e6 for rate in lab.check_rates())


@needs_namespaces
def test_the_busiest_half_second_is_near_the_rate():
    send = TALK.replace("300_000", "2_000_000")
    with Netlab(rate="20mbit") as lab:
        result = lab.run([sys.executable, "-c", send], env=ENVIRONMENT, timeout=60).check()
    busiest = result.nodes[1].busiest_bits_per_second
    assert busiest is not None
    assert 10e6 < busiest < 23e6


@needs_namespaces
def test_a_failed_rank_ends_the_others():
    script = 'echo of $RANK; test $RANK = 1 && { echo broken >&2; exit 7; }; trap "" TERM; sleep 60 & wait; sleep 60'
    with Netlab(ranks_per_node=2) as lab:
        begun = time.monotonic()
        result = lab.run(["sh", "-c", script], patience=0.2)
        assert time.monotonic() - begun < 20
        assert not result.ok
        assert result.failure == "rank 1 on node 0 ended with exit status 7:\nbroken"
        with pytest.raises(CommandFailed, match="exit status 7:\nbroken"):
            result.check()
        assert [rank.exit_code for rank in result.ranks] == [-9, 7, -9, -9]
        assert [rank.stdout for rank in result.ranks] == [f"of {rank}\n" for rank in range(4)]
        assert lab.run(["true"]).ok  # the lab goes on
        assert "exit status 127" in str(lab.run(["no-such-command"], patience=0).failure)


@needs_namespaces
def test_a_run_out_of_time_has_failed():
    with Netlab() as lab:
        result = lab.run(["sh", "-c", "test $RANK = 0 || sleep 60"], timeout=0.3)
    assert result.failure == "after 0.3 seconds rank 1 had not ended"
    assert result.seconds < 20


@needs_namespaces
def test_survivors_have_time_to_fail_by_themselves():
    script = "test $RANK = 0 && exit 1; sleep 0.5; echo I noticed; exit 2"
    with Netlab() as lab:
        result = lab.run(["sh", "-c", script], patience=10)
    assert [rank.exit_code for rank in result.ranks] == [1, 2]
    assert result.ranks[1].stdout == "I noticed\n"


@needs_namespaces
def test_output_is_heard_line_by_line():
    heard: list[tuple[int, str, bytes]] = []
    script = "printf 'a'; sleep 0.3; printf 'b\\nc'; echo e >&2"
    with Netlab() as lab:
        lab.run(["sh", "-c", script], listen=lambda *what: heard.append(what)).check()
    for rank in range(2):
        assert [data for who, stream, data in heard if who == rank and stream == "stdout"] == [b"ab\n", b"c"]
        assert [data for who, stream, data in heard if who == rank and stream == "stderr"] == [b"e\n"]


@needs_namespaces
def test_long_output_keeps_its_end():
    script = "head -c 9000000 /dev/zero | tr '\\0' x; echo end"
    with Netlab() as lab:
        result = lab.run(["sh", "-c", script], timeout=60).check()
    for rank in result.ranks:
        assert len(rank.stdout) == 4 << 20
        assert rank.stdout.endswith("xend\n")


@needs_namespaces
def test_once_a_node_as_torchrun_wants_it():
    with Netlab(nodes=2, ranks_per_node=3) as lab:
        result = lab.run(["sh", "-c", "env | grep PET_ | sort; echo ${RANK-none}"], per_node=True).check()
    assert [rank.stdout.split() for rank in result.ranks] == [
        [
            "PET_MASTER_ADDR=10.77.0.1",
            "PET_MASTER_PORT=29501",
            "PET_NNODES=2",
            f"PET_NODE_RANK={node}",
            "PET_NPROC_PER_NODE=3",
            "none",
        ]
        for node in range(2)
    ]


@needs_namespaces
def test_nothing_outlives_a_run_or_a_lab():
    marker = uuid.uuid4().hex
    before = os.listdir("/proc/self/fd")
    with Netlab() as lab:
        lab.run(["sh", "-c", "setsid sleep 4321 > /dev/null 2>&1 & exit 0"], env={"MARKER": marker}).check()
        if ABLE.processes is None:
            wait_until_gone(marker)
        with pytest.raises(KeyboardInterrupt):
            lab.run(["sh", "-c", "echo; sleep 4321"], env={"MARKER": marker}, listen=_interrupt)
    wait_until_gone(marker)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(UsageError, match="with statement"):
        lab.run(["true"])


@needs_namespaces
def test_a_fork_that_holds_the_pipes_holds_nothing_up(monkeypatch):
    monkeypatch.setattr(namespaces, "_CLOSE_SECONDS", 0.2)
    before = set(os.listdir("/proc/self/fd"))
    with Netlab():
        for descriptor in set(os.listdir("/proc/self/fd")) - before:
            with contextlib.suppress(OSError):  # of the listing itself
                os.set_inheritable(int(descriptor), True)
        holder = subprocess.Popen(["sleep", "60"], close_fds=False)
        begun = time.monotonic()
    try:
        assert 0.2 < time.monotonic() - begun < 10
    finally:
        holder.kill()
        holder.wait()


def _interrupt(rank: int, stream: str, data: bytes) -> None:
    raise KeyboardInterrupt


@needs_namespaces
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_netlab_that_is_killed(end):
    marker = uuid.uuid4().hex
    script = "setsid sleep 4321 > /dev/null 2>&1 & echo up; sleep 4321"
    command = [sys.executable, "-m", "trimtab", "netlab", "--nodes", "3", "--rate", "10mbit", "--", "sh", "-c", script]
    environment = {**os.environ, **ENVIRONMENT, "MARKER": marker}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert len(processes_with(marker)) > 6
        process.send_signal(end)
        process.communicate()
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[end]
    wait_until_gone(marker)  # and the namespaces with the last process in them


@pytest.mark.skipif(os.geteuid() != 0 or ABLE.user is not None, reason="needs root, to become another user")
def test_an_ordinary_user():
    """Reading root's files is all that is left of root's rights, and a user namespace knows nothing of that one."""
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = [sys.executable, "-m", "trimtab", "netlab", "--nodes", "3", "--rate", "20mbit", "--json"]
    script = "grep -c link0 /proc/net/dev; tr -d '\\0' < /proc/1/cmdline; exit 0"
    environment = {**os.environ, **ENVIRONMENT, "HOME": "/tmp"}
    done = subprocess.run(
        [*ordinary, *reading, *command, "--", "sh", "-c", script],
        capture_output=True,
        text=True,
        cwd="/tmp",
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mode"] == "user"
    assert "[rank 2] 1\n" in done.stderr


@needs_namespaces
def test_a_shared_loopback_is_slow():
    with Netlab(rate="10mbit", mode="loopback") as lab:
        result = lab.run([sys.executable, "-c", TALK.replace("300_000", "1_000_000")], env=ENVIRONMENT, timeout=60)
        assert not lab.slows_machine
        with pytest.raises(UsageError, match="shared loopback"):
            lab.check_rates()
    assert result.ok, result.failure
    (link,) = result.nodes
    assert link.bits_per_second == 20e6
    assert link.sent_bytes > 1_000_000
    assert result.seconds > 0.8 * 8e6 / 20e6
    with pytest.raises(NetlabUnavailable, match="give one for all"), Netlab(rate="0:1mbit", mode="loopback"):
        pass


@pytest.mark.skipif(ABLE.user is not None or ABLE.tbf is not None, reason=f"{ABLE.user}; {ABLE.tbf}")
def test_where_no_namespace_is_allowed():
    """A user namespace that allows no further ones: only its own loopback can be slowed, and that only when asked."""
    trimtab = f"{sys.executable} -m trimtab netlab"
    marker = uuid.uuid4().hex
    script = f"""
        ip link set lo up
        echo 0 > /proc/sys/user/max_user_namespaces
        echo 0 > /proc/sys/user/max_net_namespaces
        {trimtab} -- true
        echo refused $?
        {trimtab} --mode loopback --rate 50mbit -- tc qdisc show dev lo
        echo done $?
        tc qdisc show dev lo
        {trimtab} --mode loopback --rate 50mbit -- sh -c 'echo up; exec sleep 4321' > {marker} &
        until test -s {marker}; do sleep 0.05; done
        kill -9 $!
        until tc qdisc show dev lo | grep noqueue > /dev/null; do sleep 0.05; done
        rm {marker}
        echo restored
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "MARKER": marker},
        cwd="/tmp",
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "refused 2", done.stderr
    assert "mode user does not work here" in done.stderr
    assert "max_user_namespaces" in done.stderr
    assert "tbf" in lines[1] and "rate 100Mbit" in lines[1]
    assert "this machine's own" in done.stderr or "it is this machine's own" in done.stderr
    assert lines[2] == "done 0"
    assert "noqueue" in lines[3]
    assert lines[4] == "restored"
    wait_until_gone(marker)


@needs_namespaces
@pytest.mark.skipif(ABLE.netem is not None, reason=str(ABLE.netem))
def test_delay():
    with Netlab(rate="10mbit", delay=0.05) as lab:
        begun = time.monotonic()
        lab.run([sys.executable, "-c", TALK.replace("300_000", "10")], env=ENVIRONMENT, timeout=60).check()
        assert time.monotonic() - begun > 0.1


@pytest.mark.skipif(ABLE.netem is None, reason="netem works here")
def test_a_missing_delay_is_told():
    with pytest.raises(NetlabUnavailable, match=r"a delay \(netem\) does not work here: .*; "):
        Netlab(delay=0.01)


def test_missing_tools_are_told(monkeypatch):
    namespaces.abilities.cache_clear()
    monkeypatch.setattr(namespaces.shutil, "which", lambda tool: None if tool == "tc" else f"/bin/{tool}")
    try:
        for mode in ("auto", "loopback"):
            with pytest.raises(NetlabUnavailable, match="tc not found; install iproute2"):
                Netlab(mode=mode)
    finally:
        namespaces.abilities.cache_clear()
