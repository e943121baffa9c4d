import json
import logging
import os
import sys

import pytest

from kclient.errors import InvalidArgument, NoSuchKernel
from kclient.kernels import spec as spec_module
from kclient.kernels.spec import KernelSpec, find_kernel_spec, list_kernel_specs

VALID = {"argv": ["prog", "{connection_file}"], "display_name": "A Kernel", "language": "lang"}


@pytest.fixture
def search_path(tmp_path, monkeypatch):
    """Two directories, the first of which wins, and nothing else; not even this interpreter's own kernel."""
    directories = [str(tmp_path / "first"), str(tmp_path / "second")]
    monkeypatch.setattr(spec_module, "_search_path", lambda: directories)
    monkeypatch.setattr(spec_module, "_native_spec", lambda: None)
    return directories


def install(directory, name, values):
    resource_dir = os.path.join(directory, name)
    os.makedirs(resource_dir)
    with open(os.path.join(resource_dir, "kernel.json"), "w") as file:
        file.write(values if isinstance(values, str) else json.dumps(values))
    return resource_dir


def test_spec_is_found_with_all_its_values(search_path):
    resource_dir = install(
        search_path[1],
        "mine",
        {
            **VALID,
            "env": {"A": "b"},
            "interrupt_mode": "message",
            "metadata": {"debugger": True},
            "kernel_protocol_version": "5.6",
            "some_future_key": [1],
        },
    )
    assert find_kernel_spec("mine") == KernelSpec(
        name="mine",
        argv=["prog", "{connection_file}"],
        display_name="A Kernel",
        language="lang",
        resource_dir=resource_dir,
        env={"A": "b"},
        interrupt_mode="message",
        metadata={"debugger": True},
        kernel_protocol_version="5.6",
    )


def test_missing_and_null_values_get_defaults(search_path):
    install(search_path[0], "bare", {"argv": ["prog"], "env": None, "metadata": None, "interrupt_mode": None})
    spec = find_kernel_spec("bare")
    assert (spec.display_name, spec.language, spec.env, spec.metadata) == ("bare", "", {}, {})
    assert (spec.interrupt_mode, spec.kernel_protocol_version) == ("signal", "")


def test_names_are_found_in_any_case(search_path):
    install(search_path[0], "MyKernel", VALID)
    assert find_kernel_spec("mykernel") == find_kernel_spec("MYKERNEL")
    assert list(list_kernel_specs()) == ["mykernel"]


def test_earlier_directory_wins(search_path):
    install(search_path[1], "twice", {**VALID, "language": "second"})
    install(search_path[0], "Twice", {**VALID, "language": "first"})
    assert find_kernel_spec("twice").language == "first"
    assert list_kernel_specs()["twice"].language == "first"


def test_unknown_name_tells_what_there_is_and_where_it_looked(search_path):
    install(search_path[0], "b", VALID)
    install(search_path[1], "a", VALID)
    with pytest.raises(NoSuchKernel) as caught:
        find_kernel_spec("c")
    assert caught.value.name == "c"
    assert caught.value.available == ("a", "b")
    assert caught.value.searched == tuple(search_path)
    assert "a, b" in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "..", "../second/a", "a/../a", "/etc", "a\0", "a b", "a\n", "é"])
def test_name_that_is_no_kernel_name_is_not_found(search_path, name):
    install(search_path[0], "a", VALID)
    install(search_path[1], "a", VALID)
    with open(os.path.join(search_path[0], "kernel.json"), "w") as file:
        json.dump(VALID, file)
    with pytest.raises(NoSuchKernel):
        find_kernel_spec(name)


@pytest.mark.parametrize("name", [None, 3, b"python3"])
def test_name_that_is_no_string_is_refused(name):
    with pytest.raises(InvalidArgument):
        find_kernel_spec(name)


def test_directory_whose_name_is_no_kernel_name_is_not_listed(search_path):
    install(search_path[0], "has space", VALID)
    assert list_kernel_specs() == {}
    with pytest.raises(NoSuchKernel):
        find_kernel_spec("has space")


