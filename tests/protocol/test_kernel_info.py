"""KernelInfo: the facts that a kernel tells of itself, in any shape."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kclient import KernelInfo

FULL = {
    "status": "ok",
    "protocol_version": "5.3",
    "implementation": "ipython",
    "implementation_version": "9.1.0",
    "language_info": {"name": "python", "version": "3.11.7", "file_extension": ".py"},
    "banner": "Python 3",
    "help_links": [{"text": "Python", "url": "https://python.example"}],
    "supported_features": ["kernel subshells", "debugger"],
}

OF_PROTOCOL_4 = {
    "protocol_version": [4, 1],
    "ipython_version": [2, 4, 1, ""],
    "language_version": [2, 7, 6],
    "language": "python",
}

NAMES = [*FULL, "language", "language_version", "ipython_version", "debugger"]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from(["name", "version"]), scalars)


def test_full_reply_is_read():
    info = KernelInfo.of(FULL)
    assert (info.protocol_version, info.protocol_version_info) == ("5.3", (5, 3))
    assert (info.implementation, info.implementation_version, str(info)) == ("ipython", "9.1.0", "ipython 9.1.0")
    assert (info.language, info.language_version) == ("python", "3.11.7")
    assert info.language_info == FULL["language_info"]
    assert (info.banner, info.help_links, info.status) == ("Python 3", tuple(FULL["help_links"]), "ok")
    assert info.supported_features == {"kernel subshells", "debugger"}
    assert info.content == FULL
    assert not info.speaks_version_4


@pytest.mark.parametrize("implementation", ["bash_kernel", "calysto_scheme", "Octave", "", None, "odd"])
def test_subshells_and_debugger_of_a_kernel_built_on_ipykernel_are_not_believed(implementation):
    claims = ["kernel subshells", "debugger", "another"]
    info = KernelInfo.of({"implementation": implementation, "supported_features": claims, "debugger": True})
    assert info.supported_features == {"another"}
    for feature in claims[:2]:
        assert info.lacks(feature)
        assert "inherits that claim" in info.why_it_lacks(feature)
    assert info.content["supported_features"] == claims
    plain = KernelInfo.of({"implementation": implementation})
    assert plain.why_it_lacks("debugger") == "it is not in its supported_features"


@pytest.mark.parametrize("implementation", ["ipython", "async-kernel", "ipymini", "xeus-python", "fake"])
def test_subshells_and_debugger_of_a_kernel_that_has_them_are_believed(implementation):
    info = KernelInfo.of({"implementation": implementation, "supported_features": ["kernel subshells", "debugger"]})
    assert info.supported_features == {"kernel subshells", "debugger"}


def test_reply_of_protocol_4_is_read():
    info = KernelInfo.of(OF_PROTOCOL_4)
    assert (info.protocol_version, info.protocol_version_info) == ("4.1", (4, 1))
    assert (info.implementation, info.implementation_version) == ("ipython", "2.4.1")
    assert (info.language, info.language_version) == ("python", "2.7.6")
    assert info.language_info == {"name": "python", "version": "2.7.6"}
    assert info.speaks_version_4


@pytest.mark.parametrize(
    ("protocol_version", "text", "numbers", "is_4"),
    [
        ("5.3.0", "5.3.0", (5, 3, 0), False),
        ("5.10", "5.10", (5, 10), False),
        ([5, 0], "5.0", (5, 0), False),
        (["4", "1"], "4.1", (4, 1), True),
        (4, "4", (4,), True),
        (5.3, "5.3", (5, 3), False),
        ("5.x", "5.x", (5,), False),
        ("new", "new", (), False),
        ("", "", (), False),
        (None, "", (), False),
        (True, "", (), False),
        ("9" * 5000, "9" * 5000, (999_999_999,), False),
    ],
)
def test_protocol_version_of_any_shape_is_text_and_numbers(protocol_version, text, numbers, is_4):
    info = KernelInfo.of({"protocol_version": protocol_version})
    assert (info.protocol_version, info.protocol_version_info, info.speaks_version_4) == (text, numbers, is_4)


def test_error_reply_leaves_all_but_the_status_empty():
    info = KernelInfo.of({"status": "error", "ename": "NotImplementedError", "evalue": ""})
    assert info.status == "error"
    assert (info.implementation, info.language, info.banner, info.supported_features) == ("", "", "", frozenset())
    assert str(info) == "unknown implementation"


def test_older_debugger_flag_counts_as_the_feature():
    assert not KernelInfo.of({"debugger": True, "implementation": "ipython"}).lacks("debugger")
    assert KernelInfo.of({"debugger": False}).lacks("debugger")
    assert KernelInfo.of({"debugger": "no"}).lacks("debugger")


def test_ipykernel_that_says_nothing_of_a_debugger_may_have_one():
    """Version 6 of ipykernel has a debugger."""
    silent = {"implementation": "ipython", "protocol_version": "5.3"}
    assert not KernelInfo.of(silent).lacks("debugger")
    assert KernelInfo.of(silent).lacks("kernel subshells")
    assert KernelInfo.of({**silent, "supported_features": []}).lacks("debugger")
    assert KernelInfo.of({**silent, "implementation": "bash"}).lacks("debugger")
    assert KernelInfo.of(OF_PROTOCOL_4).lacks("debugger")


@given(st.dictionaries(st.sampled_from(NAMES), values))
def test_any_content_is_read(content):
    info = KernelInfo.of(content)
    assert all(isinstance(name, str) for name in (info.language, info.banner, info.implementation_version, info.status))
    assert isinstance(str(info), str)
    assert isinstance(hash(info), int)


def test_value_can_be_compared_copied_and_pickled():
    info = KernelInfo.of(FULL)
    assert info == copy.deepcopy(info) == pickle.loads(pickle.dumps(info))
    assert info != KernelInfo.of(OF_PROTOCOL_4)
