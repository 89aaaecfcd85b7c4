"""An S3 server on the loopback (moto), which counts requests and can be made to fail or to be slow."""

import socket
import sys
import time
from collections import Counter
from threading import Lock, Thread

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

ERRORS = {
    "slow down": ("503 Slow Down", "SlowDown"),
    "precondition": ("412 Precondition Failed", "PreconditionFailed"),
    "not implemented": ("501 Not Implemented", "NotImplemented"),
}


class _Silent(MotoRequestHandler):
    def log(self, *_args):
        """Nothing on standard error."""


class S3Server:
    """`requests` counts them by kind, and `paths` lists them; `fault`, if set, sees each one's kind and path
    first and may return one of ERRORS, "refuse", "lose the answer" or "ignore the condition"; `wait_s` is
    added to each.
    """

    def __init__(self):
        self.requests, self.paths, self.fault, self.wait_s = Counter(), [], None, 0.0
        self.sent = 0  # bytes of all answers
        self._at_once, self.most_at_once, self._lock = 0, 0, Lock()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Silent)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()  # s, to notice its end

    def __call__(self, environ, start_response):
        kind = environ["REQUEST_METHOD"]
        kind = "LIST" if kind == "GET" and "list-type" in environ["QUERY_STRING"] else kind
        self.requests[kind] += 1
        self.paths.append(environ["PATH_INFO"])
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self.wait_s)
        with self._lock:
            self._at_once -= 1
        fault = self.fault and self.fault(kind, environ["PATH_INFO"])
        if fault == "not implemented" and "HTTP_IF_NONE_MATCH" not in environ:
            fault = None
        if fault in ERRORS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = ERRORS[fault]
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{status}</Message></Error>".encode()]
        if fault == "ignore the condition":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        answer = [] if fault == "refuse" else [b"".join(self._app(environ, start_response))]
        self.sent += sum(map(len, answer))
        if fault in ("refuse", "lose the answer"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return answer

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


if __name__ == "__main__":  # until standard input ends; the argument: seconds for each answer
    served = S3Server()
    served.wait_s = float(sys.argv[1])
    print(served.url, flush=True)
    sys.stdin.read()
