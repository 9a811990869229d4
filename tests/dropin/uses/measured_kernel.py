"""jupyter_server: ``serve PORT`` becomes it, ``load PORT PID`` starts a kernel that prints, and measures.

The client speaks JupyterLab's protocol over a WebSocket that is not Tornado's. It and the kernel share a core.
"""

import json
import os
import sys
import uuid
from pathlib import Path

import websocket
from checks import until
from meter import Meter
from programs import get, is_up

COUNT = 5000
PROTOCOL = "v1.kernel.websocket.jupyter.org"
PRINTS = """
kernel = get_ipython().kernel
for number in range({count}):
    content = {{"name": "stdout", "text": f"{{number}}\\n"}}
    kernel.session.send(kernel.iopub_socket, "stream", content, kernel.get_parent())
"""


def serve(port: str) -> None:
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.allow_root": "True",
        "ServerApp.disable_check_xsrf": "True",
        "ServerApp.log_level": "WARN",
        "IdentityProvider.token": "",
        "ZMQChannelsWebsocketConnection.limit_rate": "False",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    os.execv(sys.executable, [sys.executable, "-m", "jupyter_server", "--no-browser", *arguments])


def load(port: str, pid: str) -> None:
    base = f"http://127.0.0.1:{port}/api/kernels"
    until(lambda: is_up(base), 60)
    status, reply = get(base, b"{}", "POST")
    assert status == 201, reply
    kernel = json.loads(reply)["id"]
    move_children(int(pid))
    channels = websocket.create_connection(
        f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels", subprotocols=[PROTOCOL], timeout=60
    )
    execute(channels, 500)
    with Meter(int(pid)).measure("messages of a kernel", COUNT):
        execute(channels, COUNT)
    get(f"{base}/{kernel}", method="DELETE")


def move_children(pid: int) -> None:
    """To this process's core, from the server's, which they have inherited."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        for thread in Path(f"/proc/{child}/task").iterdir():
            os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))


def execute(channels: websocket.WebSocket, count: int) -> None:
    """Have the kernel print so many lines, each in a message, and read them."""
    code = PRINTS.format(count=count)
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "it"}
    channels.send_binary(packed(["shell", *map(json.dumps, (header | {"version": "5.3"}, {}, {}, content))]))
    last = f"{count - 1}\\n".encode()
    received = 0
    while received < count:
        message = channels.recv()
        if b'"stream"' in message:
            received += 1
    assert last in message


def packed(parts: list[str]) -> bytes:
    """A message as the protocol has it: the number of offsets, the offsets, and the parts."""
    bodies = [part.encode() for part in parts]
    offsets = [8 * (len(bodies) + 2)]
    for body in bodies:
        offsets.append(offsets[-1] + len(body))
    return b"".join(number.to_bytes(8, "little") for number in (len(offsets), *offsets)) + b"".join(bodies)


if __name__ == "__main__":
    {"serve": serve, "load": load}[sys.argv[1]](*sys.argv[2:])
