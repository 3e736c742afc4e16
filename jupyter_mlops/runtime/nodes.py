"""Several machines that run an attempt together: who is where, how they are reached, and over which interface."""

import json
import os
import socket
import struct
import time

from . import jobfolder

#: Seconds between two tries to reach the first machine; for how long its name may be unknown.
_AGAIN, _NAME_PATIENCE = 0.5, 60.0
#: How often the ranks of an elastic attempt may begin again because others went.
RESTARTS = 20


class Nodes:
    """This machine among the others.

    Attributes:
        node: its number, from 0. In an elastic attempt one that takes the place of a lost one has a number of its own:
            ``index + times lost * most``.
        least, most: machines that there are at least, and at most.
        text: what it was made from.
        names: host name of each machine, with ``%d`` for its number.
        host, port: of the first machine.
    """

    def __init__(self, text):
        self.text = text
        node, count, address = text.split("/", 2)
        least, _, most = count.partition(":")
        self.node, self.least, self.most = int(node), int(least), int(most or least)
        self.elastic = bool(most)
        self.names, _, port = address.rpartition(":")
        self.host, self.port = self.name(0), int(port)

    @classmethod
    def from_environment(cls):
        """From what the supervisor has left in the environment, which is taken out of it; None: one machine."""
        text = os.environ.pop(jobfolder.NODES, "")
        return cls(text) if text else None

    def name(self, node):
        """The host name of a machine."""
        return self.names % (node % self.most)

    def tensorflow(self, processes, index):
        """``TF_CONFIG`` of one worker: all addresses, and which is its own.

        Args:
            processes: workers on each machine; each has a port of its own.
            index: of the worker on this machine.
        """
        workers = ["%s:%d" % (self.name(number // processes), self.port + number)
                   for number in range(self.most * processes)]
        return tf_config(workers, self.node * processes + index)

    def torchrun(self, processes):
        """Arguments of ``torch.distributed.run`` that say where the ranks of all machines meet."""
        if not self.elastic:
            # Ranks in the order of the machines, which only the static rendezvous promises. A machine may have to wait
            # long for its place on the cluster.
            return ["--nnodes", str(self.most), "--node-rank", str(self.node), "--master-addr", self.host,
                    "--master-port", str(self.port), "--rdzv-conf", "timeout=86400", "--max-restarts", "0"]
        # With a shared store torch tells the address of rank 0 in the first round only: who joins later waits in vain.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        # The first machine holds the store. Those that take part are sorted by address: it has rank 0 as well.
        first = "true" if self.node == 0 else "false"
        where = [] if _is_here(self.host) else ["is_host=" + first]
        conf = ",".join([*where, "join_timeout=604800", "last_call_timeout=10"])
        return ["--nnodes", "%d:%d" % (self.least, self.most), "--rdzv-backend", "c10d",
                "--rdzv-endpoint", "%s:%d" % (self.host, self.port), "--rdzv-id", "job", "--rdzv-conf", conf,
                "--local-addr", self.name(self.node), "--max-restarts", str(RESTARTS)]

    def known(self, node):
        """Whether the name of a machine can be resolved: it has an address when it has its place on the cluster."""
        try:
            return bool(socket.getaddrinfo(self.name(node), self.port, type=socket.SOCK_STREAM))
        except OSError:
            return False

    def reach(self):
        """Wait until the first machine can be reached, where it is this one: until its name is known."""
        until = time.monotonic() + _NAME_PATIENCE
        while True:
            try:
                socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
                if self.node == 0 or not self.elastic:
                    return
                with socket.create_connection((self.host, self.port), 5.0):
                    return
            except socket.gaierror:
                if not self.elastic and time.monotonic() > until:
                    return  # torch's own error says more
            except OSError:
                pass
            time.sleep(_AGAIN)

    def use_interface(self):
        """Let NCCL and gloo use the interface over which the first machine is reached, unless the user has chosen."""
        name = interface(self.host, self.port)
        if name:
            os.environ.setdefault("NCCL_SOCKET_IFNAME", "=" + name)
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def tf_config(workers, index):
    """What TensorFlow's ``MultiWorkerMirroredStrategy`` reads from ``TF_CONFIG``."""
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})


def free_ports(count):
    """Ports of this machine that nobody uses now."""
    held = []
    for _ in range(count):
        s = socket.socket()
        s.bind(("127.0.0.1", 0))
        held.append(s)
    found = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return found


def _is_here(host):
    return host.startswith("127.") or host in ("localhost", "::1")


def interface(host, port):
    """The name of the interface that has the address from which ``host`` is reached; empty where it cannot be told."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except OSError:
        return ""
    for family, kind, proto, _, address in found:
        try:
            with socket.socket(family, kind, proto) as s:
                s.connect(address)  # of a datagram socket: nothing is sent, the kernel chooses the route
                mine = s.getsockname()[0]
        except OSError:
            continue
        name = _v6_name(mine) if family == socket.AF_INET6 else _v4_name(mine)
        if name:
            return name
    return ""


def _v4_name(address):
    try:
        import fcntl
    except ImportError:
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _, name in socket.if_nameindex():
            try:
                # SIOCGIFADDR
                answer = fcntl.ioctl(s.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def _v6_name(address):
    try:
        wanted = socket.inet_pton(socket.AF_INET6, address.split("%")[0]).hex()
        with open("/proc/net/if_inet6", encoding="ascii") as f:
            for line in f:
                parts = line.split()
                if parts and parts[0] == wanted:
                    return parts[-1]
    except (OSError, ValueError):
        pass
    return ""
