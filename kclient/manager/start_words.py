"""What a kernel has sent as output before it was ready, for the error of a start that failed."""

from __future__ import annotations

from kclient.client.channel_set import ChannelSet
from kclient.errors import STDERR_SHOWN
from kclient.protocol.messages import Message


def words_of(channels: ChannelSet) -> str:
    """The end of the output over iopub that belongs to no request: of a startup file, for example.

    The messages stay in the inbox. Those of a kernel before a restart have another session.
    """
    if not channels.runs("iopub"):
        return ""
    messages = [message for message in channels.iopub.inbox if not message.parent_header.get("msg_id")]
    session = messages[-1].header.get("session") if messages else None
    text = "".join(_text(message) for message in messages if message.header.get("session") == session).strip()
    return text[-STDERR_SHOWN:]


def _text(message: Message) -> str:
    if message.msg_type == "stream":
        return str(message.content.get("text", ""))
    if message.msg_type == "error":
        return "\n".join(map(str, message.content.get("traceback", ()))) + "\n"
    return ""
