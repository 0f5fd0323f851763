"""netlab: a laboratory of slow links on one machine.

`Netlab` gives every node a network namespace of its own and a link of the rate that was asked for, runs a command once
a rank, and counts what each link carried. Ranks of one node talk over that node's own loopback, which is not slowed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence

from trimtab.comm import transfer
from trimtab.comm.commands import Listen, Result, Run
from trimtab.comm.namespaces import Links, Loopback, abilities
from trimtab.errors import NetlabUnavailable, UsageError

MODES = ("auto", "root", "user", "loopback")
_UNITS = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_MAX_NODES = 250  # that one byte of the address can tell apart
_PORT = 29500
_CHECK_SECONDS, _CHECK_BYTES = 0.5, 64e6


class Netlab:
    """Nodes joined by slow links, for as long as the ``with`` block lasts.

    Args:
        nodes: number of nodes, at least 2.
        ranks_per_node: commands that `run` starts on each node.
        rate: of every node's link in both directions, such as ``100mbit``, or node by node, ``0:1gbit,1:50mbit``;
            a node that is not named, or None, is not slowed. Between two nodes the slower of both links decides.
        delay: seconds that every packet takes longer on its way; needs the kernel's netem.
        mode: ``root`` (namespaces, as root), ``user`` (the same inside a user namespace, without root),
            ``loopback`` (one slow loopback for all nodes, where nothing else is allowed), or the first of the former
            two that works.

    Raises:
        UsageError: a number or rate makes no sense.
        NetlabUnavailable: this machine does not allow it; the message says what is missing.

    ::

        with Netlab(nodes=2, ranks_per_node=2, rate="100mbit") as lab:
            result = lab.run([sys.executable, "train.py"])
        print(result.nodes[0].sent_bytes, result.ranks[0].stdout)
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        ranks_per_node: int = 1,
        rate: str | None = None,
        delay: float = 0.0,
        mode: str = "auto",
    ) -> None:
        if not 2 <= nodes <= _MAX_NODES:
            raise UsageError(f"expected 2 to {_MAX_NODES} nodes, got {nodes}; one rank a node makes every rank a node")
        if ranks_per_node < 1:
            raise UsageError(f"expected at least one rank a node, got {ranks_per_node}")
        if not 0 <= delay <= 10:
            raise UsageError(f"expected a delay of 0 to 10 seconds, got {delay}")
        self.nodes, self.ranks_per_node, self.delay = nodes, ranks_per_node, delay
        self.rates = parse_rates(rate, nodes)
        self.mode = _choose_mode(mode, shaped=any(self.rates), delayed=delay > 0, nodes=nodes)
        self._network: Links | Loopback | None = None
        self._port = _PORT

    def __enter__(self) -> Netlab:
        if self.mode == "loopback":
            self._network = Loopback(self.rates, delay=self.delay)
        else:
            self._network = Links(self.rates, delay=self.delay, mode=self.mode)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._network is not None
        self._network.close()
        self._network = None

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        per_node: bool = False,
        timeout: float | None = None,
        patience: float = 3.0,
        listen: Listen | None = None,
    ) -> Result:
        """Run a command once a rank (or once a node) and return when all have ended.

        The environment is this process's, then what `torch.distributed` and torchrun ask for (RANK, LOCAL_RANK,
        WORLD_SIZE, LOCAL_WORLD_SIZE, NODE_RANK, GROUP_RANK, MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME,
        NCCL_SOCKET_IFNAME, NCCL_HOSTID; PET_* with `per_node`), TRIMTAB_NETLAB_LINK, the interface whose counters are
        this node's (`trimtab.comm.counters.read`), and OMP_NUM_THREADS=1 unless it is set; `env` overrides.

        Args:
            command: program and arguments.
            env: more variables.
            per_node: start the command once a node, as torchrun wants it.
            timeout: seconds after which the run has failed.
            patience: seconds that the others have to end by themselves once a command has failed or the time is up.
            listen: called with what the commands print, while they run.
        """
        if self._network is None:
            raise UsageError("this netlab is not open; use it in a with statement")
        port = self._next_port()
        with contextlib.ExitStack() as stack:
            processes = None
            if abilities().processes is None:
                processes = self._network.keep_processes()
                stack.callback(processes.close)
            run = Run(self._network, self.nodes, listen)
            stack.callback(run.kill)
            for rank in range(self.nodes if per_node else self.nodes * self.ranks_per_node):
                node = rank if per_node else rank // self.ranks_per_node
                variables = self._variables(rank, node, port, per_node=per_node)
                prefix = self._network.prefix(node, processes)
                run.start(
                    rank, node, prefix, command, {"OMP_NUM_THREADS": "1", **os.environ, **variables, **(env or {})}
                )
            failure = run.wait(timeout, patience)
            run.kill()
            if processes is not None:
                processes.close()  # now nothing is left that could hold a pipe open
            run.drain()
        return Result(
            nodes=run.node_results(self.rates),
            ranks=run.rank_results(),
            seconds=max(rank.seconds for rank in run.rank_results()),
            mode=self.mode,
            failure=failure,
        )

    def check_rates(self) -> list[float]:
        """Return the bits a second that reach the next node from each, one after the other, over a plain connection.

        Each sends what its link should carry in half a second, and at most 64 MB.

        Raises:
            UsageError: on a shared loopback, all nodes have the same address.
            CommandFailed: a transfer failed.
        """
        if self.mode == "loopback":
            raise UsageError("rates are checked between nodes; on a shared loopback there are none")
        assert self._network is not None
        sizes = [_checked_bytes(self.rates[k], self.rates[(k + 1) % self.nodes]) for k in range(self.nodes)]
        words = [",".join(self._network.addresses), str(self._next_port()), ",".join(map(str, sizes))]
        result = self.run([sys.executable, "-I", "-S", transfer.__file__, *words], per_node=True, timeout=120).check()
        return [float(rank.stdout) for rank in result.ranks]

    def _next_port(self) -> int:
        """Return a port for the store of a run: a new one each, as the last run's may linger."""
        if isinstance(self._network, Loopback) and not self._network.private:  # others use ports there too
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                return probe.getsockname()[1]
        self._port += 1
        return self._port

    def _variables(self, rank: int, node: int, port: int, *, per_node: bool) -> dict[str, str]:
        assert self._network is not None
        interface, address = self._network.interface, self._network.addresses[0]
        variables = {
            "NODE_RANK": node,
            "GROUP_RANK": node,
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": interface,
            "NCCL_SOCKET_IFNAME": f"={interface}",
            "NCCL_HOSTID": f"netlab-node-{node}",  # else NCCL sees one machine, and goes past the link
            "TRIMTAB_NETLAB_LINK": interface,
        }
        if per_node:  # what torchrun takes for --nnodes and so on
            variables |= {
                "PET_NNODES": self.nodes,
                "PET_NODE_RANK": node,
                "PET_NPROC_PER_NODE": self.ranks_per_node,
                "PET_MASTER_ADDR": address,
                "PET_MASTER_PORT": port,
            }
        else:
            variables |= {
                "RANK": rank,
                "LOCAL_RANK": rank % self.ranks_per_node,
                "WORLD_SIZE": self.nodes * self.ranks_per_node,
                "LOCAL_WORLD_SIZE": self.ranks_per_node,
            }
        return {name: str(value) for name, value in variables.items()}


