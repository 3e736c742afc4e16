"""TensorBoard on a unix socket, for its control plane alone.

Run as a file by a Python that has the ``tensorboard`` package: ``python board.py SOCKET ARGUMENT…``, the arguments
being TensorBoard's own. Ends with SIGTERM, and when its standard input closes. Exit code 3: there is no such package.

The event files are read by TensorBoard itself: its faster data server would listen on a port without any check of who
asks, which on a shared machine is everybody.
"""

import os
import signal
import sys
import threading

MISSING = 3


def watch_parent():
    """End this process when whoever started it is gone."""
    try:
        while os.read(0, 512):
            pass
    except OSError:
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def with_its_fonts(app):
    """TensorBoard's page asks for fonts at the root of the host, where here somebody else is: make that its own."""
    def page(environ, start):
        if environ.get("PATH_INFO") not in ("/", "/index.html"):
            return app(environ, start)
        told = []
        body = b"".join(app(dict(environ, HTTP_ACCEPT_ENCODING=""), lambda *said: told.append(said)))
        body = body.replace(b"url(/font-roboto/", b"url(font-roboto/")
        status, headers = told[0][:2]
        start(status, [h for h in headers if h[0].lower() != "content-length"] + [("Content-Length", str(len(body)))])
        return [body] if environ.get("REQUEST_METHOD") != "HEAD" else []

    return page


def main(path, arguments):
    """Serve until told to stop."""
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=watch_parent, daemon=True).start()
    try:
        from tensorboard import default, program
    except ImportError as error:
        sys.stderr.write("%s\n" % error)
        return MISSING
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_):
            pass

    class Server(program.TensorBoardServer):
        def __init__(self, app, flags):
            self._server = make_server("unix://" + path, 0, with_its_fonts(app), threaded=True,
                                       request_handler=Quiet)

        def serve_forever(self):
            self._server.serve_forever()

        def get_url(self):
            return "http://localhost:1/"  # TensorBoard notes the port of it

        def print_serving_message(self):
            pass

    board = program.TensorBoard(plugins=default.get_plugins(), server_class=Server)
    board.configure(["tensorboard", "--load_fast", "false", *arguments])
    return board.main() or 0


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules have common names
    sys.exit(main(sys.argv[1], sys.argv[2:]))
