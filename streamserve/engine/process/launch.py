"""Starts, restarts and stops an engine process.

The parent binds the engine socket (mode 0600 in a folder of its own) and hands the listening end to the child, so that workers
can connect before the child is up and never get a path that does not exist. The configuration goes down the child's
standard input, which then stays open: its end tells the child that the parent has exited or wants it to. Blocking calls of
microseconds; only `restart` and `stop` wait.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig, replace
from streamserve.engine.process.last_words import LastWords
from streamserve.errors import ConfigError, EngineDead
from streamserve.process.child import encode_with_paths, start_module
from streamserve.process.limits import share_of_cores
from streamserve.process.owned_folder import OwnedFolder

EXECUTOR = "streamserve.executor.choose:executor_for"

MAX_PATH_BYTES = 107
"""Of the path of a socket (unix(7))."""

STOP_TIMEOUT_S = 10.0
"""Seconds that a process gets to end."""


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process reads from its standard input, as one line of JSON.

    listen_fd           the inherited listening socket
    last_words_fd       the inherited pipe for what the next engine should know
    executor            "module:callable" that makes an `Executor` of (config, checkpoint)
    compile_constraint  "module:callable" that makes a `CompileConstraint` of (config, checkpoint); without it they are refused
    """

    listen_fd: int
    last_words_fd: int
    config: EngineConfig
    checkpoint: Checkpoint
    executor: str = EXECUTOR
    compile_constraint: str | None = None


class EngineProcess:
    """An engine process and its socket.

    executor, compile_constraint  as in `Launch`
    folder  where its socket is to be; by default a folder of its own, which is removed with the process
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        *,
        executor: str = EXECUTOR,
        compile_constraint: str | None = None,
        folder: OwnedFolder | None = None,
    ) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._executor = executor
        self._compile_constraint = compile_constraint
        self._shared_folder = folder
        self._folder: OwnedFolder | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._last_words: LastWords | None = None

    @property
    def address(self) -> str:
        """The path of the engine socket; raises `EngineDead` unless started."""
        if self._folder is None:
            raise EngineDead("the engine process was not started, or was stopped")
        return str(self._folder.path / f"engine-{self._config.replica}.sock")

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def start(self) -> str:
        """Start the process; returns the address, which can be connected to at once."""
        self._folder = self._shared_folder or OwnedFolder()
        try:
            with listening_socket(self.address) as listening:
                self._child = self._spawn(listening.fileno())
        except BaseException:
            self._remove_address()
            raise
        return self.address

    def restart(self) -> None:
        """Start the process again after it has ended, at the same address. Blocks until the old one has exited."""
        address, child = self.address, self._child
        if child is not None:
            assert child.stdin is not None
            child.stdin.close()
            child.wait()
        with listening_socket(address) as listening:
            self._child = self._spawn(listening.fileno())

    def learn_step_tokens(self) -> bool:
        """Have the next start compute smaller steps, if this process has ended since one ran out of memory; returns whether."""
        words, self._last_words = self._last_words, None
        most_tokens = None if words is None else words.read()
        before = self._config.most_step_tokens
        if most_tokens is None or (before is not None and most_tokens >= before):
            return False
        self._config = replace(self._config, most_step_tokens=most_tokens)
        return True

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return None if self._child is None else self._child.poll()

    def kill(self) -> None:
        """End the process at once; whoever waits for its end may restart it."""
        if self._child is not None:
            self._child.kill()

    def request_end(self) -> None:
        """Have the process end, without waiting for it; `stop` does."""
        if self._child is not None:
            assert self._child.stdin is not None
            self._child.stdin.close()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the process, by force after `timeout_s`. Blocks; idempotent."""
        child, self._child = self._child, None
        if child is not None:
            assert child.stdin is not None
            child.stdin.close()
            try:
                child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._forget_last_words()
        self._remove_address()

    def _spawn(self, listen_fd: int) -> subprocess.Popen[bytes]:
        self._forget_last_words()
        words = self._last_words = LastWords()
        launch = Launch(
            listen_fd=listen_fd,
            last_words_fd=words.theirs,
            config=self._config,
            checkpoint=self._checkpoint,
            executor=self._executor,
            compile_constraint=self._compile_constraint,
        )
        try:
            child = start_module(
                "streamserve.engine.process.main", pass_fds=[listen_fd, words.theirs], variables=self._variables()
            )
        finally:
            os.close(words.theirs)
        assert child.stdin is not None
        child.stdin.write(encode_with_paths(launch) + b"\n")
        child.stdin.flush()
        assert self._folder is not None
        self._folder.name_process(child.pid)
        return child

    def _variables(self) -> dict[str, str]:
        """A share of the cores where engines run their one rank themselves, unless the environment says otherwise."""
        config = self._config
        if config.data_parallel_size == 1 or config.executor_backend != "uni" or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(share_of_cores(config.num_ranks))}

    def _forget_last_words(self) -> None:
        words, self._last_words = self._last_words, None
        if words is not None:
            words.close()

    def _remove_address(self) -> None:
        if self._folder is None:
            return
        Path(self.address).unlink(missing_ok=True)
        folder, self._folder = self._folder, None
        if folder is not self._shared_folder:
            folder.remove()


def listening_socket(path: str) -> socket.socket:
    """A listening AF_UNIX socket for this user only (mode 0600), in the place of one that was left there.

    Raises `ConfigError` when the path is longer than the system's sockets take.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        try:
            listening.bind(path)
        except OSError as error:
            if len(os.fsencode(path)) > MAX_PATH_BYTES:
                raise ConfigError(f"the path of a socket is too long: {path}; set TMPDIR to a shorter folder") from error
            raise
        os.chmod(path, 0o600)
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening
