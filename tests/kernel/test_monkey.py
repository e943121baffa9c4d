"""Programs in processes of their own: patched by gevent, with threads, and ended while a kernel runs."""

import os
import select
import signal

import pytest

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

PATCH = "from gevent import monkey\nmonkey.patch_all()\n"

EVERYTHING = """
import os, sys, kclient

def main(transport):
    with kclient.start_kernel(transport=transport, timeout=60) as kernel:
        kernel.run("%config Completer.use_jedi = False")
        assert kernel.run("print('hi'); 6 * 7").text == "42"
        assert kernel.run("input('? ')", on_input=lambda prompt, password: prompt).text == "'? '"
        assert kernel.complete("impor").content["matches"] == ["import"]
        assert kernel.control_channel.kernel_info().content["status"] == "ok"
        execution = kernel.submit("print('on')\\nwhile True: pass")
        next(iter(execution))
        execution.interrupt()
        assert execution.result().error.ename == "KeyboardInterrupt"
        kernel.hb_channel.unpause()
        kernel.execute("print('flushed')")
        assert "flushed" in str([message.content for message in kernel.iopub_channel.flush()])
        with kclient.connect(kernel.connection_file) as client:
            assert client.run("print('connected')").stdout == "connected\\n"
        kernel.restart_kernel()
        assert kernel.run("print('restarted')").stdout == "restarted\\n"
        try:
            kernel.run("import os; os._exit(3)")
        except kclient.DeadKernelError as exc:
            assert exc.exit_code == 3
        else:
            raise AssertionError("it lives")
"""

SIDE_BY_SIDE = """
import gevent
def many(kernel):
    greenlets = [gevent.spawn(kernel.run, f"print({n}); {n}") for n in range(20)]
    assert [greenlet.get().text for greenlet in greenlets] == [str(n) for n in range(20)]
"""


@pytest.fixture
def check_it_ends():
    """Wait for the end of a process that has been told to end, and that is no child of this one."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("nothing tells of the end of another's child here")

    def check(pid):
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return  # it has ended already
        with open(process):
            assert select.select([process], [], [], WAIT)[0]

    return check


@pytest.mark.kernel
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_everything_works_after_patch_all(run_script, transport):
    assert run_script(f"{PATCH}{EVERYTHING}main({transport!r})\nprint('done')") == "done"


@pytest.mark.kernel
def test_everything_works_after_patch_all_in_a_thread_and_in_a_greenlet(run_script):
    """After patch_all a thread of the standard library is a greenlet."""
    code = f"{PATCH}{EVERYTHING}import threading, gevent\nthread = threading.Thread(target=main, args=('tcp',))\n"
    code += "thread.start()\nthread.join()\ngevent.spawn(main, 'ipc').get()\nprint('done')"
    assert run_script(code) == "done"


@pytest.mark.kernel
def test_everything_works_in_a_real_thread_of_a_patched_program(run_script):
    code = f"{PATCH}{EVERYTHING}import gevent\ngevent.get_hub().threadpool.apply(main, ('tcp',))\nprint('done')"
    assert run_script(code) == "done"


@pytest.mark.kernel
@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_many_greenlets_share_a_client(run_script, patch):
    code = f"{patch}import kclient\n{SIDE_BY_SIDE}\nwith kclient.start_kernel() as kernel: many(kernel)\nprint('done')"
    assert run_script(code) == "done"


@pytest.mark.kernel
@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_no_other_event_loop_is_imported(run_script, patch):
    code = (
        f"{patch}{EVERYTHING}main('tcp')\nprint(sorted({{'asyncio', 'tornado', 'jupyter_client'}} & set(sys.modules)))"
    )
    assert run_script(code) == "[]"


@pytest.mark.kernel
def test_kclient_patches_nothing(run_script):
    code = f"{EVERYTHING}main('tcp')\nfrom gevent import monkey\nprint(monkey.saved)"
    assert run_script(code) == "{}"


# The end of the program


@pytest.mark.kernel
def test_program_that_ends_over_ipc_leaves_no_socket(run_script, folder):
    start = "import kclient\nkernel = kclient.start_kernel(transport='ipc', timeout=60)"
    ip = run_script(f"{start}\nprint(kernel.get_connection_info()['ip'])")
    assert not os.path.exists(os.path.dirname(ip))
    assert list((folder / "t").iterdir()) == []


@pytest.mark.kernel
def test_kernel_ends_when_its_program_is_killed(start_script, check_it_ends, runtime_dir):
    """No program is left that could end the kernel: it watches its parent. The connection file stays behind."""
    script = start_script(
        "import kclient, gevent\nkernel = kclient.start_kernel(timeout=60)\n"
        "print(kernel.process.pid, kernel.connection_file, flush=True)\ngevent.sleep(600)"
    )
    pid, path = script.read_line().split()
    script.process.send_signal(signal.SIGKILL)
    script.process.wait(WAIT)
    check_it_ends(int(pid))
    os.unlink(path)


@pytest.mark.kernel
def test_kernel_outlives_a_client_that_was_never_closed(kernel, run_script):
    code = "import sys, kclient\nclient = kclient.connect(sys.argv[1])\nprint(client.run('6 * 7').text)"
    assert run_script(code, kernel.connection_file) == "42"
    assert kernel.is_alive()
    assert kernel.run("'alive'").text == "'alive'"


@pytest.mark.kernel
def test_forked_child_makes_a_client_of_its_own(kernel, run_script):
    code = (
        "import os, signal, sys, warnings, kclient\n"
        "warnings.simplefilter('ignore')\n"
        "client = kclient.connect(sys.argv[1])\n"
        "assert client.run('1').text == '1'\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(20)\n"  # ends the process if it hangs
        "    try:\n        client.run('2')\n"
        "    except kclient.ForkedProcess:\n        print('refused', flush=True)\n"
        "    client.close()\n"
        "    import gevent\n"
        "    gevent.reinit()\n"
        "    with kclient.connect(sys.argv[1]) as own: print(own.run('6 * 7').text, flush=True)\n"
        "    sys.exit()\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print(client.run('3').text)\n"
        "client.close()\n"
    )
    assert run_script(code, kernel.connection_file).split() == ["refused", "42", "3"]


@pytest.mark.kernel
def test_forked_child_that_ends_leaves_the_parents_kernel_alone(run_script):
    code = (
        "import os, sys, warnings, kclient\n"
        "warnings.simplefilter('ignore')\n"
        "kernel = kclient.start_kernel(timeout=60)\n"
        "child = os.fork()\n"
        "if child == 0:\n    sys.exit()\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert os.path.exists(kernel.connection_file)\n"
        "print(kernel.run('6 * 7').text)\n"
        "kernel.shutdown_kernel()\n"
    )
    assert run_script(code) == "42"


FORK = """
import os, sys, gevent, kclient
path = sys.argv[1]
with kclient.connect(path) as client:
    client.hb_channel.time_to_dead = 0.1
    client.hb_channel.pause()
    client.hb_channel.unpause()
    client.kernel_info()
    pid = os.fork()
    if not pid:
        gevent.sleep(0.5)
        try:
            client.kernel_info()
        except kclient.ForkedProcess:
            print("refused", flush=True)
        os._exit(0)
    print(os.waitpid(pid, 0)[1])
    client.kernel_info()
