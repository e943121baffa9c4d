import threading
import time

import gevent
import pytest

import kclient

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

KINDS = 4


def ask_and_check(client, number):
    """One of four kinds of question. Only this question has this answer."""
    kind = number % KINDS
    name = f"name_{number}_of_many"
    if kind == 0:
        content = client.execute(f"x{number} = {number}", user_expressions={"own": f"'{name}'"}, timeout=WAIT).content
        return content["user_expressions"]["own"]["data"]["text/plain"] == f"'{name}'"
    if kind == 1:
        content = client.complete(f"completed_{number}_", timeout=WAIT).content
        return content["matches"] == [f"completed_{number}_x"]
    if kind == 2:
        content = client.inspect(f"inspected_{number}", timeout=WAIT).content
        return f"docstring {number}!" in content["data"]["text/plain"]
    result = client.run(f"print('{name}'); {number}", timeout=WAIT)
    return (result.stdout, result.text) == (f"{name}\n", str(number))


def test_each_of_50_greenlets_on_one_client_gets_its_own_reply_and_output(client, background):
    client.run(
        "for n in range(50):\n"
        "    globals()[f'completed_{n}_x'] = n\n"
        "    exec(f'def inspected_{n}(): \"docstring {n}!\"')",
        check=True,
    )
    for _ in range(2):
        calls = [background(ask_and_check, client, number) for number in range(50)]
        assert [number for number, call in enumerate(calls) if call.get() is not True] == []


def test_each_of_50_greenlets_gets_its_own_error_and_input(client, background):
    def answer(number):
        return client.run(
            f"input('{number}? ') + str(1 / 0 if {number} % 2 else '!')", on_input=lambda *asked: f"{asked[0]}"
        )

    calls = [background(answer, number) for number in range(50)]
    for number, call in enumerate(calls):
        result = call.get()
        if number % 2:
            assert result.error.ename == "ZeroDivisionError"
        else:
            assert result.text == f"'{number}? !'"


def test_ticker_keeps_ticking_during_a_long_execute(client):
    """A greenlet sleeps 1 ms at a time. The same ticker shows first how often it can do so on an idle hub."""

    def count_ticks(call):
        ticks = 0
        longest = 0.0

        def tick():
            nonlocal ticks, longest
            last = time.monotonic()
            while True:
                gevent.sleep(0.001)
                ticks += 1
                longest = max(longest, time.monotonic() - last)
                last = time.monotonic()

        ticker = gevent.spawn(tick)
        call()
        ticker.kill()
        return ticks, longest

    idle, _ = count_ticks(lambda: gevent.sleep(0.5))
    busy, longest = count_ticks(lambda: client.execute("import time; time.sleep(2)", timeout=WAIT))
    assert busy > idle  # in four times the time
    assert longest < 1


def test_ticker_keeps_ticking_while_output_floods_in(client, folder):
    """The flood ends when the ticker has ticked often enough."""
    enough = folder / "enough"

    def tick():
        for _ in range(100):
            gevent.sleep(0.001)
        enough.touch()

    ticker = gevent.spawn(tick)
    code = f"import os\nwhile not os.path.exists({str(enough)!r}):\n    print('x' * 10_000, flush=True)"
    assert client.run(code).ok
    ticker.get(timeout=WAIT)


def test_kernels_run_side_by_side(start_kernel, background, make_gate):
    """Neither execution can end without the other."""
    gates = [make_gate(), make_gate()]
    managers = [start_kernel(transport=transport) for transport in ("tcp", "ipc")]
    executions = [
        manager.submit(f"print('on', flush=True); {gate.code} {number}")
        for number, (manager, gate) in enumerate(zip(managers, gates, strict=True))
    ]
    for execution, gate in zip(executions, reversed(gates), strict=True):
        next(iter(execution))
        gate.open()
    assert [execution.result().text for execution in executions] == ["0", "1"]


def test_greenlets_start_kernels_at_the_same_time(background):
    def start_and_run(number):
        with kclient.start_kernel(transport="tcp" if number % 2 else "ipc", timeout=WAIT) as manager:
            return manager.run(f"print({number})", timeout=WAIT).stdout

    calls = [background(start_and_run, number) for number in range(4)]
    assert [call.get() for call in calls] == [f"{number}\n" for number in range(4)]


def test_everything_works_in_the_hub_of_another_thread(transport, kernel):
    """A thread has a hub of its own, whose loop is not the default one: it has no child watchers and no signals."""
    outcome = {}

    def work():
        try:
            with kclient.start_kernel(transport=transport, timeout=WAIT) as manager:
                outcome["run"] = manager.run("print('in a thread'); 6 * 7").text
                manager.run("%config Completer.use_jedi = False", check=True)
                outcome["complete"] = manager.complete("impor", timeout=WAIT).content["status"]
                greenlets = [gevent.spawn(manager.run, f"{number}") for number in range(5)]
                outcome["greenlets"] = [greenlet.get(timeout=WAIT).text for greenlet in greenlets]
                manager.restart_kernel(timeout=WAIT)
                execution = manager.submit("print('on')\nwhile True: pass")
                next(iter(execution))
                execution.interrupt()
                outcome["interrupted"] = execution.result().error.ename
                try:
                    manager.run("import os; os._exit(3)")
                except kclient.DeadKernelError as exc:
                    outcome["exit code"] = exc.exit_code
            with kclient.connect(kernel.connection_file, timeout=WAIT) as client:
                outcome["connected"] = client.run("6 * 7").text
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=work)
    thread.start()
    gevent.get_hub().threadpool.apply(thread.join)
    assert outcome == {
        "run": "42",
        "complete": "ok",
        "greenlets": ["0", "1", "2", "3", "4"],
        "interrupted": "KeyboardInterrupt",
        "exit code": 3,
        "connected": "42",
    }


def test_clients_of_several_threads_share_a_kernel(kernel):
    outcomes = []

    def work(number):
        try:
            with kclient.connect(kernel.connection_file, timeout=WAIT) as client:
                outcomes.append([client.run(f"print({number})").stdout for _ in range(10)] == [f"{number}\n"] * 10)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        gevent.get_hub().threadpool.apply(thread.join)
    assert outcomes == [True] * 4


def test_plain_script_waits_without_spinning(client):
    """A call that polled would use the processor while the kernel sleeps."""
    before = time.process_time()
    client.execute("import time; time.sleep(1)", timeout=WAIT)
    assert time.process_time() - before < 0.5


@pytest.mark.parametrize("timeout", [0.05, 0.2])
def test_timeout_is_honoured_while_other_greenlets_work(client, gate, timeout):
    def work():
        while True:
            sum(range(10_000))
            gevent.sleep(0)

    execution = client.submit(gate.code)
    worker = gevent.spawn(work)
    started = time.monotonic()
    with pytest.raises(kclient.KernelTimeout):
        execution.result(timeout=timeout)
    assert timeout <= time.monotonic() - started < timeout + WAIT / 2
    worker.kill()
    gate.open()
    assert execution.result().ok
