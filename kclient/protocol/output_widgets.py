"""Output widgets: which of them takes the output of a request.

The kernel sets the state `msg_id` of an OutputModel (of @jupyter-widgets/output) to the id of a request when its `with`
block begins, and to "" when that ends. Meanwhile a front end shows the output of that request in the widget.
"""

from __future__ import annotations

from kclient.protocol.messages import Message


def taken_request(message: Message) -> tuple[str, str] | None:
    """The comm id of a widget, and the id of the request whose output it takes from now on; "" for none.

    None if the comm message `message` says nothing of that.
    """
    content = message.content
    comm_id, data = content.get("comm_id"), content.get("data")
    if not isinstance(comm_id, str):
        return None
    if message.header["msg_type"] == "comm_close":
        return comm_id, ""
    if not isinstance(data, dict) or data.get("method", "update") != "update":  # a comm_open has no method
        return None
    state = data.get("state")
    msg_id = state.get("msg_id") if isinstance(state, dict) else None
    return (comm_id, msg_id) if isinstance(msg_id, str) else None
