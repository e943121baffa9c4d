#!/usr/bin/env bash
# ipykernel: an interrupted `await` ends only when some message reaches the shell channel.
#
# Versions: ipykernel 7.4.0, jupyter_client 8.10.0, CPython 3.10 or newer, Linux; found 2026-12-01.
#
# Seen: a cell awaits `asyncio.sleep(60)` and the kernel gets a SIGINT. For 5 s nothing happens: no reply, no idle status.
# A kernel_info_request on control is answered and changes nothing. Then a kernel_info_request goes to shell, and the cell
# ends at once, with CancelledError rather than KeyboardInterrupt. So a client that interrupts should send some request on shell with the signal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ipykernel==7.4.0 jupyter_client==8.10.0
cd "$folder"
timeout 120 "$folder/venv/bin/python" - <<'PYTHON'
import queue
import time

import jupyter_client

TIMEOUT = 30

manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", startup_timeout=60)
try:
    msg_id = client.execute("import asyncio\nprint('on', flush=True)\nawait asyncio.sleep(60)")
    while client.get_iopub_msg(timeout=TIMEOUT)["msg_type"] != "stream":
        pass
    time.sleep(0.5)  # the cell awaits by then
    manager.interrupt_kernel()
    time.sleep(1)
    client.control_channel.send(client.session.msg("kernel_info_request", {}))
    assert client.get_control_msg(timeout=TIMEOUT)["msg_type"] == "kernel_info_reply"

    def reply_within(seconds):
        """The reply to the cell; None if it does not come."""
        end = time.monotonic() + seconds
        while True:
            try:
                reply = client.get_shell_msg(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                return None
            if reply["parent_header"]["msg_id"] == msg_id:
                return reply

    assert reply_within(4) is None
    print("5 s after the signal: no reply")
    began = time.monotonic()
    client.kernel_info()
    reply = reply_within(TIMEOUT)
    print(f"{time.monotonic() - began:.2f} s after a request on shell:", reply["content"].get("ename"))
    assert reply["content"]["ename"] == "CancelledError"
    assert time.monotonic() - began < 5
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
PYTHON
echo "as described"
