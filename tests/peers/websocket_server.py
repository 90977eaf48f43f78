"""A WebSocket server: echoes, and pings by itself. `websocket_server.py PORT`"""
import asyncio
import sys

import websockets


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def main():
    async with websockets.serve(echo, "127.0.0.1", int(sys.argv[1]), ping_interval=0.3, ping_timeout=2, max_size=None):
        await asyncio.Future()


asyncio.run(main())
