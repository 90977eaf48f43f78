"""An HTTP/1.0 server by Python's own library: server-sent events and uploads. `stream_server.py PORT`"""
import hashlib
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        if self.path == "/plain":
            self.end_headers()
            self.wfile.write(b"an old answer ends with its connection")
            return
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for n in range(5):
            self.wfile.write(b"data: %d %f\n\n" % (n, time.time()))
            self.wfile.flush()
            time.sleep(0.2)

    def do_POST(self):
        # A server of HTTP/1.0 knows lengths alone.
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            piece = self.rfile.read(min(left, 1 << 16))
            left -= len(piece)
            digest.update(piece)
        body = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
