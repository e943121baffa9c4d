"""Calls at random, while their kernels are killed, stopped, restarted, flooded and forged against.

Each call carries a token of its own. It must end, in time, in its own answer or in an error that is documented for
what happened meanwhile; whatever else comes of it is a complaint.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from random import Random
from signal import SIGCONT, SIGKILL, SIGSTOP
from time import monotonic

import attrs
import gevent
import leaks
from gevent.event import Event
from proxy import CLIENT, Fate, Frames, Line, Passing, Relay, changed, doubled, dropped

import kclient
from kclient.errors import BadMessage
from kclient.protocol.framing import DELIMITER
from kclient.protocol.session import Session

START = 60
"""Seconds for a kernel to start while all others are busy."""

MARGIN = 30
"""Seconds beyond its timeout after which a call counts as hung, on whatever machine."""

STUCK = 10
"""Seconds after which a silent kernel is interrupted. If that does not help at one code, the kernel counts as hung."""

STUCK_AT_MOST = 3

CALLERS = 20

NO_JEDI = ["--Completer.use_jedi=False"]
"""Without jedi: the first completion of a kernel with jedi takes seconds."""

_token = count(1)


@attrs.define(eq=False)
class Host:
    """A kernel, and counts of the events in its life. An event since a call began excuses an error of the call."""

    name: str
    manager: kclient.KernelManager
    peers: list[Peer] = attrs.field(factory=list)
    deaths: int = 0
    restarts: int = 0
    floods: int = 0
    stuck: int = 0

    def wait_for_ready(self, client: kclient.KernelClient | kclient.KernelManager) -> None:
        """Wait until the kernel answers. Code that waits for the input of a client that was cut off is interrupted.

        What a client sent to the kernel before runs in this one: it cannot know.
        """
        stuck_at: list[str | None] = []
        while stuck_at.count(self.is_at) < STUCK_AT_MOST:
            try:
                client.wait_for_ready(STUCK)
                return
            except kclient.NoReply:
                pass  # another client's interrupt has hit the question
            except kclient.KernelTimeout:
                self.stuck += 1
                self.manager.interrupt_kernel()
            stuck_at.append(self.is_at)
        client.wait_for_ready(STUCK)

    @property
    def is_at(self) -> str | None:
        """The id of the request that the main shell runs. Several such requests may ask for input in turn."""
        return self.manager.iopub_channel.outputs.executing.get(None)


@attrs.define(eq=False)
class Peer:
    """One client of a kernel. `closings` is odd while its channels are closed, or about to be opened."""

    name: str
    host: Host
    client: kclient.KernelClient | kclient.KernelManager
    proxy: Relay | Line | None = None
    closings: int = 0
    cuts: int = 0
    known_ends: int = 0
    unanswered: set[str | None] = attrs.field(factory=set)

    @property
    def ends(self) -> int:
        """How often the kernel has died, or the connection to it was cut."""
        return self.host.deaths + self.cuts

    @property
    def is_apart(self) -> bool:
        """True if this client is told nothing by the kernel's manager."""
        return isinstance(self.client, kclient.KernelClient)

    @property
    def is_lossy(self) -> bool:
        """True if messages to and from this client get lost."""
        return isinstance(self.proxy, Relay)

    def reopen(self) -> None:
        """Close the channels and open them again, as a user does after the kernel has died and come back."""
        assert isinstance(self.client, kclient.KernelClient)
        self.closings += 1
        self.client.stop_channels()
        self.client.start_channels()
        self.host.wait_for_ready(self.client)
        self.known_ends = self.ends
        self.closings += 1


