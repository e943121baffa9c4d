"""For a frontend: exchange messages with objects in the kernel over comms. Either side may open a comm."""

import array

import kclient

MEAN = """
import array

def open_mean(comm, opened):
    def answer(message):
        numbers = array.array("d", bytes(message["buffers"][0]))
        comm.send({"mean": sum(numbers) / len(numbers)})
    comm.on_msg(answer)

get_ipython().kernel.comm_manager.register_target("mean", open_mean)
"""

WORK = """
from comm import create_comm

progress = create_comm(target_name="progress", data={"steps": 3})
for step in range(1, 4):
    progress.send({"done": step})
progress.close()
"""


def main() -> None:
    with kclient.start_kernel() as kernel:
        kernel.run(MEAN, check=True)
        with kernel.comms.open("mean") as comm:
            comm.send({}, buffers=[array.array("d", [1, 2, 6]).tobytes()])
            print("mean:", comm.receive(timeout=10).content["data"]["mean"])

        kernel.comms.register_target("progress", show_progress)
        kernel.run(WORK, check=True)

        comm = kernel.comms.open("unregistered")
        try:
            comm.receive(timeout=10)
        except kclient.CommClosed as exc:
            print("closed:", exc)


def show_progress(comm: kclient.Comm, opened: kclient.Message) -> None:
    """Called for each comm that the kernel opens to the target "progress"."""
    steps = opened.content["data"]["steps"]
    comm.on_message = lambda message: print(f"progress: {message.content['data']['done']} of {steps}")
    comm.on_close = lambda error: print("progress:", error)


if __name__ == "__main__":
    main()
