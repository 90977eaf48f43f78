"""Calls the server in every way and prints what came back: `grpc_client.py TARGET AUTHORITY [CA]`."""
import sys
import time

import grpc

target, authority, *ca = sys.argv[1:]
options = (("grpc.default_authority", authority), ("grpc.ssl_target_name_override", authority))
if ca:
    channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(open(ca[0], "rb").read()), options)
else:
    channel = grpc.insecure_channel(target, options)

unary = channel.unary_unary("/test.Echo/Unary")
answer, call = unary.with_call(b"abc", metadata=(("x-header", "of the client"),), timeout=10)
print("unary", answer.decode(), dict(call.trailing_metadata()).get("x-trailer"), call.code().name)
try:
    unary(b"fail", timeout=10)
except grpc.RpcError as error:
    print("fail", error.code().name, error.details(), dict(error.trailing_metadata()).get("x-trailer"))
try:
    unary(b"slow", timeout=0.5)
except grpc.RpcError as error:
    print("slow", error.code().name)
try:
    channel.unary_unary("/test.Echo/None")(b"", timeout=10)
except grpc.RpcError as error:
    print("none", error.code().name)
print("down", sum(1 for _ in channel.unary_stream("/test.Echo/Down")(b"1000", timeout=20)))
print("up", channel.stream_unary("/test.Echo/Up")((b"x" * 100_000 for _ in range(100)), timeout=20).decode())

# Both ways at once: each message is answered before the next one is sent.
sent = []


def talk():
    for n in range(50):
        while len(sent) < n:
            time.sleep(0.001)
        yield b"m%d" % n


for answer in channel.stream_stream("/test.Echo/Both")(talk(), timeout=20):
    sent.append(answer)
print("both", len(sent), sent[-1].decode())
calls = [unary.future(b"%d" % n, timeout=20) for n in range(500)]
print("many", sum(1 for n, call in enumerate(calls) if call.result().startswith(str(n)[::-1].encode())))