class Moment:
    """The counts when a call began. The properties compare them with the counts of now."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._ends = peer.known_ends
        self._restarts = peer.host.restarts
        self._closings = peer.closings
        self._floods = peer.host.floods

    @property
    def was_cut_off(self) -> bool:
        return self._peer.ends != self._ends

    @property
    def was_closed(self) -> bool:
        return self._closings % 2 == 1 or self._peer.closings != self._closings

    @property
    def was_restarted(self) -> bool:
        return self._restarts % 2 == 1 or self._peer.host.restarts != self._restarts

    @property
    def may_have_lost(self) -> bool:
        """True if messages may have been lost and the client could not know of it."""
        flooded = self._floods % 2 == 1 or self._peer.host.floods != self._floods
        return self._peer.is_lossy or self.was_cut_off or flooded

    def excuses(self, error: BaseException) -> bool:
        """True if `error` is documented for the events since the call began."""
        if isinstance(error, (kclient.KernelTimeout, gevent.Timeout, gevent.GreenletExit)):
            return True
        if isinstance(error, kclient.KernelRestarted):
            return self.was_restarted or (self._peer.is_apart and self.was_cut_off)
        if isinstance(error, kclient.DeadKernelError):
            return self.was_cut_off or not self._peer.host.manager.is_alive()
        if isinstance(error, kclient.NoReply):  # an interrupt, too, may hit the kernel as it is about to reply
            self._peer.unanswered.add(error.msg_id)
            return True
        if isinstance(error, kclient.InvalidState) and "not connected to the stdin channel" in str(error):
            return self.was_cut_off and self._peer.is_apart  # it has not yet been told that its kernel died
        if isinstance(error, (kclient.ChannelClosed, kclient.InvalidState, kclient.InvalidPortNumber)):
            return self.was_closed
        return isinstance(error, OnPurpose)


@contextmanager
def excused(peer: Peer) -> Iterator[None]:
    """Accept the errors that a call of `peer` may raise: the client may hear late of an earlier event at the kernel."""
    moment = Moment(peer)
    try:
        yield
    except kclient.KClientError as exc:
        if not moment.excuses(exc):
            raise


class OnPurpose(Exception):
    """A callback raises this now and then."""


class Callers:
    """Greenlets that make calls chosen at random."""

    def __init__(self, peers: list[Peer], seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._peers = peers
        self._is_over = Event()
        self._calls: list[Callable[[Peer, Random, float], object]] = [
            *[self.run] * 4,
            *[self.submit] * 2,
            *[self.prompt] * 2,
            *[self.execute] * 2,
            *[self.ask_by_hand] * 2,
            self.complete,
            self.kernel_info,
            self.control_info,
            self.flush,
            self.is_alive,
        ]
        self._greenlets = [gevent.spawn(self._call_on, Random(f"{seed} caller {number}")) for number in range(CALLERS)]

    def stop(self) -> None:
        """Return when every call has ended."""
        self._is_over.set()
        gevent.joinall(self._greenlets)
        for greenlet in self._greenlets:
            greenlet.get()

    def _call_on(self, random: Random) -> None:
        while not self._is_over.is_set():
            self._call(random)
            gevent.sleep(random.expovariate(50))

    def _call(self, random: Random) -> None:
        peer, call = random.choice(self._peers), random.choice(self._calls)
        timeout = random.choice([0.05, 0.2, 1.0, 5.0])
        moment = Moment(peer)
        greenlet = gevent.spawn(self._outcome, call, peer, random, timeout, moment)
        if random.random() < 0.15:
            greenlet.join(timeout * random.random())
            greenlet.kill(timeout=MARGIN)
        greenlet.join(timeout + MARGIN)
        name = f"{call.__name__} on {peer.name}"
        if not greenlet.ready():
            self.complaints.append(f"{name} hangs beyond its timeout of {timeout} s: {leaks.where(greenlet, 12)}")
            self.complaints += leaks.everyone()
            self._is_over.set()
            return
        outcome = greenlet.value if isinstance(greenlet.value, str) else "killed at once"
        self.outcomes[f"{call.__name__}: {outcome.splitlines()[0]}"] += 1
        if "\n" in outcome:
            self.complaints.append(f"{name}, timeout {timeout} s: {outcome}")

    def _outcome(self, call: Callable[..., object], peer: Peer, random: Random, timeout: float, moment: Moment) -> str:
        """The outcome in one word. If the error is not documented, its traceback follows."""
        try:
            if random.random() < 0.1:
                with gevent.Timeout(timeout * random.random()):
                    call(peer, random, timeout)
            else:
                call(peer, random, timeout)
        except BaseException as exc:
            name = type(exc).__name__
            return name if moment.excuses(exc) else f"{name}\n{traceback.format_exc()}"
        return "answered"

    # The calls

    def run(self, peer: Peer, random: Random, timeout: float) -> None:
        token, code, expected = something_to_run(random)
        moment, on_abandon = Moment(peer), random.choice(["interrupt", "leave"])
        outcome = peer.client.run(code, timeout=timeout, on_abandon=on_abandon)
        check(outcome, token, expected, moment)

    def submit(self, peer: Peer, random: Random, timeout: float) -> None:
        token, code, expected = something_to_run(random)
        moment = Moment(peer)
        execution = peer.client.submit(code)
        is_interrupted = random.random() < 0.2
        if is_interrupted:
            execution.interrupt()
        if random.random() < 0.5:
            with gevent.Timeout(timeout):
                for message in execution:
                    if message.content.get("name") == "stdout":
                        assert tokens_in(message.content["text"]) <= {token}, f"another's output: {message}"
        outcome = execution.result(timeout=timeout)
        if is_interrupted and outcome.status == "aborted":  # it waited for its turn, and never ran
            assert outcome.outputs == []
        else:
            check(outcome, token, expected, moment)

    def prompt(self, peer: Peer, random: Random, timeout: float) -> None:
        """The kernel does not check the sender of an answer: a late one may go to other code."""
        token = f"token{next(_token)}"
        fails = random.random() < 0.1

        def answer(prompt: str, password: bool) -> str:
            assert prompt == token, f"asked {prompt!r} instead of {token!r}"
            if fails:
                raise OnPurpose
            gevent.sleep(random.expovariate(100))
            return prompt + "!"

        moment = Moment(peer)
        code = f"print(input({token!r}) == {token + '!'!r} and {token!r} or '', flush=True)\n{token!r}"
        outcome = peer.client.run(code, on_input=answer, timeout=timeout)
        if outcome.stdout == "\n":
            self.outcomes["prompt: answered for another"] += 1
        else:
            check(outcome, token, f"{token}\n", moment)

    def execute(self, peer: Peer, random: Random, timeout: float) -> None:
        token = f"token{next(_token)}"
        reply = peer.client.execute("None", user_expressions={"token": repr(token)}, timeout=timeout)
        if reply.content["status"] == "ok":
            data = reply.content["user_expressions"]["token"].get("data")
            assert data is None or data["text/plain"] == repr(token), f"another's reply: {data}"
        else:
            assert reply.content["ename"] == "KeyboardInterrupt", reply.content

    def ask_by_hand(self, peer: Peer, random: Random, timeout: float) -> None:
        shell = peer.client.shell_channel
        msg_id = shell.send("is_complete_request", {"code": "1"})
        gevent.sleep(random.expovariate(500))
        reply = shell.get_reply(msg_id, timeout=timeout)
        assert (reply.parent_id, reply.msg_type) == (msg_id, "is_complete_reply"), f"another's reply: {reply}"

    def complete(self, peer: Peer, random: Random, timeout: float) -> None:
        code = "x" * random.randrange(1, 500)
        reply = peer.client.complete(code, timeout=timeout)
        assert reply.content.get("cursor_end", len(code)) == len(code), f"another's reply: {reply}"

    def kernel_info(self, peer: Peer, random: Random, timeout: float) -> None:
        assert peer.client.kernel_info(timeout=timeout).msg_type == "kernel_info_reply"

    def control_info(self, peer: Peer, random: Random, timeout: float) -> None:
        assert peer.client.control_channel.kernel_info(timeout=timeout).msg_type == "kernel_info_reply"

    def flush(self, peer: Peer, random: Random, timeout: float) -> None:
        assert all(isinstance(message, kclient.Message) for message in peer.client.iopub_channel.flush(timeout))

    def is_alive(self, peer: Peer, random: Random, timeout: float) -> None:
        assert peer.client.is_alive() in (True, False)


def something_to_run(random: Random) -> tuple[str, str, str]:
    """A token, code that prints the token, and the text that the code prints."""
    token, lines = f"token{next(_token)}", random.choice([1, 1, 1, 20])
    pause = f"import time; time.sleep({random.choice([0.01, 0.3])})\n" if random.random() < 0.1 else ""
    code = f"{pause}for _ in range({lines}):\n    print({token!r}, flush=True)\n{token!r}"
    return token, code, f"{token}\n" * lines


def tokens_in(text: str) -> set[str]:
    """The tokens in `text`. IPython may print other words about an interrupt that comes at a bad time.

    A line may lack its end: ipykernel may send the end in a message of its own, and a relay may lose that one.
    """
    return set(re.findall(r"token\d+", text))


def check(outcome: kclient.Result, token: str, expected: str, moment: Moment) -> None:
    """Assert that `outcome` belongs to the call, and that it is complete if no message can have been lost."""
    assert tokens_in(outcome.stdout) <= {token}, f"another's output: {outcome.outputs}"
    assert outcome.text in (None, repr(token)), f"another's result: {outcome.outputs}"
    if outcome.error is not None:
        assert outcome.error.ename == "KeyboardInterrupt", outcome.error
    elif not moment.may_have_lost:
        assert outcome.ok, outcome
        assert (outcome.text, outcome.stdout) == (repr(token), expected), f"lost: {outcome.outputs}"
        assert outcome.complete, "incomplete, although nothing was lost"


class Forger:
    """Loses, doubles, changes and forges messages of one relay, and counts those that its client must drop."""

    def __init__(self, relay: Relay, random: Random) -> None:
        self.expected: dict[str, Counter[str]] = {name: Counter() for name in ("shell", "control", "stdin", "iopub")}
        self.genuine: dict[str, list[Frames]] = {name: [] for name in self.expected}
        self._relay = relay
        self._random = random
        self._session = Session(relay.kernel.key)
        relay.rule = self.decide

    def decide(self, passing: Passing) -> Fate | None:
        chance = self._random.random()
        if not self.is_whole(passing):
            return None
        if passing.to != CLIENT:
            return dropped if chance < 0.01 else doubled if chance < 0.02 else None
        if passing.channel != "iopub" and passing.frames[0] != self._relay.clients[0]:
            return None  # the client opens a second connection for a moment only
        expected = self.expected[passing.channel]
        if chance < 0.01:
            return dropped
        if chance < 0.03:
            expected["replay"] += 1
            return doubled
        if chance < 0.05:
            expected["signature"] += 1
            return changed(self.flip)
        if chance < 0.08:
            return self._relay.delayed(self._random.expovariate(20))
        genuine = self.genuine[passing.channel]
        genuine.append(passing.frames[1:])
        del genuine[:-50]
        return None

    def is_whole(self, passing: Passing) -> bool:
        """False for a message that the kernel tore. It is not foreseen why the client drops it, or its copies."""
        if passing.frames[1:2] != [DELIMITER]:
            return False
        try:
            self._session.deserialize(passing.frames)
        except BadMessage:
            return False
        return True

    def flip(self, frames: Frames) -> Frames:
        """Change one bit of the signature or of a signed frame."""
        place = frames.index(DELIMITER) + 1 + self._random.randrange(5)
        frame = bytearray(frames[place])
        frame[self._random.randrange(len(frame))] ^= 1 << self._random.randrange(7)
        return [*frames[:place], bytes(frame), *frames[place + 1 :]]

    def forge(self) -> None:
        """Send one malformed, wrongly signed or repeated message."""
        channel = self._random.choice(list(self.expected))
        genuine = self.genuine[channel]
        kinds = ["layout", "signature", *(["replay", "flip"] if genuine else [])]
        kind = self._random.choice(kinds)
        if kind == "layout":
            frames = [self._random.randbytes(9) for _ in range(self._random.randrange(1, 9))]
        elif kind == "signature":
            forger = Session(self._random.choice([b"", b"another key"]))
            parent = {"msg_id": "none", "msg_type": "execute_request"}
            message = forger.msg("status", {"execution_state": "idle"}, parent=parent)
            frames = forger.serialize(message)
        else:
            frames = self._random.choice(genuine)
        if kind == "flip":
            kind, frames = "signature", self.flip(frames)
        self.expected[channel][kind] += 1
        self._relay.inject(channel, frames)

    def stop(self) -> None:
        self._relay.rule = None
        self._relay.wait_for_late()


class Troubles:
    """A greenlet for each kernel that harms it again and again."""

    def __init__(self, hosts: list[Host], forgers: dict[Peer, Forger], seed: int) -> None:
        self.happened: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._forgers = forgers
        self._is_over = Event()
        self._greenlets = [gevent.spawn(self._go_on, host, Random(f"{seed} {host.name}")) for host in hosts]

    def stop(self) -> None:
        self._is_over.set()
        gevent.joinall(self._greenlets)
        for greenlet in self._greenlets:
            greenlet.get()

    def _go_on(self, host: Host, random: Random) -> None:
        kinds = [*[self.forge] * 3, self.kill, self.stand_still, self.restart, self.start_anew]
        kinds += [self.interrupt, self.flood, self.cut, self.stall]
        while not self._is_over.wait(random.expovariate(3)):
            trouble = random.choice(kinds)
            self.happened[trouble.__name__] += 1
            try:
                self.revive(host)
                trouble(host, random)
                self._heal(host)
            except Exception:
                if host.manager.is_alive():
                    self.complaints.append(f"{trouble.__name__} of {host.name} fails\n{traceback.format_exc()}")
                    return

    def revive(self, host: Host) -> None:
        """Restart the kernel if it has ended: an interrupt between two requests may end it."""
        if not host.manager.is_alive():
            self.happened["exited by itself"] += 1
            self.restart(host, Random(0))

    def _heal(self, host: Host) -> None:
        for peer in host.peers:
            if (
                isinstance(peer.client, kclient.KernelClient)
                and peer.client.kernel_connection.channels.failure is not None
            ):
                self.happened["reopen"] += 1
                peer.reopen()

    def bring_to_rest(self, host: Host) -> None:
        """Wait until the kernel has worked off abandoned requests. An interrupt of one of them may end the kernel."""
        for _ in range(STUCK_AT_MOST):
            self.revive(host)
            self._heal(host)
            try:
                for peer in host.peers:
                    peer.client.control_channel.kernel_info(timeout=START)
                    host.wait_for_ready(peer.client)
                return
            except kclient.KClientError:
                if host.manager.is_alive():
                    raise

    def kill(self, host: Host, random: Random) -> None:
        assert host.manager.process is not None
        host.deaths += 1
        host.manager.process.send_signal(SIGKILL)
        gevent.sleep(random.choice([0, 0.03, 1.0]))
        self.restart(host, random)

    def restart(self, host: Host, random: Random) -> None:
        host.restarts += 1
        host.deaths += 1
        try:
            host.manager.restart_kernel(now=random.random() < 0.5, timeout=STUCK)
        except (kclient.KernelTimeout, kclient.NoReply):
            host.wait_for_ready(host.manager)
        host.restarts += 1
        host.peers[0].known_ends = host.deaths

    def start_anew(self, host: Host, random: Random) -> None:
        """Shut the kernel down and start another at the same ports, which other clients use, too."""
        host.peers[0].closings += 1
        host.deaths += 1
        host.manager.shutdown_kernel(now=random.random() < 0.5, restart=True)
        gevent.sleep(random.choice([0, 0.1]))
        host.manager.start_kernel(extra_arguments=NO_JEDI)
        host.wait_for_ready(host.manager)
        host.peers[0].known_ends = host.deaths
        host.peers[0].closings += 1

    def stand_still(self, host: Host, random: Random) -> None:
        assert host.manager.process is not None
        host.manager.process.send_signal(SIGSTOP)
        gevent.sleep(random.choice([0.1, 1.5]))
        host.manager.process.send_signal(SIGCONT)

    def interrupt(self, host: Host, random: Random) -> None:
        peer = random.choice(host.peers[:2])
        with excused(peer):
            peer.client.interrupt_kernel()

    def flood(self, host: Host, random: Random) -> None:
        host.floods += 1
        peer = random.choice(host.peers)
        with excused(peer):
            peer.client.run("for _ in range(2000): print('flood' * 50, flush=True)", timeout=1.0)
        host.floods += 1

    def forge(self, host: Host, random: Random) -> None:
        for peer, forger in self._forgers.items():
            if peer.host is host:
                for _ in range(random.randrange(100)):
                    forger.forge()

    def cut(self, host: Host, random: Random) -> None:
        for peer, line in lines_of(host):
            peer.cuts += 1
            line.cut(refuse=random.random() < 0.5)
            gevent.sleep(random.choice([0, 0.1, 1.0]))
            line.mend()

    def stall(self, host: Host, random: Random) -> None:
        for _, line in lines_of(host):
            line.stall()
            gevent.sleep(random.choice([0.1, 1.0]))
            line.flow()


def lines_of(host: Host) -> list[tuple[Peer, Line]]:
    return [(peer, peer.proxy) for peer in host.peers if isinstance(peer.proxy, Line)]


class Chaos:
    """Two kernels, one for each transport, four clients of each, callers and troubles."""

    def __init__(self, seed: int) -> None:
        self.complaints: list[str] = []
        self.torn = 0
        self.summary: dict[str, Counter[str]] = {}
        self._seed = seed
        self._stack = ExitStack()
        self._hosts: list[Host] = []
        self._forgers: dict[Peer, Forger] = {}

    def run_for(self, seconds: float) -> None:
        with self._stack:
            self._hosts = [self._make_host(transport) for transport in ("tcp", "ipc")]
            peers = [peer for host in self._hosts for peer in host.peers]
            callers = Callers(peers, self._seed)
            troubles = Troubles(self._hosts, self._forgers, self._seed)
            until = monotonic() + seconds
            while monotonic() < until and not callers.complaints and not troubles.complaints:
                gevent.sleep(0.1)
            troubles.stop()
            callers.stop()
            self.complaints += [*troubles.complaints, *callers.complaints]
            troubles.happened["stuck"] = sum(host.stuck for host in self._hosts)
            self.summary = {"calls": callers.outcomes, "troubles": troubles.happened}
            if not self.complaints:
                for forger in self._forgers.values():
                    forger.stop()
                for host in self._hosts:
                    troubles.bring_to_rest(host)
                for peer in peers:
                    self._check_end(peer)
                troubles.happened["torn messages"] = self.torn

    def _make_host(self, transport: str) -> Host:
        manager = self._stack.enter_context(
            kclient.start_kernel(transport=transport, extra_arguments=NO_JEDI, timeout=START)
        )
        host = Host(transport, manager)
        info = manager.get_connection_info()
        relay = self._stack.enter_context(Relay(info))
        line = self._stack.enter_context(Line(info))
        host.peers.append(Peer(f"manager ({transport})", host, manager))
        for name, connection, proxy in (
            ("client", info, None),
            ("client behind a relay", relay.connection_info, relay),
            ("client behind a line", line.connection_info, line),
        ):
            client = self._stack.enter_context(kclient.connect(connection, timeout=START))
            client.hb_channel.pause()
            client.hb_channel.time_to_dead = 0.5  # so that the client notices a kernel that stands still
            client.hb_channel.unpause()
            host.peers.append(Peer(f"{name} ({transport})", host, client, proxy))
        peer = host.peers[2]
        self._forgers[peer] = Forger(relay, Random(f"{self._seed} forger {transport}"))
        return host

    def _check_end(self, peer: Peer) -> None:
        """Assert that the client works, and that it has dropped what it had to, and else only torn messages.

        A kernel that is interrupted between two frames of a message goes on, in the same message, with the next.
        """
        token, code, expected = something_to_run(Random(0))
        check(peer.client.run(code, timeout=START), token, expected, Moment(peer))
        forger = self._forgers.get(peer)
        expected_drops = forger.expected if forger is not None else {}
        late = [message for message in peer.client.shell_channel.get_msgs() if message.parent_id in peer.unanswered]
        if late and not peer.is_lossy:
            self.complaints.append(f"{peer.name} gave up these replies, which came: {late}")
        peer.client.control_channel.kernel_info(timeout=START)
        for channel in peer.client.kernel_connection.channels.running():
            drops = expected_drops.get(channel.name, Counter())
            deadline = monotonic() + MARGIN
            while drops - channel.dropped and monotonic() < deadline:
                gevent.sleep(0.01)
            torn = channel.dropped - drops
            self.torn += torn.total()
            may_be_torn = {"layout", "signature", *(["replay"] if peer.is_lossy else [])}  # a relay doubles others
            if drops - channel.dropped or torn.keys() - may_be_torn:
                self.complaints.append(
                    f"{peer.name} dropped {channel.dropped} on {channel.name}, and should have dropped {drops}"
                )
