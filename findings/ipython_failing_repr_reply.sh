#!/usr/bin/env bash
# IPython: when the `__repr__` of a cell's value raises, the reply reports the error `NoneType: None`.
#
# Versions: IPython 9.18 (as installed with ipykernel 7.4.0), jupyter_client 8.10.0, Linux; found 2026-12-01.
#
# Seen: the cell ends with an object whose `__repr__` raises ZeroDivisionError. The iopub message `error` names
# ZeroDivisionError. The execute_reply has status error too, but its ename is "NoneType" and its evalue "None". So a client
# that reads the reply alone shows "NoneType: None" to its user.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ipykernel==7.4.0 'ipython==9.*' jupyter_client==8.10.0
cd "$folder"
timeout 120 "$folder/venv/bin/python" - <<'PYTHON'
import IPython
import jupyter_client

TIMEOUT = 30

print("IPython", IPython.__version__)
manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", startup_timeout=60)
try:
    msg_id = client.execute("class Bad:\n    def __repr__(self):\n        return str(1 / 0)\nBad()")
    while (message := client.get_iopub_msg(timeout=TIMEOUT))["msg_type"] != "error":
        pass
    while (reply := client.get_shell_msg(timeout=TIMEOUT))["parent_header"]["msg_id"] != msg_id:
        pass
    print("iopub:", message["content"]["ename"])
    print("reply:", reply["content"]["status"], reply["content"]["ename"], reply["content"]["evalue"])
    assert message["content"]["ename"] == "ZeroDivisionError"
    assert (reply["content"]["ename"], reply["content"]["evalue"]) == ("NoneType", "None")
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
PYTHON
echo "as described"
