"""From frames to outcomes, without sockets: each signed message is refused, or goes to one place."""

import json

from hypothesis import given
from hypothesis import strategies as st

from kclient.errors import BadMessage
from kclient.protocol.comms import CommRoutes
from kclient.protocol.framing import DELIMITER
from kclient.protocol.messages import OUTPUT_TYPES
from kclient.protocol.pending_answers import PendingAnswers
from kclient.protocol.result import Result
from kclient.protocol.routing import Outputs, Requests
from kclient.protocol.session import Session
from kclient.protocol.transcript import Transcript


class Execution:
    """The part of a run that the routing knows."""

    def __init__(self, request):
        self.request = request
        self.transcript = Transcript()
        self.fed = 0

    def feed(self, message):
        self.fed += 1
        assert message.parent_id == self.request.msg_id
        self.transcript.take(message)

    def update_display(self, message):
        self.transcript.update_display(message)

    def on_settled(self, slot):
        assert slot.reply is None or slot.reply.parent_id == self.request.msg_id
        self.transcript.set_reply(slot.reply)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800")
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
replies = st.sampled_from(["execute_reply", "inspect_reply", "input_request"])
published = st.sampled_from([*sorted(OUTPUT_TYPES), "status", "execute_input", "iopub_welcome", "comm_msg", "x"])
names = st.sampled_from(
    [
        *("name", "text", "data", "metadata", "transient", "ename", "evalue", "traceback", "wait"),
        *("execution_state", "execution_count", "status"),
    ]
)
contents = st.dictionaries(names, values | st.sampled_from(["idle", "busy", "ok", "error", {"display_id": "d"}]))
parents = st.sampled_from(["first", "second", "none"]) | values
messages = st.tuples(st.booleans(), replies, published, parents, contents | values, st.booleans())


@given(st.lists(messages, max_size=25))
def test_any_message_that_is_signed_has_one_place_to_go_to(sent):
    kernel, client = Session(b"key"), Session(b"key")
    pending = PendingAnswers()
    requests = Requests(pending)
    outputs = Outputs(1000, 10**6, pending, CommRoutes(client.session, None))
    pending.tracking = True
    executions = {name: Execution(client.msg("execute_request")) for name in ("first", "second")}
    for execution in executions.values():
        outputs.executions[execution.request.msg_id] = execution
        requests.open(execution.request).on_settled = execution.on_settled
    handed = fed = welcomes = 0
    refused = []
    for is_reply, reply, publication, parent, content, is_changed in sent:
        header = kernel.msg(reply if is_reply else publication).header
        known = executions.get(parent) if isinstance(parent, str) else None
        parts = [header, known.request.header if known else parent, {}, content]
        texts = [json.dumps(part).encode() for part in parts]
        frames = [DELIMITER, kernel.sign(texts), *texts]
        if is_changed:
            frames[2] += b" "
        try:
            message = client.deserialize(frames)
        except BadMessage as exc:
            refused.append((exc.reason, is_changed))
            continue
        if is_reply:
            slot = requests.route(message)
            if slot is not None:
                handed += 1
                slot.on_settled(slot)
        else:
            sink = outputs.route(message)
            if sink is not None:
                fed += 1
                sink.feed(message)
            welcomes += sink is None and message.msg_type == "iopub_welcome"
    assert set(refused) <= {("signature", True), ("json", False)}
    assert fed == sum(execution.fed for execution in executions.values())
    assert len(refused) + handed + fed + welcomes + len(requests.inbox) + len(outputs.inbox) == len(sent)
    for execution in executions.values():
        outcome = Result.of(execution.transcript)
        look_at = [
            outcome.stdout,
            outcome.stderr,
            outcome.text,
            outcome.data,
            outcome.error,
            outcome.status,
            outcome.ok,
        ]
        assert len(look_at) == 7
        assert all(output["output_type"] in OUTPUT_TYPES for output in outcome.outputs)
