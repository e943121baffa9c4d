#!/usr/bin/env bash
# ipykernel: an interrupt never reaches the code of a subshell. It ends the innocent code of the main shell.
#
# Versions: ipykernel 7.4.0, jupyter_client 8.10.0, CPython 3.10 or newer, Linux; found 2026-12-01.
#
# Seen: a subshell runs `time.sleep(3)`, and after that the main shell begins with `time.sleep(6)`. Then the kernel gets an
# interrupt_request on control; a SIGINT does the same. The main shell's code ends with KeyboardInterrupt. The subshell's
# code runs to its end with status ok. Python runs signal handlers in the main thread only, and the code of a subshell
# runs in another thread. So a client must not interrupt the code of a subshell.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ipykernel==7.4.0 jupyter_client==8.10.0
cd "$folder"
timeout 120 "$folder/venv/bin/python" - <<'PYTHON'
import jupyter_client

TIMEOUT = 30

manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", startup_timeout=60)
try:
    create = client.session.msg("create_subshell_request", {})
    client.control_channel.send(create)
    while (reply := client.get_control_msg(timeout=TIMEOUT))["parent_header"]["msg_id"] != create["header"]["msg_id"]:
        pass
    subshell_id = reply["content"]["subshell_id"]

    def execute(code, subshell_id=None):
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False,
                   "stop_on_error": False}
        message = client.session.msg("execute_request", content)
        if subshell_id is not None:
            message["header"]["subshell_id"] = subshell_id
        client.shell_channel.send(message)
        msg_id = message["header"]["msg_id"]
        while True:  # it has begun
            got = client.get_iopub_msg(timeout=TIMEOUT)
            if got["msg_type"] == "execute_input" and got["parent_header"].get("msg_id") == msg_id:
                return msg_id

    below = execute("import time; time.sleep(3)", subshell_id)
    main = execute("import time; time.sleep(6)")
    client.control_channel.send(client.session.msg("interrupt_request", {}))
    replies = {}
    while len(replies) < 2:
        reply = client.get_shell_msg(timeout=TIMEOUT)
        replies[reply["parent_header"]["msg_id"]] = reply["content"]
    print("main shell:", replies[main]["status"], replies[main].get("ename"))
    print("subshell:", replies[below]["status"])
    assert (replies[main]["status"], replies[main]["ename"]) == ("error", "KeyboardInterrupt")
    assert replies[below]["status"] == "ok"
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
PYTHON
echo "as described"
