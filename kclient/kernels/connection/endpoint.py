"""Endpoint: the ports, key and connection file of one kernel, made before it starts and removed after it ends."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Final

import attrs

from kclient.errors import ConnectionFileError, InvalidArgument, InvalidState, LaunchError
from kclient.kernels.connection.encryption import check_encryption, is_wanted, new_keys
from kclient.kernels.connection.files import (
    PrivateFolder,
    check_no_text,
    check_replaceable,
    folders_made_for,
    new_connection_file,
    new_ipc_folder,
    read_connection_file,
    remove_connection_file,
    remove_ipc_files,
    write_connection_file,
)
from kclient.kernels.connection.port_conflicts import describe, is_taken, taken_ports
from kclient.kernels.connection.ports import PortReservation, is_local, local_addresses
from kclient.kernels.specs.spec import KernelSpec
from kclient.protocol.connection import CHANNELS, ConnectionInfo, check_host
from kclient.protocol.session import Session

if TYPE_CHECKING:
    from kclient.kernels.connection.handshake import Registrar

TRANSPORTS: Final = ("tcp", "ipc")


class Endpoint:
    """The connection info of one kernel, and the files that belong to it.

    `prepare` chooses the ports that are 0. An endpoint removes only files that it wrote itself.
    """

    def __init__(
        self,
        kernel_name: str,
        transport: str,
        ip: str | None,
        path: str | os.PathLike[str] | None,
        encryption: str = "auto",
    ) -> None:
        if transport not in TRANSPORTS:
            raise InvalidArgument(f"transport must be 'tcp' or 'ipc', not {transport!r}")
        if ip is not None:
            if not isinstance(ip, str):
                raise InvalidArgument(f"ip must be a string, not {ip!r}")
            check_host(ip)
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise InvalidArgument(f"connection_file must be a path, not of type {type(path).__name__}")
        self.encryption = check_encryption(encryption)
        self.path: str | None = None if path is None else os.fspath(path)
        if self.path is not None:
            check_no_text(self.path)
        self.info = ConnectionInfo(
            transport=transport,
            ip=_bind_address(transport, ip),
            key=secrets.token_hex(32).encode(),
            kernel_name=kernel_name,
        )
        self._wants_fresh_path = path is None
        self._wants_fresh_ports = True
        self._is_written = False
        self._is_for_our_kernel = False
        self._folder: PrivateFolder | None = None
        self._reservation: PortReservation | None = None
        self._registrar: Registrar | None = None
        self._registration_path: str | None = None
        self._kernel_chose_ports = False

    def load(self, path: str) -> None:
        """Take the values of an existing connection file. This endpoint does not remove that file.

        The file also decides on encryption. Raises ConnectionFileError if keys are required and the file has none.
        """
        info = read_connection_file(path)
        if self.encryption == "required" and not info.curve_publickey:
            raise ConnectionFileError(
                f"connection file {path}: it has no curve_publickey, and encryption is required; "
                "pass encryption='auto' to connect without encryption",
                path=path,
            )
        if not (self._is_written and self.path is not None and os.path.samefile(path, self.path)):
            self.remove()
        self.info = info
        self.path = path
        self._wants_fresh_path = self._wants_fresh_ports = self._is_written = self._is_for_our_kernel = False
        self._kernel_chose_ports = False

    @property
    def are_ports_given(self) -> bool:
        """True if the ports were chosen before the kernel starts: it must then listen on those."""
        return self.info.shell_port != 0 and not self._kernel_chose_ports

    @property
    def may_get_keys(self) -> bool:
        """True if the kernel's spec decides whether there will be keys."""
        return self.encryption != "off" and self.info.shell_port == 0 and not self.info.curve_publickey

    def encrypt(self, spec: KernelSpec) -> None:
        """Choose keys, once, if a kernel of that spec gets any.

        Raises InvalidArgument if keys are required and the kernel cannot use them.
        """
        if is_wanted(self.encryption, spec) and self.may_get_keys:
            public, secret = new_keys()
            self.info = attrs.evolve(self.info, curve_publickey=public, curve_secretkey=secret)

    def prepare(self, last_pid: int | None = None) -> str:
        """Choose missing ports, reserve the tcp ports, write the connection file and return its path.

        The kernel before had the pid `last_pid`, and its ports stay the same. If another program has one of them now,
        for example a child that left that kernel's process group, others are chosen, unless the user gave them.

        Raises InvalidState, a RuntimeError, if the ip belongs to another machine, so that no kernel can listen on it
        here. Raises LaunchError if another program listens on an ipc address that was chosen before.
        """
        info = self.info
        if info.transport == "ipc" and info.shell_port and (taken := taken_ports(info)):
            # libzmq in the kernel would replace the other program's socket file
            raise LaunchError(f"cannot start the kernel: {describe(info, taken)}", taken_ports=taken)
        self._check_ip()
        if info.shell_port == 0:
            self._choose()
        elif info.transport == "tcp" and self._reservation is None:
            if last_pid is not None and taken_ports(info, last_pid):
                self.change_ports()
            if self._reservation is None:
                self._reservation = PortReservation.of(info.ip, [info.port(channel) for channel in CHANNELS])
        self._is_for_our_kernel = True
        return self.write()

    def expect_registration(self) -> Registrar:
        """Use this instead of `prepare` if the kernel chooses its ports. Write a registration file, and listen.

        The caller starts the kernel with the registration file, then calls `register` or `end_registration`. Raises
        LaunchError, ConnectionFileError and InvalidState.
        """
        from kclient.kernels.connection.handshake import Registrar  # few kernels need it

        self._check_ip()
        if self.path is None:
            self.path = new_connection_file()
        elif not self._is_written:
            check_replaceable(self.path)
        self._is_written = True  # from here on `remove` removes it
        self.info = self._without_ports()
        if self._registration_path is None:
            self._registration_path = new_connection_file("registration")
        self._registrar = Registrar(self.info, self._registration_path)
        return self._registrar

    def register(self, ports: Sequence[int]) -> None:
        """Note the ports that the kernel reported, in the order of CHANNELS, and write the connection file."""
        self.info = self.info.with_ports(self.info.ip, ports)
        self._kernel_chose_ports = True
        if self.path is not None:
            write_connection_file(self.info, self.path)

    def end_registration(self) -> None:
        """Stop listening for a report. A second call does nothing."""
        if self._registrar is not None:
            self._registrar.close()
            self._registrar = None

    def write(self) -> str:
        """Write the connection file, unless the user's own exists, and return its path. Chooses ports that are 0 first.

        One that was written here is written anew: a kernel writes to it, too, and may be killed in the middle of that.
        """
        if self.info.shell_port == 0:
            self._choose()
        if self.path is None:
            self.path = new_connection_file()
        is_new = not self._is_written
        if not is_new or not os.path.exists(self.path) or self._wants_fresh_ports:
            if is_new:
                check_replaceable(self.path)
            write_connection_file(self.info, self.path)
            self._is_written = True
        return self.path

    def new_session(self) -> Session:
        """A new session with the kernel that listens here."""
        info = self.info
        return Session(info.key, signature_scheme=info.signature_scheme, server_key=info.curve_publickey)

    def give_key_to(self, session: Session) -> None:
        """Let `session` know the public key of the kernel, if the kernel encrypts."""
        session.server_key = self.info.curve_publickey

    @property
    def is_encrypted(self) -> bool:
        """True if the kernel encrypts."""
        return bool(self.info.curve_publickey)

    def let_go_of_ports(self) -> None:
        """End the reservation of the ports: the kernel has bound them, or never will."""
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None

    def change_ports(self) -> None:
        """Choose other ports for the next start, and write them to the file. Ports not chosen here stay."""
        if not self._wants_fresh_ports or not self.are_ports_given:
            return
        self.let_go_of_ports()
        self._choose()
        if self.path is not None:
            write_connection_file(self.info, self.path)

    def remove_connection_file(self) -> None:
        """Remove the connection file, if it was written here."""
        if self._is_written and self.path is not None:
            remove_connection_file(self.path)
            self._is_written = False
            if self._wants_fresh_path:
                self.path = None

    def remove_ipc_files(self) -> None:
        """Remove the socket files of an ipc kernel, if it was started from here."""
        if self._is_for_our_kernel:
            remove_ipc_files(self.info)

    def traces(self) -> list[str]:
        """The files that `remove` would remove, in the format that `orphan_guard_main` describes."""
        if self._folder is not None:
            files = [f"d{self._folder.path}"]
        else:
            files = [f"s{path}" for path in self.info.ipc_paths() if self._is_for_our_kernel]
        for path in (self.path if self._is_written else None, self._registration_path):
            if path is not None:
                files.append(f"f{os.path.abspath(path)}")
                files += [f"d{folder}" for folder in folders_made_for(path)]
        return files

    def remove(self) -> None:
        """Remove all files that were written here, and forget the ports that were chosen here."""
        self.let_go_of_ports()
        self.end_registration()
        if self._registration_path is not None:  # the kernel may have written its own connection info there
            remove_connection_file(self._registration_path)
            self._registration_path = None
        self.remove_ipc_files()
        self._is_for_our_kernel = False
        self.remove_connection_file()
        if self._wants_fresh_ports:
            if self._folder is not None:
                self._folder.remove()
                self._folder = None
                self.info = attrs.evolve(self.info, ip="")
            self.info = self._without_ports()
            self._kernel_chose_ports = False

    def _check_ip(self) -> None:
        if self.info.transport == "tcp" and not is_local(self.info.ip):
            raise InvalidState(
                f"a kernel can only be started on an address of this machine, and {self.info.ip!r} is not one; "
                f"choose one of {', '.join(local_addresses())}"
            )

    def _without_ports(self) -> ConnectionInfo:
        return attrs.evolve(self.info, shell_port=0, iopub_port=0, stdin_port=0, control_port=0, hb_port=0)

    def _choose(self) -> None:
        if self.info.transport == "tcp":
            self._reservation = PortReservation(self.info.ip, len(CHANNELS))
            self.info = self.info.with_ports(self.info.ip, self._reservation.ports)
            return
        if not self.info.ip:
            self._folder = new_ipc_folder()
        ip = self._folder.ip if self._folder is not None else self.info.ip
        free = (number for number in count(1) if not is_taken(f"{ip}-{number}"))
        self.info = self.info.with_ports(ip, list(islice(free, len(CHANNELS))))


def _bind_address(transport: str, ip: str | None) -> str:
    """The `ip` for the connection file; empty for an ipc folder that is still to be made."""
    if transport == "ipc":
        try:
            return os.path.abspath(ip) if ip else ""
        except FileNotFoundError as exc:
            raise InvalidArgument(f"ip {ip!r} is a path below the working directory, which is deleted") from exc
    return "0.0.0.0" if ip in ("*", "") else ip or "127.0.0.1"
