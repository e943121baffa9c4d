"""The tree of errors: their base classes, their attributes and their texts."""

import copy
import inspect
import pickle
import signal
from errno import EMFILE

import pytest

import kclient
from kclient import errors
from kclient.errors import (
    BadMessage,
    ChannelClosed,
    CommClosed,
    ConnectionFileError,
    DeadKernelError,
    ExecutionAborted,
    ExecutionError,
    ForkedProcess,
    IncompleteOutput,
    InvalidArgument,
    InvalidPortNumber,
    InvalidState,
    KClientError,
    KernelRestarted,
    KernelSpecError,
    KernelSpecExists,
    KernelTimeout,
    LaunchError,
    LocalProtocolError,
    NoReply,
    NoSuchKernel,
    ProtocolError,
    RemoteProtocolError,
    TooManyFiles,
    UnsupportedFeature,
    WrongThread,
)
from kclient.protocol.messages import Message
from kclient.protocol.result import Result

RESULT = Result(Message({"msg_id": "1", "msg_type": "execute_reply"}, content={"status": "ok"}), [])

BASES = {
    KClientError: Exception,
    ProtocolError: KClientError,
    LocalProtocolError: ProtocolError,
    InvalidArgument: (LocalProtocolError, ValueError),
    InvalidState: (LocalProtocolError, RuntimeError),
    UnsupportedFeature: LocalProtocolError,
    RemoteProtocolError: ProtocolError,
    BadMessage: RemoteProtocolError,
    NoReply: RemoteProtocolError,
    IncompleteOutput: RemoteProtocolError,
    ConnectionFileError: (KClientError, ValueError),
    InvalidPortNumber: (KClientError, ValueError),
    NoSuchKernel: (KClientError, KeyError),
    KernelSpecError: KClientError,
    KernelSpecExists: (KernelSpecError, FileExistsError),
    ChannelClosed: KClientError,
    CommClosed: KClientError,
    DeadKernelError: KClientError,
    LaunchError: DeadKernelError,
    KernelRestarted: KClientError,
    KernelTimeout: (KClientError, TimeoutError),
    TooManyFiles: (KClientError, OSError),
    WrongThread: KClientError,
    ForkedProcess: KClientError,
    ExecutionError: KClientError,
    ExecutionAborted: ExecutionError,
}

MADE = [
    KClientError("text"),
    ProtocolError("text"),
    LocalProtocolError("text"),
    InvalidArgument("text"),
    InvalidState("text"),
    UnsupportedFeature("text", feature="debugger"),
    RemoteProtocolError("text"),
    BadMessage("layout", "text"),
    NoReply("text", msg_id="id", result=RESULT),
    IncompleteOutput("text", result=RESULT),
    ConnectionFileError("text", path="/k.json"),
    InvalidPortNumber("text"),
    NoSuchKernel("pyhton", available=["python3", "ir"], searched=["/a", "/b"]),
    KernelSpecError("text", path="/k"),
    KernelSpecExists("text", path="/k"),
    ChannelClosed("shell"),
    CommClosed("text", comm_id="id", target_name="slider", data={"why": "done"}),
    DeadKernelError("the kernel died", exit_code=-9, stderr="last output", result=RESULT),
    LaunchError("never came up", argv=["python", "-m", "x"], exit_code=3, stderr="no module"),
    KernelRestarted("id"),
    KernelTimeout("execute_reply on shell", 2.5, msg_id="id", result=RESULT, hint="interrupt it"),
    KernelTimeout("message", None),
    TooManyFiles("text", needed=10, in_use=250, limit=256, hard_limit=None),
    WrongThread("text"),
    ForkedProcess("text"),
    ExecutionError("ValueError", "bad", ["line 1"], result=RESULT),
    ExecutionAborted("Aborted", "an earlier one failed", result=RESULT),
]


def all_classes():
    classes = [found for _, found in inspect.getmembers(errors, inspect.isclass) if issubclass(found, Exception)]
    return {found for found in classes if found.__module__ == errors.__name__}


# The tree


def test_every_error_stands_where_the_tree_says():
    assert all_classes() == set(BASES)
    for error, bases in BASES.items():
        assert error.__bases__ == (bases if isinstance(bases, tuple) else (bases,))


def test_every_error_is_a_public_name_and_in_the_tree_of_the_docstring():
    for error in BASES:
        assert getattr(kclient, error.__name__) is error
        assert error.__name__ in kclient.__all__
        assert error.__name__ in errors.__doc__


def test_every_error_is_made_here():
    assert {type(error) for error in MADE} == set(BASES)


# Attributes


