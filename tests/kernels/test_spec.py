import json
import logging
import os
import sys

import attrs
import pytest

import kclient
from kclient.errors import InvalidArgument, NoSuchKernel
from kclient.kernels.specs import search
from kclient.kernels.specs.search import find_kernel_spec, list_kernel_specs
from kclient.kernels.specs.spec import KernelSpec

VALID = {"argv": ["prog", "{connection_file}"], "display_name": "A Kernel", "language": "lang"}


@pytest.fixture
def search_path(tmp_path, monkeypatch):
    """Two directories, of which the first has precedence. There are no others, and no kernel of this interpreter."""
    directories = [str(tmp_path / "first"), str(tmp_path / "second")]
    monkeypatch.setattr(search, "search_path", lambda: directories)
    monkeypatch.setattr(search, "_native_spec", lambda: None)
    monkeypatch.delenv("KCLIENT_ALLOWED_KERNELS", raising=False)
    return directories


def install(directory, name, values):
    resource_dir = os.path.join(directory, name)
    os.makedirs(resource_dir)
    with open(os.path.join(resource_dir, "kernel.json"), "w", encoding="utf-8") as file:
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


def test_broken_spec_in_an_earlier_directory_hides_the_later_one_from_all(search_path, caplog):
    install(search_path[0], "twice", "{")
    install(search_path[1], "twice", VALID)
    assert list_kernel_specs() == {}
    with pytest.raises(InvalidArgument):
        find_kernel_spec("twice")


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


def test_directory_whose_name_is_no_kernel_name_is_not_listed(search_path, caplog):
    resource_dir = install(search_path[0], "has space", VALID)
    assert list_kernel_specs() == {}
    assert resource_dir in caplog.text
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
    "a NUL in argv": {"argv": ["prog", "a\0b"]},
    "half of a sign in argv": {"argv": ["\ud83d"]},
    "a NUL in env": {**VALID, "env": {"A": "\0"}},
    "no name in env": {**VALID, "env": {"": "b"}},
    "a name in env that ends too early": {**VALID, "env": {"A=B": "c"}},
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

    monkeypatch.setattr("builtins.open", refuse)  # root can read any file
    with pytest.raises(InvalidArgument, match=r"cannot be read: Permission denied") as caught:
        find_kernel_spec("locked")
    assert path in str(caught.value)


def test_link_that_leads_nowhere_is_passed_over_with_a_line_in_the_log(search_path, caplog):
    install(search_path[1], "moved", VALID)
    os.makedirs(os.path.join(search_path[0], "file"))
    links = [os.path.join(search_path[0], *parts) for parts in (["moved"], ["file", "kernel.json"])]
    for link in links:
        os.symlink("/nowhere/at/all", link)
    assert list(list_kernel_specs()) == ["moved"]
    assert len(caplog.records) == 2
    assert all(os.path.dirname(path) in caplog.text for path in links)
    assert find_kernel_spec("moved").resource_dir == os.path.join(search_path[1], "moved")


def test_directory_that_cannot_be_read_is_passed_over_with_a_line_in_the_log(search_path, monkeypatch, caplog):
    locked = install(search_path[1], "locked", VALID)
    install(search_path[1], "good", VALID)
    os.makedirs(search_path[0])
    listdir, stat = os.listdir, os.stat

    def refuse(call, refused):
        def refusing(path, *args, **kwargs):
            if str(path).startswith(refused):
                raise PermissionError(13, "Permission denied")
            return call(path, *args, **kwargs)

        return refusing

    with monkeypatch.context() as patched:  # root can read any file
        patched.setattr(os, "listdir", refuse(listdir, search_path[0]))
        patched.setattr(os, "stat", refuse(stat, locked))
        assert list(list_kernel_specs()) == ["good"]
        assert find_kernel_spec("good").name == "good"
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped: {path}: cannot be read: Permission denied" for path in (search_path[0], locked)
    ]


def test_pipe_in_place_of_a_spec_file_is_passed_over(search_path):
    os.makedirs(os.path.join(search_path[0], "pipe"))
    os.mkfifo(os.path.join(search_path[0], "pipe", "kernel.json"))
    assert list_kernel_specs() == {}


