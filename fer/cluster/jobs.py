"""The job server of a Ray cluster: requests to it, and what its refusals mean."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any

from fer import processes
from fer.cluster import compat
from fer.console import log
from fer.io.remote import public_url

FINAL = ("SUCCEEDED", "FAILED", "STOPPED")
STOP_SECONDS = 40.0
UNKNOWN_SECONDS = 3.0


class JobServer:
    """A connection to it. Each call raises ValueError, which says what to set, where the server does not do it.

    Args:
        address: of the cluster's dashboard (http://HEAD:8265) or of Ray itself (host:6379, ray://host:10001); None
            leaves it to RAY_API_SERVER_ADDRESS, RAY_ADDRESS or a cluster on this machine.

    Raises:
        ValueError: the cluster cannot be reached, or refuses the token.
    """

    def __init__(self, address: str | None) -> None:
        processes.quiet_libraries()
        if address is not None:
            # RAY_ADDRESS overrules Ray's own argument, and this variable overrules RAY_ADDRESS: ours must win.
            processes.set_environment("RAY_API_SERVER_ADDRESS", address)
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it logs its sockets
        self._client = _ask(JobSubmissionClient, address, shown=address)

    @property
    def address(self) -> str:
        """Of the dashboard, without credentials."""
        return public_url(self._client.get_address())

    def jobs(self, name: str) -> list[Any]:
        """Ray's details of the jobs whose id begins with `name`, ended ones too."""
        return [job for job in _ask(self._client.list_jobs) if str(job.submission_id or "").startswith(name)]

    def submit(self, submission: str, line: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Submits a job under this id.

        Args:
            line: for the shell of the head node.
        """
        _ask(
            self._client.submit_job,
            entrypoint=line, submission_id=submission, runtime_env=runtime_env, metadata=metadata,
        )  # fmt: skip

    def follow(self, submission: str) -> int:
        """Copies the job's log to standard output until the job ends; its exit code."""
        from aiohttp import ClientError

        copy = _LogCopy(self._client, submission)
        while True:
            try:
                asyncio.run(copy.run())
            except (OSError, RuntimeError, ClientError) as error:
                log.warning("the log of job %s broke off (%s); reconnecting", submission, error)
                time.sleep(2)
            try:
                info = _ask(self._client.get_job_info, submission)
            except ValueError as error:
                raise ValueError(
                    f"{error}. Job {submission} may still run; the same command follows it again"
                ) from None
            if info.status in FINAL:
                return _exit_code(info, submission)
            time.sleep(0.2)

    def stop(self, submission: str) -> None:
        """Stops a job, and reports where it does not stop; raises nothing, since another exception is being raised.

        The cluster may not know the job: an interrupted request to submit it was not sent, or is about to arrive.
        """
        log.warning("stopping job %s", submission)
        started, patience = time.monotonic(), UNKNOWN_SECONDS
        while True:
            try:
                _ask(self._client.stop_job, submission)  # again and again: one that has not started does not hear it
                patience = STOP_SECONDS
                for _ in range(5):
                    if _ask(self._client.get_job_info, submission).status in FINAL:
                        log.warning("job %s: stopped; no partial output was left under a final name", submission)
                        return
                    time.sleep(0.2)
                reason = "it is still running"
            except ValueError as error:
                reason = str(error)
                time.sleep(0.2)
            if time.monotonic() - started > patience:
                log.error(
                    "job %s: not seen to stop within %.0f s (%s); look at the cluster's dashboard",
                    submission, patience, reason,
                )  # fmt: skip
                return


class _LogCopy:
    """Writes each character of a job's log once, although every connection begins with the first one."""

    def __init__(self, client: Any, submission: str) -> None:
        self._client = client
        self._submission = submission
        self._written = 0

    async def run(self) -> None:
        """One connection, until the job ends or the connection breaks."""
        seen = 0
        async for chunk in self._client.tail_job_logs(self._submission):
            if seen + len(chunk) > self._written:
                sys.stdout.write(chunk[max(0, self._written - seen) :])
                sys.stdout.flush()
            seen += len(chunk)
            self._written = max(self._written, seen)


def _exit_code(info: Any, submission: str) -> int:
    # Ray's own command line turns every failure into 1; the code of the process itself stands in the job's details.
    code = info.driver_exit_code
    if info.status == "STOPPED":
        log.warning("job %s: stopped", submission)
        return 143
    if code is None:
        log.error("job %s: did not start: %s", submission, info.message)
        return 1
    code = int(code) if code >= 0 else 128 - int(code)
    if code:
        log.error("job %s: failed with exit code %d", submission, code)
    else:
        log.info("job %s: done", submission)
    return code


def _ask(call: Any, *args: Any, shown: str | None = None, **options: Any) -> Any:
    """One request to the cluster; what fails there becomes a ValueError that says what to set."""
    from ray.exceptions import AuthenticationError

    where = public_url(shown) if shown else "the Ray cluster"
    try:
        return call(*args, **options)
    except AuthenticationError as error:
        own = "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file that holds it)"
        printed = "on the cluster's head `ray get-auth-token` prints it"
        raise ValueError(
            {
                "unreadable": "RAY_AUTH_TOKEN_PATH names a file that cannot be read or is empty",
                "refused": f"{where} refuses the token. Set {own} to the token of the cluster; {printed}",
                "missing": f"{where} requires a token and none was sent. Set RAY_AUTH_MODE=token and {own}; {printed}",
            }[compat.token_problem(error)]
        ) from None
    except ConnectionError as error:
        raise ValueError(
            f"{where} does not answer ({error}). Give the dashboard's address with --address http://HEAD:8265 or "
            "RAY_ADDRESS; the head must run `ray start --head --dashboard-host 0.0.0.0` with the ray[default] packages"
        ) from None
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}") from None
