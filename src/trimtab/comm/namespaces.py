"""Private network namespaces with rate-shaped links, which vanish with the process that made them.

A namespace has no name here: it lives as long as a process in it. That process, a *keeper*, waits for the end of its
standard input, which only its maker holds open. So namespaces, links and shaping go when the maker ends, however it
ends, and nothing is ever written to the machine's own network set-up.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence

import msgspec

from trimtab.comm import counters
from trimtab.errors import NetlabUnavailable

_TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux"}
_QUEUE_SECONDS = 0.1  # what a shaped link holds back before it drops
_BURST_SECONDS = 0.001  # what may pass at once, so that the rate holds even for short transfers
_MIN_BURST = 32 * 1024
_LOOPBACK_BURST = 128 * 1024  # must hold one packet, and those of a loopback have up to 64 KiB
_PACKETS_UNDERWAY = 100_000  # netem drops beyond; its own default of 1000 is too few for a fast link
_PROCESSES = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")
_NO_IPV6 = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"  # its chatter would be counted


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine lets this user do, each None or the reason why not."""

    tools: str | None
    root: str | None
    """Network namespaces without a user namespace."""
    user: str | None
    """Network namespaces inside a user namespace."""
    veth: str | None
    bridge: str | None
    tbf: str | None
    netem: str | None
    processes: str | None
    """Process namespaces, which end whatever a rank has started."""

    def namespace_mode(self) -> str | None:
        """Return ``root`` or ``user``, or None where no namespace can be made."""
        if self.tools:
            return None
        return "root" if self.root is None else "user" if self.user is None else None


@functools.cache
def abilities() -> Abilities:
    """Return what works here, found out by trying it in namespaces that vanish at once."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        packages = sorted({_TOOLS[tool] for tool in missing})
        reason = f"{' and '.join(missing)} not found; install {' and '.join(packages)}"
        return Abilities(**dict.fromkeys(Abilities.__struct_fields__, reason))
    root, user = (_refusal(_unshare(mode), "true") for mode in ("root", "user"))
    if root and user:
        reason = "no network namespace can be made"
        rest = dict.fromkeys(("veth", "bridge", "tbf", "netem", "processes"), reason)
        return Abilities(tools=None, root=root, user=user, **rest)
    unshare = _unshare("user" if root else "root")
    return Abilities(
        tools=None,
        root=root,
        user=user,
        veth=_refusal(unshare, "ip link add link0 type veth peer name other"),
        bridge=_refusal(unshare, "ip link add switch type bridge"),
        tbf=_refusal(unshare, "tc qdisc add dev lo root tbf rate 1mbit burst 32kb latency 50ms"),
        netem=_refusal(unshare, "tc qdisc add dev lo root netem delay 1ms"),
        processes=_refusal([*unshare, *_PROCESSES], "true"),
    )


class Keeper:
    """A process that holds namespaces open until `close`, or until the process that made it ends.

    `command` is what makes the namespaces and then runs the words that follow, such as ``unshare --net``. The shell
    command `at_end` runs when the keeper ends, for any reason but a signal to the keeper itself.

    Raises:
        NetlabUnavailable: the namespaces could not be made.
    """

    def __init__(self, command: Sequence[str], *, at_end: str = "") -> None:
        self._process = subprocess.Popen(
            [*command, "sh", "-c", f"echo; cat; {at_end}" if at_end else "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C at the terminal is for the ranks and for us
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            message = self._process.communicate()[1].decode(errors="replace").strip()
            raise NetlabUnavailable(f"'{' '.join(command)}' failed: {message}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def file(self, kind: str) -> str:
        """Return the file that stands for one of its namespaces: ``net``, ``user``, ``mnt`` or ``pid_for_children``."""
        return f"/proc/{self.pid}/ns/{kind}"

    def close(self) -> None:
        """End it, and every process inside a process namespace that it holds."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        self._process.wait()


