"""The route from a pod to the control plane, where an operator has configured one: the pod calls.

``about`` of an order is ``{"host", "port", "fingerprint", "key"}``: where the control plane listens, SHA-256 of the
certificate that it has there, and the secret of this attempt. Each node calls with a token of its own, made of that.
The certificate is signed by nobody; it is the one of the fingerprint, or nothing is said. What follows is what
:mod:`.mirror` speaks over an execution stream, and it is the same program that speaks it. A connection that breaks, or
is not taken, is made again after a pause; meanwhile the control plane comes over the cluster's API.
"""

import hashlib
import hmac
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import threading
import time

from . import jobfolder

#: Left in the attempt's folder: why the route is not in use.
NOTE = "call.json"
#: Most bytes of the first line, in which a caller says who it is.
HELLO = 1024
#: Seconds for connecting, and for a call to be taken.
CONNECT, TAKEN = 5.0, 60.0
#: Seconds without a word after which a connection counts as lost: the other side speaks oftener.
SILENCE = 45.0
#: Seconds between two calls, doubled up to the most: where none was ever taken, and where one was.
PAUSE, PAUSE_MOST, PAUSE_KNOWN = 0.4, 30.0, 2.5
#: Bytes that are read at once, and that may wait for the mirror.
_PIECE = 256 * 1024
#: Seconds for the mirror to end.
_END = 0.5


def token(key, node):
    """What a node shows to be taken for that node of its attempt."""
    return hmac.new(key.encode(), str(node).encode(), hashlib.sha256).hexdigest()


def fingerprint(certificate):
    """Of a certificate in DER."""
    return hashlib.sha256(certificate).hexdigest()


class Caller(threading.Thread):
    """Calls as long as the pod lives.

    Args:
        about: see the module.
        job: name of the job.
        attempt: its attempt, a ``jobfolder.Attempt``.
        node: number of this pod.
    """

    def __init__(self, about, job, attempt, node):
        super().__init__(name="route", daemon=True)
        self.about = about
        self.job = job
        self.attempt = attempt
        self.node = node
        #: Set while nobody speaks over the route.
        self.idle = threading.Event()
        self.idle.set()
        self._told = None

    def run(self):
        pause, most = PAUSE, PAUSE_MOST
        while True:
            try:
                why = self._call()
            except Exception as error:  # whatever TLS, a resolver or an image without ssl come up with
                why = str(error) or type(error).__name__
            finally:
                self.idle.set()
            if why:
                self._note(why)
                pause = min(pause * 2, most)
            else:
                pause, most = PAUSE, PAUSE_KNOWN
            time.sleep(pause * random.uniform(0.7, 1.0))

    def _call(self):
        """Call once, and speak as long as the other side does; returns why it was not taken, or nothing."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # nobody has signed it: it is compared as a whole
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        where = self.about["host"], int(self.about["port"])
        with socket.create_connection(where, CONNECT) as plain, context.wrap_socket(plain) as tls:
            found = fingerprint(tls.getpeercert(binary_form=True) or b"")
            if not hmac.compare_digest(found, self.about["fingerprint"]):
                return "the certificate there is not the control plane's"
            tls.sendall(json.dumps({"job": self.job, "attempt": self.attempt.number, "node": self.node,
                                    "token": token(self.about["key"], self.node)}).encode() + b"\n")
            tls.settimeout(TAKEN)
            try:
                first = tls.recv(_PIECE)
            except (OSError, ValueError):
                first = b""
            if not first:
                return "the control plane does not take the call"
            self.idle.clear()
            self._note("")
            self._speak(tls, first)
        return ""

    def _speak(self, tls, first):
        """Have the mirror speak over a connection, until one of both ends."""
        command = [sys.executable, "-m", "jupyter_mlops.runtime.mirror", self.attempt.job.path,
                   str(self.attempt.number)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
            assert child.stdin is not None
            try:
                _carry(tls, child, first)
            except (OSError, ValueError):
                pass  # it is called again
            finally:
                child.stdin.close()
                try:
                    child.wait(_END)
                except subprocess.TimeoutExpired:
                    pass  # it is about to say something that nobody hears
                child.kill()

    def _note(self, why):
        """Leave word in the attempt's folder; it comes to the control plane as all else does."""
        why = " ".join(str(why).split())[:300]
        if why != self._told:
            self._told = why
            try:
                jobfolder.private_folder(self.attempt.path)
                jobfolder.write_json(os.path.join(self.attempt.path, NOTE), {"trouble": why}, durable=False)
            except OSError:
                self._told = None


def _carry(tls, child, first):
    """Carry bytes both ways in one thread: TLS of one connection must not be used by two."""
    import ssl

    to_child, to_peer = bytearray(first), memoryview(b"")
    _widen(child.stdout)
    tls.setblocking(False)
    for end in (child.stdin, child.stdout):
        os.set_blocking(end.fileno(), False)
    heard = time.monotonic()
    stalled = False  # TLS can go on only when something has come from the other side
    with selectors.DefaultSelector() as selector:
        while time.monotonic() - heard < SILENCE:
            wanted = {tls: selectors.EVENT_READ if len(to_child) < _PIECE or stalled else 0}
            if to_peer and not stalled:
                wanted[tls] |= selectors.EVENT_WRITE
            if not to_peer:
                wanted[child.stdout] = selectors.EVENT_READ
            if to_child:
                wanted[child.stdin] = selectors.EVENT_WRITE
            _register(selector, wanted)
            selector.select(1.0)
            stalled = False
            while len(to_child) < _PIECE:
                try:
                    data = tls.recv(_PIECE)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    break
                if not data:
                    _rest(child, to_child)
                    return
                to_child += data
                heard = time.monotonic()
            if to_child:
                try:
                    del to_child[:os.write(child.stdin.fileno(), to_child)]
                except BlockingIOError:
                    pass
            if not to_peer:
                data = _read(child.stdout.fileno())
                if data == b"":
                    return  # the mirror has ended, and all that it said has been sent
                to_peer = memoryview(data or b"")
            if to_peer:
                try:
                    to_peer = to_peer[tls.send(to_peer):]
                except ssl.SSLWantReadError:
                    stalled = True
                except ssl.SSLWantWriteError:
                    pass


def _register(selector, wanted):
    """Have a selector wait for just that."""
    for key in list(selector.get_map().values()):
        if not wanted.get(key.fileobj):
            selector.unregister(key.fileobj)
    known = {key.fileobj: key.events for key in selector.get_map().values()}
    for what, events in wanted.items():
        if events and what not in known:
            selector.register(what, events)
        elif events and known[what] != events:
            selector.modify(what, events)


def _read(fd):
    """What there is; None: nothing yet."""
    try:
        return os.read(fd, _PIECE)
    except BlockingIOError:
        return None


def _rest(child, data):
    """Let the mirror hear the last words of the other side."""
    os.set_blocking(child.stdin.fileno(), True)
    try:
        child.stdin.write(bytes(data))
    except OSError:
        pass


def _widen(pipe):
    """A larger pipe wakes us less often."""
    try:
        import fcntl

        fcntl.fcntl(pipe.fileno(), 1031, 1 << 20)  # F_SETPIPE_SZ, which Python has a name for since 3.10
    except (ImportError, OSError):
        pass