CARRIES = [
    (BadMessage("replay", "text"), {"reason": "replay"}),
    (NoReply("text"), {"msg_id": None, "result": None}),
    (NoReply("text", msg_id="a", result=RESULT), {"msg_id": "a", "result": RESULT}),
    (ConnectionFileError("text"), {"path": None}),
    (ConnectionFileError("text", path="/k"), {"path": "/k"}),
    (NoSuchKernel("x"), {"name": "x", "available": (), "searched": (), "allowed": None}),
    (NoSuchKernel("x", allowed={"b", "a"}), {"allowed": ("a", "b")}),
    (KernelSpecError("text"), {"path": None}),
    (KernelSpecExists("text", path="/k"), {"path": "/k"}),
    (NoSuchKernel("x", available=["a"], searched=["/b"]), {"available": ("a",), "searched": ("/b",)}),
    (ChannelClosed("iopub"), {"channel": "iopub"}),
    (DeadKernelError(), {"exit_code": None, "stderr": "", "result": None}),
    (DeadKernelError("x", exit_code=-11, stderr="y"), {"exit_code": -11, "stderr": "y"}),
    (LaunchError("x"), {"argv": [], "exit_code": None, "stderr": "", "result": None, "taken_ports": ()}),
    (
        LaunchError("x", argv=("a", "b"), exit_code=1, stderr="y", taken_ports=[5]),
        {"argv": ["a", "b"], "exit_code": 1, "stderr": "y", "taken_ports": (5,)},
    ),
    (KernelRestarted(), {"msg_id": None}),
    (KernelRestarted("a"), {"msg_id": "a"}),
    (KernelTimeout("x", 1), {"waiting_for": "x", "timeout": 1, "msg_id": None, "execution": None, "result": None}),
    (
        TooManyFiles("x", needed=10, in_use=250, limit=256, hard_limit=4096),
        {"needed": 10, "in_use": 250, "limit": 256, "hard_limit": 4096, "errno": EMFILE},
    ),
    (ExecutionError("E", "v"), {"ename": "E", "evalue": "v", "traceback": [], "result": None}),
    (ExecutionAborted("E", "v", ("t",), result=RESULT), {"traceback": ["t"], "result": RESULT}),
]


def test_error_carries_the_facts():
    for error, attributes in CARRIES:
        assert {name: getattr(error, name) for name in attributes} == attributes


# Texts


SAYS = [
    (ChannelClosed("shell"), ["shell", "start_channels()"]),
    (KernelRestarted("a"), ["restarted", "send the request again"]),
    (KernelTimeout("execute_reply", 2.5, hint="interrupt it"), ["execute_reply", "2.5 s", "interrupt it"]),
    (KernelTimeout("execute_reply", None), ["execute_reply"]),
    (NoSuchKernel("x", available=["ir", "py"], searched=["/a", "/b"]), ["'x'", "ir, py", "/a, /b"]),
    (NoSuchKernel("x"), ["'x'", "none", "nowhere"]),
    (DeadKernelError("gone", exit_code=3), ["gone", "exit code 3"]),
    (DeadKernelError("gone", exit_code=0), ["exit code 0"]),
    (DeadKernelError("gone", exit_code=-9, stderr="boom\n"), ["gone", "SIGKILL", "boom"]),
    (LaunchError("no start", exit_code=1, stderr="No module named x"), ["no start", "exit code 1", "No module"]),
    (TooManyFiles("a client: 10", needed=10, in_use=250, limit=256, hard_limit=None), ["a client: 10"]),
    (ExecutionError("E", "v"), ["E: v"]),
    (ExecutionError("E", ""), ["E"]),
]


def test_error_says_what_happened_and_what_to_do():
    for error, says in SAYS:
        for text in says:
            assert text in str(error)
        assert "None" not in str(error)


def test_timeout_of_for_ever_and_empty_output_leave_no_loose_ends():
    assert str(KernelTimeout("reply", None)) == "no reply"
    assert str(KernelTimeout("reply", 1.0)) == "no reply within 1 s"
    assert str(DeadKernelError("gone")) == "gone"
    assert str(DeadKernelError("gone", stderr=" \n ")) == "gone"
    assert str(ExecutionError("E", "")) == "E"


def test_dead_kernel_shows_the_end_of_its_output_and_keeps_all_of_it():
    output = "start" + "x" * 100_000 + "end"
    error = DeadKernelError("gone", stderr=output)
    assert str(error).endswith("xend")
    assert "start" not in str(error)
    assert len(str(error)) < 3000
    assert error.stderr == output


def test_exit_codes_are_told_in_words():
    assert errors.describe_exit(0) == "exit code 0"
    assert errors.describe_exit(139) == "exit code 139"
    assert errors.describe_exit(-signal.SIGSEGV) == "killed by SIGSEGV"
    assert errors.describe_exit(-200) == "killed by signal 200"


# Through queues, process pools and loggers


def pickled(error):
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_copied_or_pickled_error_is_the_same_error(error):
    def facts(error):
        return {name: repr(value) for name, value in vars(error).items()}

    for again in (copy.copy, copy.deepcopy, pickled):
        other = again(error)
        assert type(other) is type(error)
        assert (str(other), repr(other)) == (str(error), repr(error))
        assert facts(other) == facts(error)


def test_timeout_of_an_execution_can_be_pickled_without_it():
    """An Execution has a socket and a hub, which cannot be pickled. All else can."""
    error = KernelTimeout("end of the execution", 1.0, msg_id="a", execution=NotToBePickled(), result=RESULT)
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.msg_id, other.execution) == (str(error), "a", None)
    assert other.result.ok
    assert error.execution is not None


class NotToBePickled:
    def __reduce__(self):
        raise TypeError("cannot be pickled")