class Links:
    """One network namespace a node, each with one interface, ``link0``; `close` removes them.

    Two nodes are joined by a cable, more by a switch in a namespace of its own. The link of node k carries
    ``rates[k]`` bits a second each way, or whatever the machine can where that is None. Every packet that a node sends
    is held back for `delay` seconds.

    Args:
        rates: bits a second, one a node, at least two nodes.
        delay: seconds.
        mode: ``root`` makes the namespaces directly, ``user`` inside a user namespace.

    Raises:
        NetlabUnavailable: something that this takes is not allowed here.
    """

    interface = "link0"

    def __init__(self, rates: Sequence[float | None], *, delay: float = 0.0, mode: str) -> None:
        self._keepers: list[Keeper] = []
        self._user: Keeper | None = None
        self.addresses = [f"10.77.0.{node + 1}" for node in range(len(rates))]
        try:
            if mode == "user":
                self._user = self._keep(_unshare("user"))
            self._nodes = [self._keep([*self._enter_user(), "unshare", "--net"]) for _ in rates]
            for node in self._nodes:
                self._run(node, f"{_NO_IPV6}; ip link set lo up")
            if len(rates) == 2:
                self._join_two(min((rate for rate in rates if rate is not None), default=None), delay)
            else:
                self._join_all(rates, delay)
            for node, address in zip(self._nodes, self.addresses, strict=True):
                self._run(node, f"ip addr add {address}/24 dev link0 && ip link set link0 up")
        except BaseException:
            self.close()
            raise

    def _join_two(self, rate: float | None, delay: float) -> None:
        one, other = self._nodes
        self._run(one, f"ip link add link0 type veth peer name link0 netns {other.pid}")
        for node in self._nodes:
            self._run(node, shaping("link0", rate, delay))

    def _join_all(self, rates: Sequence[float | None], delay: float) -> None:
        switch = self._keep([*self._enter_user(), "unshare", "--net"])
        self._run(switch, f"{_NO_IPV6}; ip link add switch type bridge && ip link set switch up")
        for number, (node, rate) in enumerate(zip(self._nodes, rates, strict=True)):
            port = f"port{number}"
            self._run(switch, f"ip link add {port} type veth peer name link0 netns {node.pid}")
            self._run(switch, f"ip link set {port} master switch && ip link set {port} up && {shaping(port, rate)}")
            self._run(node, shaping("link0", rate, delay))

    def _keep(self, command: Sequence[str]) -> Keeper:
        self._keepers.append(Keeper(command))
        return self._keepers[-1]

    def _enter_user(self) -> list[str]:
        return ["nsenter", "--preserve-credentials", f"--user={self._user.file('user')}"] if self._user else []

    def _run(self, node: Keeper, script: str) -> None:
        _sh([*(self._enter_user() or ["nsenter"]), f"--net={node.file('net')}"], script)

    def keep_processes(self) -> Keeper:
        """Return a keeper of a process namespace, which every command started by `prefix` with it ends with.

        Raises:
            NetlabUnavailable: not allowed here.
        """
        return Keeper([*self._enter_user(), *_PROCESSES])

    def prefix(self, node: int, processes: Keeper | None) -> list[str]:
        """Return the words before a command that run it on a node."""
        entered = [*(self._enter_user() or ["nsenter"]), f"--net={self._nodes[node].file('net')}"]
        if processes is not None:
            entered += [f"--mount={processes.file('mnt')}", f"--pid={processes.file('pid_for_children')}"]
        return entered

    def traffic(self, node: int) -> counters.Traffic:
        """Return what the link of a node has carried so far."""
        return counters.read("link0", process=self._nodes[node].pid)

    def close(self) -> None:
        while self._keepers:
            self._keepers.pop().close()