"""


@pytest.mark.kernel
def test_heartbeat_of_the_parent_does_not_stop_a_forked_child(run_script, kernel):
    assert run_script(FORK, kernel.connection_file).split() == ["refused", "0"]


@pytest.mark.kernel
def test_forked_child_and_another_thread_cannot_remove_the_files(run_script):
    code = (
        "import os, threading, kclient\n"
        "def check(error):\n"
        "    for name in ('cleanup_connection_file', 'cleanup_ipc_files', 'write_connection_file',\n"
        "                 'load_connection_file'):\n"
        "        try:\n            getattr(kernel, name)()\n"
        "        except error:\n            continue\n"
        "        print(name)\n"
        "with kclient.start_kernel(transport='ipc', timeout=60) as kernel:\n"
        "    thread = threading.Thread(target=check, args=[kclient.WrongThread])\n"
        "    thread.start()\n    thread.join()\n"
        "    pid = os.fork()\n"
        "    if not pid:\n        check(kclient.ForkedProcess)\n        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    with kclient.connect(kernel.connection_file) as client: print(client.run('6 * 7').text)\n"
    )
    assert run_script(code) == "42"


# Pools

POOL_AND_FORK = f"""
{PATCH}
import gevent, multiprocessing, os, signal, sys, warnings, kclient

def check(error):
    for call in (pool.acquire, pool.kernel().__enter__, pool.stats, pool.kernels, pool.wait_until_warm,
                 lambda: pool.shutdown_kernel(lent.kernel_id), lambda: pool.release(lent)):
        try:
            raise AssertionError(f"not refused: {{call()!r}}")
        except error:
            pass

def child():
    signal.alarm({WAIT})  # ends the process if it hangs
    check(kclient.ForkedProcess)
    print("refused", flush=True)
    for end in (lending.__exit__, pool.__exit__):
        end(None, None, None)  # does nothing
    pool.close()
    gevent.sleep(1e-3)  # greenlets of the parent that had not begun have their turn

def child_with_a_pool():
    child()
    with kclient.KernelPool(size=1) as own, own.kernel(timeout={WAIT}) as kernel:
        print(kernel.run("6 * 7").text, flush=True)

warnings.simplefilter("ignore")
with kclient.KernelPool(size=1, on_event=lambda event: print(event.kind, flush=True)) as pool:
    lending = pool.kernel(timeout={WAIT})
    lent = lending.__enter__()
    if not (pid := os.fork()):
        child_with_a_pool()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    gevent.get_hub().threadpool.apply(check, [kclient.WrongThread])
    print(lent.run("'still there'").text, flush=True)
    lending.__exit__(None, None, None)
"""


@pytest.mark.kernel
def test_pool_is_refused_in_a_forked_child_and_in_a_real_thread(run_script):
    told = run_script(POOL_AND_FORK).split("\n")
    told.remove("acquired")  # added once, while the first child begins
    assert told == ["started", "refused", "42", "refused", "'still there'", "released", "ended", "closed"]
