"""The connection file of a kernel: written, loaded and removed by its manager."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from kclient.concurrency.owner import Owner
from kclient.errors import InvalidState
from kclient.kernels.connection.endpoint import Endpoint
from kclient.kernels.connection.files import find_connection_file

if TYPE_CHECKING:
    from kclient.kernels.specs.spec import KernelSpec
    from kclient.protocol.session import Session


class ConnectionFileMixin(ABC):
    """What a manager does with the file that tells where its kernel listens."""

    _owner: Owner
    _endpoint: Endpoint
    _session: Session

    @property
    @abstractmethod
    def has_kernel(self) -> bool: ...

    @property
    @abstractmethod
    def kernel_spec(self) -> KernelSpec: ...

    @property
    @abstractmethod
    def channels_running(self) -> bool: ...

    @abstractmethod
    def _fit_client(self) -> None:
        """Let session and client go on with the keys and the ports of now."""

    @abstractmethod
    def _drop_client(self) -> None: ...

    @property
    def connection_file(self) -> str | None:
        """The path of the connection file; None while none is chosen."""
        return self._endpoint.path

    def get_connection_info(self) -> dict[str, Any]:
        """What the connection file holds, keys included."""
        return self._endpoint.info.to_dict()

    def write_connection_file(self) -> None:
        """Choose ports, keys and path, if that is still to be done, and write the file, readable by this user alone.

        Whether there are keys is for the kernel spec to say, unless encryption is off: raises NoSuchKernel.
        """
        self._owner.check()
        if self._endpoint.may_get_keys:
            self._endpoint.encrypt(self.kernel_spec)
        self._endpoint.write()
        self._fit_client()

    def load_connection_file(self, connection_file: str | os.PathLike[str] | None = None) -> None:
        """Take the ports and the key of an existing file; raises ConnectionFileError."""
        self._owner.check()
        if self.has_kernel or self.channels_running:
            raise InvalidState("a kernel or its channels run; shut them down before loading another connection file")
        path = connection_file if connection_file is not None else self.connection_file
        if path is None:
            raise InvalidState("no connection file was named; pass its path")
        self._endpoint.load(find_connection_file(path))  # finds it first, since it removes what was written here
        self._session = self._endpoint.new_session()
        self._drop_client()

    def cleanup_connection_file(self) -> None:
        """Remove the connection file, if it was written here."""
        self._owner.check()
        self._endpoint.remove_connection_file()

    def cleanup_ipc_files(self) -> None:
        """Remove the sockets of an ipc kernel."""
        self._owner.check()
        self._endpoint.remove_ipc_files()