class Loopback:
    """All nodes on one shaped loopback interface, for machines that allow no more; `close` removes the shaping.

    What ranks of one node say to each other is shaped and counted too. The loopback is that of a new namespace where
    one can be made, else this machine's own, and then every program that talks over it is slowed.

    Args:
        rates: bits a second, one a node; their sum is what the loopback carries, as it carries every node's sending.
        delay: seconds.

    Raises:
        NetlabUnavailable: not even that is allowed.
    """

    interface = "lo"

    def __init__(self, rates: Sequence[float | None], *, delay: float = 0.0) -> None:
        self.addresses = ["127.0.0.1"] * len(rates)
        given = [rate for rate in rates if rate is not None]
        if given and len(given) < len(rates):
            raise NetlabUnavailable("on a shared loopback every node needs a rate, or none: give one for all")
        script = shaping("lo", sum(given) if given else None, delay)
        mode = abilities().namespace_mode()
        self.private = mode is not None
        self._user = mode == "user"
        if mode is not None:
            self._keeper = Keeper(_unshare(mode))
            try:
                _sh(self.prefix(0, None), f"ip link set lo up && {script}")
            except BaseException:
                self.close()
                raise
            return
        if "noqueue" not in _sh([], "tc qdisc show dev lo"):
            raise NetlabUnavailable("this machine's loopback has a queue of its own already: tc qdisc show dev lo")
        self._keeper = Keeper([], at_end="tc qdisc del dev lo root 2> /dev/null")
        try:
            _sh([], script)
        except BaseException:
            self.close()
            raise

    def keep_processes(self) -> Keeper:
        """Return a keeper of a process namespace, as `Links.keep_processes` does."""
        return Keeper([*self.prefix(0, None), *_PROCESSES])

    def prefix(self, node: int, processes: Keeper | None) -> list[str]:
        """Return the words before a command that run it here."""
        if not self.private:
            return []
        entered = ["nsenter", f"--net={self._keeper.file('net')}"]
        if self._user:
            entered += ["--preserve-credentials", f"--user={self._keeper.file('user')}"]
        if processes is not None:
            entered += [f"--mount={processes.file('mnt')}", f"--pid={processes.file('pid_for_children')}"]
        return entered

    def traffic(self, node: int) -> counters.Traffic:
        """Return what the loopback has carried so far, for all nodes together."""
        return counters.read("lo", process=self._keeper.pid)

    def close(self) -> None:
        self._keeper.close()


def shaping(interface: str, rate: float | None, delay: float = 0.0) -> str:
    """Return the shell command that limits what an interface sends to `rate` bits a second, and delays it."""
    commands, parent = [], "root"
    if delay:
        commands.append(
            f"tc qdisc add dev {interface} root handle 1: netem delay {delay * 1e6:.0f}us limit {_PACKETS_UNDERWAY}"
        )
        parent = "parent 1:1"
    if rate is not None:
        smallest = _LOOPBACK_BURST if interface == "lo" else _MIN_BURST
        burst = max(smallest, int(rate / 8 * _BURST_SECONDS))
        commands.append(
            f"tc qdisc add dev {interface} {parent} tbf rate {rate:.0f}bit burst {burst}b latency {_QUEUE_SECONDS}s"
        )
    return " && ".join(commands) or "true"


def _unshare(mode: str) -> list[str]:
    return ["unshare", "--net"] if mode == "root" else ["unshare", "--user", "--map-root-user", "--net"]


def _refusal(command: Sequence[str], script: str) -> str | None:
    """Return why a script fails, in one line, or None if it works."""
    try:
        _sh(command, script)
    except NetlabUnavailable as error:
        return str(error)
    return None


def _sh(prefix: Sequence[str], script: str) -> str:
    """Run a shell script behind a prefix and return what it printed.

    Raises:
        NetlabUnavailable: it failed.
    """
    done = subprocess.run([*prefix, "sh", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        message = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise NetlabUnavailable(f"{script if script != 'true' else ' '.join(prefix)}: {message}")
    return done.stdout
