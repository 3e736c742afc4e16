"""One connection to a port of this machine, over standard input and output.

``python -m jupyter_mlops.runtime.forward PORT`` is executed in a pod for each connection of a port that is forwarded:
what needs no more than the right to execute there works wherever jobs do.
"""

import os
import socket
import sys
import threading

PIECE = 65536
#: Seconds for which input that nobody wants is taken.
DRAIN = 2.0


def _drain():
    try:
        while os.read(0, PIECE):
            pass
    except OSError:
        pass


def main(arguments):
    """Run as ``PORT``; 0 when the other side has ended the connection."""
    try:
        there = socket.create_connection(("127.0.0.1", int(arguments[0])), timeout=10)
    except OSError as error:
        sys.stderr.write("nothing listens on port %s there: %s\n" % (arguments[0], error.strerror or error))
        sys.stderr.flush()
        # What is on its way must be taken: a kubelet tells no end while input waits.
        draining = threading.Thread(target=_drain, daemon=True)
        draining.start()
        draining.join(DRAIN)
        return 1
    there.settimeout(None)

    def send():
        try:
            while True:
                data = os.read(0, PIECE)
                if not data:
                    break
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    threading.Thread(target=send, daemon=True).start()
    try:
        while True:
            data = there.recv(PIECE)
            if not data:
                return 0
            while data:
                data = data[os.write(1, data):]
    except OSError:
        return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # the thread may still wait for input
