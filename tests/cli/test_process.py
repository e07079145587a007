"""What only a process of its own can show."""

import json
import os
import subprocess
import sys

_MAIN = "import sys; from vila_jax.cli.main import main; code = main(sys.argv[1:])"


def _run(check, *arguments, **options):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    return subprocess.run(
        [sys.executable, "-c", f"{_MAIN}; {check}", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**environment, **options.pop("env", {})},
        timeout=120,
        check=False,
        **options,
    )


def test_help_does_not_wait_for_jax():
    done = _run("sys.exit(any(name in sys.modules for name in ('jax', 'flax', 'transformers')))", "--help")
    assert done.returncode == 0
    assert "exit codes:" in done.stdout


def _enter(argument, *lines):
    program = ["import gc, sys", "from vila_jax.cli import main", f"sys.argv[1:] = [{argument!r}]", *lines]
    program.append("main.entry()")
    command = [sys.executable, "-c", "\n".join(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_installed_command_settles_the_process_and_ends_with_the_code():
    """The collector waits while a command runs; what was written is there, and a wrong word is an exit code."""
    done = _enter("nonsense", "run, main.main = main.main, lambda: print(gc.get_threshold()[0]) or run()")
    assert (done.returncode, done.stdout.split()) == (2, ["50000"])
    assert "nonsense" in done.stderr


def test_the_installed_command_waits_for_no_thread():
    lines = ("import threading", "threading.Thread(target=lambda: threading.Event().wait()).start()")
    assert _enter("--version", *lines).returncode == 0


def test_the_installed_command_lets_errors_through():
    """As `VILA_JAX_TRACEBACK` asks for."""
    done = _enter("--version", "def broken():", "    raise ValueError('why')", "main.main = broken")
    assert done.returncode == 1 and "ValueError: why" in done.stderr


def test_asking_prints_one_object_and_imports_no_other_framework(llava, photo, tmp_path):
    check = "sys.exit(code or 100 * any(name in sys.modules for name in ('torch', 'tensorflow')))"
    arguments = ("ask", llava, "--image", photo, "--prompt", "hello", "--max-new-tokens", "3", "--json")
    done = _run(check, *arguments, env={"VILA_JAX_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(json.loads(done.stdout)["token_ids"]) <= 3
    assert list((tmp_path / "cache").iterdir())  # what was compiled is kept


def test_a_reader_that_goes_away_is_no_error(llava):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "vila_jax.cli.main", "inspect", str(llava)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