def _checked_bytes(*rates: float | None) -> int:
    rate = min((rate for rate in rates if rate is not None), default=float("inf"))
    return int(min(_CHECK_BYTES, max(rate / 8 * _CHECK_SECONDS, 1)))


def parse_rate(text: str) -> float:
    """Return the bits a second that a text such as ``100mbit`` or ``1.5gbit`` stands for.

    Raises:
        UsageError: the text is no rate, or one below 8 kbit or above 1000 gbit.
    """
    lowered = text.strip().lower()
    for unit in sorted(_UNITS, key=len, reverse=True):
        if lowered.endswith(unit):
            try:
                rate = float(lowered.removesuffix(unit)) * _UNITS[unit]
            except ValueError:
                break
            if 8e3 <= rate <= 1e12:
                return rate
            raise UsageError(f"the rate {text!r} is not between 8kbit and 1000gbit")
    raise UsageError(f"{text!r} is not a rate; expected a number and one of {', '.join(_UNITS)}, such as 100mbit")


def parse_rates(text: str | None, num_nodes: int) -> list[float | None]:
    """Return bits a second for each node from ``100mbit``, ``0:1gbit,1:50mbit`` or None; None stands for no limit.

    Raises:
        UsageError: the text is neither, or names a node that there is not, or one twice.
    """
    rates: list[float | None] = [None] * num_nodes
    if text is None:
        return rates
    if ":" not in text:
        return [parse_rate(text)] * num_nodes
    for part in text.split(","):
        name, _, rate = part.partition(":")
        if not name.strip().isdigit() or int(name) >= num_nodes:
            raise UsageError(f"{part!r} names no node; expected NODE:RATE with a node from 0 to {num_nodes - 1}")
        if rates[int(name)] is not None:
            raise UsageError(f"node {int(name)} has two rates in {text!r}")
        rates[int(name)] = parse_rate(rate)
    return rates


def _choose_mode(mode: str, *, shaped: bool, delayed: bool, nodes: int) -> str:
    """Return ``root``, ``user`` or ``loopback``.

    Raises:
        UsageError: there is no such mode.
        NetlabUnavailable: it does not work here, with the reason and what would.
    """
    if mode not in MODES:
        raise UsageError(f"there is no mode {mode!r}; expected one of {', '.join(MODES)}")
    able = abilities()
    needs = {"tools": able.tools}
    if mode == "auto":
        mode = able.namespace_mode() or "user"
    if mode != "loopback":
        needs |= {f"mode {mode}": getattr(able, mode), "veth interfaces": able.veth}
        needs |= {"a bridge for more than two nodes": able.bridge} if nodes > 2 else {}
    private = able.namespace_mode() is not None
    needs |= {"a limited rate (tbf)": able.tbf} if shaped and private else {}
    needs |= {"a delay (netem)": able.netem} if delayed and private else {}
    for what, reason in needs.items():
        if reason is not None:
            raise NetlabUnavailable(f"{what} does not work here: {reason}{_advice(what, mode)}")
    return mode


def _advice(what: str, mode: str) -> str:
    if what == "mode user":
        return (
            "; run as root, or allow user namespaces (sysctl user.max_user_namespaces, and on Ubuntu "
            "kernel.apparmor_restrict_unprivileged_userns=0), or try mode loopback, which slows this machine's own "
            "loopback and needs CAP_NET_ADMIN"
        )
    if what == "mode root":
        return "; run as root, or choose mode user"
    if "netem" in what:
        return "; load it (modprobe sch_netem), or leave out the delay"
    if "tbf" in what:
        return "; load it (modprobe sch_tbf), or leave out the rate"
    return "; try mode loopback" if what != "tools" and mode != "loopback" else ""