def test_file_in_place_of_a_directory_is_passed_over(search_path):
    os.makedirs(search_path[0])
    for path in (search_path[1], os.path.join(search_path[0], "notes")):
        with open(path, "w"):
            pass
    assert list_kernel_specs() == {}


BROKEN = {
    "not JSON": "{",
    "nothing": "",
    "too deep": "[" * 100_000,
    "not UTF-8": None,
    "a list": [],
    "no argv": {"language": "x"},
    "null argv": {"argv": None},
    "empty argv": {"argv": []},
    "a string for argv": {"argv": "prog {connection_file}"},
    "numbers in argv": {"argv": ["prog", 1]},
    "an unknown interrupt_mode": {**VALID, "interrupt_mode": "shout"},
    "a number for interrupt_mode": {**VALID, "interrupt_mode": 2},
    "a list for env": {**VALID, "env": ["A=b"]},
    "numbers in env": {**VALID, "env": {"A": 1}},
    "a string for metadata": {**VALID, "metadata": "x"},
    "a number for display_name": {**VALID, "display_name": 7},
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_spec_is_an_error_that_names_the_file(search_path, what):
    resource_dir = install(search_path[0], "broken", "" if BROKEN[what] is None else BROKEN[what])
    path = os.path.join(resource_dir, "kernel.json")
    if what == "not UTF-8":
        with open(path, "wb") as file:
            file.write(b'{"argv": ["\xff"]}')
    with pytest.raises(InvalidArgument) as caught:
        find_kernel_spec("broken")
    assert path in str(caught.value)


def test_unreadable_spec_is_an_error_that_names_the_file(search_path, monkeypatch):
    path = os.path.join(install(search_path[0], "locked", VALID), "kernel.json")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root reads whatever its mode says
    with pytest.raises(InvalidArgument, match=r"cannot be read: Permission denied") as caught:
        find_kernel_spec("locked")
    assert path in str(caught.value)


def test_broken_spec_is_left_out_of_the_list_with_a_line_in_the_log(search_path, caplog):
    install(search_path[0], "broken", "{")
    install(search_path[0], "good", VALID)
    with caplog.at_level(logging.WARNING):
        assert list(list_kernel_specs()) == ["good"]
    assert len(caplog.records) == 1
    assert os.path.join(search_path[0], "broken") in caplog.text


def test_templates_are_filled_in_and_other_braces_stay():
    spec = KernelSpec("k", ["prog", "-f={connection_file}", "{resource_dir}/{prefix}", "{other} {}"], resource_dir="/r")
    assert spec.command("/c") == ["prog", "-f=/c", f"/r/{sys.prefix}", "{other} {}"]


def test_braces_in_a_path_are_not_taken_for_templates():
    assert KernelSpec("k", ["prog", "{connection_file}"]).command("/{prefix}/c") == ["prog", "/{prefix}/c"]


@pytest.mark.parametrize("program", ["python", "python3", "python{}.{}".format(*sys.version_info)])
def test_bare_python_is_this_interpreter(program):
    assert KernelSpec("k", [program, "python"]).command("c") == [sys.executable, "python"]


@pytest.mark.parametrize("program", ["python2", "python3.1", "/usr/bin/python", "pythonw", "env"])
def test_other_programs_stay_as_they_are(program):
    assert KernelSpec("k", [program]).command("c") == [program]


def test_extra_arguments_come_last_and_are_taken_literally():
    assert KernelSpec("k", ["prog"]).command("c", ["--x", "{prefix}"]) == ["prog", "--x", "{prefix}"]


@pytest.mark.parametrize("extra", ["--debug", ["--level", 3]])
def test_extra_arguments_must_be_a_sequence_of_strings(extra):
    with pytest.raises(InvalidArgument, match="extra_arguments"):
        KernelSpec("k", ["prog"]).command("c", extra)


def test_command_leaves_the_spec_as_it_is():
    spec = KernelSpec("k", ["python", "{connection_file}"])
    spec.command("c", ["more"])
    assert spec.argv == ["python", "{connection_file}"]


def test_environment_expands_what_it_knows_and_lets_extra_win():
    spec = KernelSpec("k", ["p"], env={"PATH": "/mine:${PATH}", "ODD": "${NOPE} $HOME $${X} ${}", "WON": "spec"})
    assert spec.environment({"PATH": "/bin", "KEPT": "1"}, {"WON": "${PATH}"}) == {
        "PATH": "/mine:/bin",
        "KEPT": "1",
        "ODD": "${NOPE} $HOME $${X} ${}",
        "WON": "${PATH}",
    }


def test_environment_leaves_its_arguments_as_they_are():
    base = {"A": "1"}
    KernelSpec("k", ["p"], env={"A": "2"}).environment(base, {"A": "3"})
    assert base == {"A": "1"}


def test_interrupt_mode_can_be_set_and_is_checked():
    spec = KernelSpec("k", ["p"])
    spec.interrupt_mode = "message"
    assert spec.interrupt_mode == "message"
    with pytest.raises(InvalidArgument, match="shout"):
        spec.interrupt_mode = "shout"


def test_interrupt_mode_is_read_in_any_case_of_letters(search_path):
    install(search_path[0], "loud", {**VALID, "interrupt_mode": "Message"})
    assert find_kernel_spec("loud").interrupt_mode == "message"


def test_python3_needs_no_spec_file_where_ipykernel_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(spec_module, "_search_path", lambda: [str(tmp_path)])
    spec = find_kernel_spec("Python3")
    assert spec.command("c") == [sys.executable, "-m", "ipykernel_launcher", "-f", "c"]
    assert list_kernel_specs() == {"python3": spec}


def test_spec_file_wins_over_the_built_in_python3(monkeypatch, tmp_path):
    monkeypatch.setattr(spec_module, "_search_path", lambda: [str(tmp_path)])
    install(str(tmp_path), "python3", {**VALID, "language": "from the file"})
    assert find_kernel_spec("python3").language == "from the file"
    assert list_kernel_specs()["python3"].language == "from the file"


def test_python3_is_not_found_without_ipykernel(search_path):
    with pytest.raises(NoSuchKernel) as caught:
        find_kernel_spec("python3")
    assert caught.value.available == ()


def test_search_path_is_that_of_jupyter_and_of_ipython(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    install(str(tmp_path / "jupyter" / "kernels"), "one", VALID)
    install(str(tmp_path / "ipython" / "kernels"), "two", VALID)
    assert {"one", "two"} <= list_kernel_specs().keys()


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("curve", True),
        (["curve"], True),
        (["tls", " Curve "], True),
        ("curves", False),
        ([], False),
        ([["curve"], None, 7], False),
        ({"curve": True}, False),
        (True, False),
    ],
)
def test_encryption_is_declared_by_a_name_or_a_list_of_names(declared, expected):
    assert KernelSpec("k", ["p"], metadata={"supported_encryption": declared}).supports_curve is expected


def test_kernel_that_declares_nothing_is_not_taken_for_one_that_encrypts():
    assert not KernelSpec("k", ["p"]).supports_curve


@pytest.mark.parametrize(
    ("version", "expected"), [("7.2.0", False), ("7.3.0a1", True), ("7.10", True), ("8.0", True), ("odd", False)]
)
def test_built_in_python3_encrypts_if_its_ipykernel_can(monkeypatch, tmp_path, version, expected):
    monkeypatch.setattr(spec_module, "_search_path", lambda: [str(tmp_path)])
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    assert find_kernel_spec("python3").supports_curve is expected


def test_built_in_python3_declares_the_encryption_that_its_spec_file_declares(monkeypatch, tmp_path):
    installed = find_kernel_spec("python3")
    monkeypatch.setattr(spec_module, "_search_path", lambda: [str(tmp_path)])
    assert find_kernel_spec("python3").supports_curve is installed.supports_curve


def test_installed_python3_is_found():
    assert "{connection_file}" in find_kernel_spec("python3").argv
