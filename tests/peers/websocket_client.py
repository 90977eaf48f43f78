"""`websocket_client.py URL PORT [CA]`: messages, pings, silence with the server's pings, a proper end."""
import asyncio
import ssl
import sys
import time

import websockets


async def main(url, port, ca=None):
    context = ssl.create_default_context(cafile=ca) if ca else None
    options = dict(host="127.0.0.1", port=int(port), ping_interval=None, max_size=None, ssl=context)
    if ca:
        options["server_hostname"] = "ws.test"
    async with websockets.connect(url, **options) as socket:
        for size in (0, 1, 125, 126, 65535, 65536, 3_000_000):
            message = bytes(n % 251 for n in range(size))
            await socket.send(message)
            assert await socket.recv() == message, size
        await socket.send("text ü")
        print(await socket.recv())
        waiter = await socket.ping(b"are you there")
        await asyncio.wait_for(waiter, 5)
        print("pong")
        # Longer than the idle timeout: the server's pings and our pongs are what goes through.
        began = time.time()
        await asyncio.sleep(3)
        await socket.send("still here")
        print(await socket.recv(), time.time() - began > 2.9)
    print("closed", socket.close_code)


asyncio.run(main(*sys.argv[1:]))
