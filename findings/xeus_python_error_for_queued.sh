#!/usr/bin/env bash
# xeus-python: requests that wait behind a failing one are answered with its error, although they asked for the contrary.
#
# Versions: xeus-python 0.19.x, jupyter_client 8.10.0, Linux x86_64; found 2026-12-01.
#
# Seen: three execute requests are sent at once, each with stop_on_error false: a sleep, then `1/0`, then `print('mine')`.
# The messaging specification says that the kernel runs all of them. The third is answered with an error or `aborted`
# and its code is not run. So a client of several callers must send their requests to this kernel one at a time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'xeus-python==0.19.*' jupyter_client==8.10.0
cd "$folder"
JUPYTER_PATH="$folder/venv/share/jupyter" timeout 120 "$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata

import jupyter_client

TIMEOUT = 30

print("xeus-python", importlib.metadata.version("xeus-python"))
manager, client = jupyter_client.manager.start_new_kernel(kernel_name="xpython", startup_timeout=60)
try:
    codes = ["import time; time.sleep(1)", "1/0", "print('mine')"]
    ids = [client.execute(code, stop_on_error=False) for code in codes]
    replies = {}
    while len(replies) < 3:
        reply = client.get_shell_msg(timeout=TIMEOUT)
        if reply["msg_type"] == "execute_reply":
            replies[reply["parent_header"]["msg_id"]] = reply["content"]
    for code, msg_id in zip(codes, ids):
        print(f"{code!r}:", replies[msg_id]["status"], replies[msg_id].get("ename", ""))
    assert replies[ids[0]]["status"] == "ok"
    assert replies[ids[1]]["status"] == "error"
    assert replies[ids[2]]["status"] != "ok"
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
PYTHON
echo "as described"
