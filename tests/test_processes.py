"""How a process ends: exit codes, signals, no orphans; and the locks that it holds."""

import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from builders.limits import patience
from builders.runs import still_alive
from builders.stopping import wait_until

from fer import processes


def _start(body: str, *arguments: str) -> subprocess.Popen[str]:
    script = f"import sys, time\nfrom fer import processes\ndef main():\n    {body}\nprocesses.run(main)\n"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _end(process: subprocess.Popen[str], signum: signal.Signals | None = None) -> tuple[int, str]:
    """Exit code and output; with a signal, sent once the process has written a line."""
    if signum is not None:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signum)
    output, _ = process.communicate(timeout=patience(60))
    return process.returncode, output


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise ValueError('params.yaml: bad')", 1, "error: params.yaml: bad"),
        ("raise OSError(28, 'No space left on device')", 1, "error: No space left on device; make room and run"),
        ("raise OSError(5, 'other words', 'a.db')", 1, "error: a.db: Input/output error; the disk or its network"),
        ("raise OSError(28, 'other words', 'from', None, 'to')", 1, "error: to: No space left on device; make room"),
        ("open('/proc/self/mounts/below')", 1, "error: /proc/self/mounts/below: Not a directory; a part of this"),
        ("raise PermissionError('not for you')", 1, "error: not for you"),
        ("raise OSError('no number')", 1, "Traceback"),
    ],
)
def test_error_ends_with_code_1_and_one_line_and_a_defect_with_its_traceback(body: str, code: int, text: str) -> None:
    ended, output = _end(_start(body))
    assert ended == code
    assert text in output
    assert ("Traceback" in output) == (text == "Traceback")
    assert text == "Traceback" or len(output.splitlines()) <= 1


def test_traceback_of_a_full_disk_is_shown_for_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FER_DEBUG", "1")
    assert "Traceback" in _end(_start("raise OSError(28, 'No space left on device')"))[1]


def test_closed_output_ends_with_code_141_and_without_a_traceback() -> None:
    process = _start("\n    for _ in range(100_000): print('x' * 100)")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(patience(60)) == 141


WEAK_REFERENCE = """
    import os, signal, weakref
    class Module: pass
    module = Module()
    reference = weakref.ref(module, lambda _: {call})
    del module
"""
UP = "print('up', flush=True); time.sleep(60)"
SWALLOWED = f"""
    from contextlib import suppress
    with suppress(BaseException):
        {UP}
"""
CLEAN_UP = "finally:\n        for number in (2, 15): os.kill(os.getpid(), number)\n"
CLEAN_UP += "        time.sleep(1.5); print('cleaned')"  # no further signal breaks it


@pytest.mark.parametrize(
    ("body", "last_words"),
    [
        (f"\n    import os\n    try:\n        {UP}\n    {CLEAN_UP}", "cleaned"),
        (f"{SWALLOWED}    print('done')", "done"),  # the work ends before it is raised again
        (f"{SWALLOWED}    import os\n    try:\n        time.sleep(60)\n    {CLEAN_UP}", "cleaned"),
    ],
    ids=["unwound", "swallowed at the end", "swallowed and raised again"],
)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_unwinds_wherever_it_is_met_and_ends_with_its_code(
    body: str, last_words: str, signum: signal.Signals, code: int
) -> None:
    started = time.monotonic()
    ended, output = _end(_start(body), signum)
    assert ended == code, output
    assert output.count(last_words) == 1
    assert f"stopped by {signum.name}" in output
    assert "Traceback" not in output
    assert time.monotonic() - started < patience(30)


def test_signal_that_cannot_be_raised_is_raised_again_without_a_traceback() -> None:
    body = WEAK_REFERENCE.format(call="os.kill(os.getpid(), signal.SIGTERM)")
    ended, output = _end(_start(f"{body}    time.sleep(60)"))
    assert ended == 143
    assert "stopped by SIGTERM" in output
    assert "Traceback" not in output


def test_other_error_that_cannot_be_raised_is_reported() -> None:
    ended, output = _end(_start(WEAK_REFERENCE.format(call="1 / 0")))
    assert ended == 0
    assert "ZeroDivisionError" in output


@pytest.mark.parametrize("shell", ["", "/bin/sh"], ids=["direct", "through a shell"])
@pytest.mark.parametrize("when", ["later", "while it still starts"])
def test_stage_ends_with_dvc(when: str, shell: str, tmp_path: Path) -> None:
    mark, stage = tmp_path / "pid", tmp_path / "stage.py"
    report = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid()))"
    prepared = f"from fer import processes; processes.prepare()\n{report}; time.sleep(60)"
    starting = f"{report}; time.sleep(2)\nfrom fer import processes; processes.run(lambda: time.sleep(60))"
    stage.write_text(prepared if when == "later" else starting)
    command = [sys.executable, str(stage)]
    if shell:
        command = [shell, "-c", f"{shlex.join(command)}; true"]  # any shell waits for what is not its last command
    script = (
        "import os, subprocess, time\n"
        f"subprocess.Popen({command}, env=os.environ | {{'DVC_STAGE': 'train'}})\n"
        "time.sleep(60)\n"
    )
    dvc = subprocess.Popen([sys.executable, "-c", script])
    wait_until(lambda: mark.exists() and mark.read_text(), dvc)
    family = [psutil.Process(int(mark.read_text()))]
    dvc.kill()
    dvc.wait()
    assert not still_alive(family, 5 if when == "later" else 30), "the stage outlived DVC"


def test_second_holder_of_a_lock_is_refused_with_the_process_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = f"from pathlib import Path; from fer import processes\nwith processes.lock(Path({str(path)!r})): pass"
    with processes.lock(path):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"held by process {os.getpid()}" in done.stderr
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_process_that_waits_for_a_removed_folder_holds_the_new_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, waits, seen = tmp_path / "work" / "one", threading.Event(), []
    monkeypatch.setattr(processes.console.log, "info", lambda *line: (seen.append(line[1:]), waits.set()))

    def wait() -> None:
        with processes.lock(folder / "lock", wait=True):
            with pytest.raises(processes.HeldError, match="held by process"), processes.lock(folder / "lock"):
                seen.append("two hold it")
            seen.append([path.name for path in folder.iterdir()])

    thread = threading.Thread(target=wait)
    with processes.lock(folder / "lock"):
        (folder / "files").mkdir()
        (folder / "files" / "state").touch()
        (folder / "link").symlink_to(tmp_path)
        thread.start()
        assert waits.wait(60)
        processes.remove_held(folder)
        assert not (tmp_path / "work").exists()
    thread.join(60)
    assert seen == [(folder / "lock", str(os.getpid())), ["lock"]]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_is_kept_between_the_steps_of_a_process_that_nobody_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    faults = "resource.getrusage(resource.RUSAGE_SELF).ru_minflt"
    body = f"import resource; before = {faults}; [len(b'x' * 2**26) for _ in range(10)]; print({faults} - before)"
    code, output = _end(_start(body))
    assert code == 0
    assert int(output.split()[-1]) < 2 * 2**26 / resource.getpagesize(), "pages of more than two of the ten blocks"