def test_byte_order_mark_is_no_harm(search_path):
    install(search_path[0], "mark", "\N{BOM}" + json.dumps(VALID))
    assert find_kernel_spec("mark").argv == VALID["argv"]


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
    spec = KernelSpec("k", ["p"], env={"PATH": "/mine:${PATH}", "ODD": "${NOPE} $HOME $${PATH} ${}", "WON": "spec"})
    assert spec.environment({"PATH": "/bin", "KEPT": "1"}, {"WON": "${PATH}"}) == {
        "PATH": "/mine:/bin",
        "KEPT": "1",
        "ODD": "${NOPE} $HOME ${PATH} ${}",
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
    monkeypatch.setattr(search, "search_path", lambda: [str(tmp_path)])
    spec = find_kernel_spec("Python3")
    assert spec.command("c") == [sys.executable, "-m", "ipykernel_launcher", "-f", "c"]
    assert list_kernel_specs() == {"python3": spec}


def test_spec_file_wins_over_the_built_in_python3(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "search_path", lambda: [str(tmp_path)])
    install(str(tmp_path), "python3", {**VALID, "language": "from the file"})
    assert find_kernel_spec("python3").language == "from the file"
    assert list_kernel_specs()["python3"].language == "from the file"


@pytest.mark.parametrize(
    ("version", "encrypts", "protocol"),
    [
        ("7.4.0", True, "5.5"),
        ("7.3.0a1", True, "5.5"),
        ("7.2.0", False, "5.5"),
        ("6.29.5", False, ""),
        ("odd", False, ""),
    ],
)
def test_built_in_python3_says_what_its_ipykernel_can_do(monkeypatch, tmp_path, version, encrypts, protocol):
    monkeypatch.setattr(search, "search_path", lambda: [str(tmp_path)])
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    spec = find_kernel_spec("python3")
    assert (spec.supports_curve, spec.kernel_protocol_version) == (encrypts, protocol)


def test_built_in_python3_is_the_spec_that_ipykernel_would_install(monkeypatch, tmp_path):
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict

    monkeypatch.setattr(search, "search_path", lambda: [str(tmp_path)])
    ours, theirs = find_kernel_spec("python3"), KernelSpec("python3", resource_dir=RESOURCES, **get_kernel_dict())
    assert ours.supports_curve == theirs.supports_curve
    assert attrs.evolve(ours, metadata={}) == attrs.evolve(theirs, metadata={})


def test_folder_that_is_called_ipykernel_is_no_kernel(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "search_path", lambda: [str(tmp_path / "kernels")])
    (tmp_path / "ipykernel").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert list_kernel_specs() == {}


def test_python3_is_not_found_without_ipykernel(search_path):
    with pytest.raises(NoSuchKernel) as caught:
        find_kernel_spec("python3")
    assert caught.value.available == ()


def testsearch_path_is_that_of_jupyter_and_of_ipython(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    install(str(tmp_path / "jupyter" / "kernels"), "one", VALID)
    install(str(tmp_path / "ipython" / "kernels"), "two", VALID)
    assert {"one", "two"} <= list_kernel_specs().keys()


def test_relative_directory_of_thesearch_path_is_found_from_everywhere(monkeypatch, tmp_path):
    install(str(tmp_path / "jupyter" / "kernels"), "one", VALID)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", "jupyter")
    assert find_kernel_spec("one").resource_dir == str(tmp_path / "jupyter" / "kernels" / "one")


# Allowed kernels


@pytest.fixture
def three(search_path):
    for name in ("a", "b", "C"):
        install(search_path[0], name, VALID)


def test_only_what_is_allowed_is_found_and_listed(three):
    assert list_kernel_specs(allowed=["A", "c", "nope"]).keys() == {"a", "c"}
    assert find_kernel_spec("C", allowed=iter(["c"])).name == "c"
    with pytest.raises(NoSuchKernel, match="'B' is not allowed by .*; allowed and installed are: a") as caught:
        find_kernel_spec("B", allowed=["A", "x"])
    assert caught.value.allowed == ("a", "x")
    assert caught.value.available == ("a",)


def test_kernel_that_is_allowed_and_not_there_is_unknown(three):
    with pytest.raises(NoSuchKernel, match="no kernel named 'x'; there are: a; looked in"):
        find_kernel_spec("x", allowed=["a", "x"])


def test_environment_tells_what_is_allowed_and_no_caller_allows_more(three, monkeypatch):
    monkeypatch.setenv("KCLIENT_ALLOWED_KERNELS", " A, b,")
    assert list_kernel_specs().keys() == {"a", "b"}
    assert list_kernel_specs(allowed=["b", "c"]).keys() == {"b"}
    with pytest.raises(NoSuchKernel, match="not allowed"):
        find_kernel_spec("c", allowed=["c"])
    with pytest.raises(NoSuchKernel, match="not allowed"):
        kclient.KernelManager("c").start_kernel()


def test_empty_variable_allows_all_and_an_empty_collection_none(three, monkeypatch):
    monkeypatch.setenv("KCLIENT_ALLOWED_KERNELS", "")
    assert list_kernel_specs().keys() == {"a", "b", "c"}
    assert list_kernel_specs(allowed=[]) == {}


@pytest.mark.parametrize("text", [",", " ", " , ", ",,"])
def test_variable_without_a_name_in_it_allows_none(three, monkeypatch, text):
    monkeypatch.setenv("KCLIENT_ALLOWED_KERNELS", text)
    assert list_kernel_specs() == {}
    assert list_kernel_specs(allowed=["a"]) == {}
    with pytest.raises(NoSuchKernel, match="'a' is not allowed by KCLIENT_ALLOWED_KERNELS .*are: none"):
        find_kernel_spec("a")
    with pytest.raises(NoSuchKernel, match="not allowed"):
        kclient.start_kernel("a")


def test_kernel_that_is_not_allowed_is_not_started(monkeypatch, runtime_dir):
    monkeypatch.setenv("KCLIENT_ALLOWED_KERNELS", "other")
    with pytest.raises(kclient.NoSuchKernel, match="'python3' is not allowed"):
        kclient.start_kernel("python3")
    assert list(runtime_dir.iterdir()) == []


def test_native_kernel_must_be_allowed_too(monkeypatch, tmp_path):
    monkeypatch.setattr(search, "search_path", lambda: [str(tmp_path)])
    assert list_kernel_specs(allowed=["x"]) == {}
    with pytest.raises(NoSuchKernel, match="not allowed"):
        find_kernel_spec("python3", allowed=["x"])


@pytest.mark.parametrize("allowed", ["python3", [3], 3])
def test_names_that_are_allowed_must_be_a_collection_of_strings(search_path, allowed):
    with pytest.raises(InvalidArgument):
        find_kernel_spec("python3", allowed=allowed)


# Values of a spec


@pytest.mark.parametrize("value", ["curve", " Curve ", ["curve"], ["other", "CURVE"]])
def test_kernel_that_says_curve_can_encrypt(value):
    assert KernelSpec("k", ["p"], metadata={"supported_encryption": value}).supports_curve


@pytest.mark.parametrize(
    "metadata", [{}, *({"supported_encryption": value} for value in (None, "", "curves", [], 1, {}))]
)
def test_kernel_that_does_not_say_curve_cannot(metadata):
    assert not KernelSpec("k", ["p"], metadata=metadata).supports_curve


def test_installed_python3_is_found():
    assert "{connection_file}" in find_kernel_spec("python3").argv


@pytest.mark.parametrize("version", ["5.6", " 5.6 ", "5.6.1", "5.10", "6", "6.0", "10.0"])
def test_kernel_of_protocol_5_6_or_newer_can_choose_its_ports(version):
    assert KernelSpec("k", ["k"], kernel_protocol_version=version).handshakes


TOO_OLD = ["", "5", "5.5", "5.5.9", "4.99", "v5.6", "5.6rc1", "5.6.", "5,6", "٥.٦", pytest.param("9" * 5000, id="huge")]


@pytest.mark.parametrize("version", TOO_OLD)
def test_kernel_of_another_protocol_cannot(version):
    assert not KernelSpec("k", ["k"], kernel_protocol_version=version).handshakes
