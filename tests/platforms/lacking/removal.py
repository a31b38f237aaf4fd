"""Takes away what macOS or Windows lack, in this process and in each Python that it starts.

What the environment variable LACKING names is imitated. The engine's modules find out that they are
there; those of others (psutil, filelock, the standard library) have ways of their own there, and
keep those that they have here.
"""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
SYSTEMS = {"macos": "darwin", "windows": "win32"}
#: Missing in both, and missing in Windows beside that.
OS = {
    "macos": ("sched_getaffinity", "sched_setaffinity", "pidfd_open", "waitid", "memfd_create"),
    "windows": (
        *("fork", "forkpty", "killpg", "setsid", "getsid", "setpgid", "getpgid", "getpgrp"),
        *("getuid", "geteuid", "getgid", "getegid", "setuid", "wait3", "wait4", "mkfifo", "chown"),
        *("getloadavg", "nice", "openpty", "ctermid", "sync", "posix_spawn"),
    ),
}
SIGNAL = {
    "macos": ("sigtimedwait", "sigwaitinfo", "SIGPWR", "SIGRTMIN", "SIGRTMAX"),
    "windows": (
        *("SIGHUP", "SIGKILL", "SIGCHLD", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGSTOP", "SIGCONT"),
        *("sigwait", "pthread_sigmask", "alarm", "setitimer", "SIG_BLOCK", "SIG_UNBLOCK"),
    ),
}
MODULES = ("fcntl", "pwd", "grp", "resource", "termios", "pty")
OURS = ("engine", "plugins_builtin", "family")
#: Modules of ours that ask which system this is.
ASKING = ("engine.experiment.system", "engine.testing.probe")

_import = builtins.__import__
_removed: list[tuple[types.ModuleType, str, object]] = []
_system = os.environ.get("LACKING", "")


class Sys(types.ModuleType):
    """``sys`` of another system."""

    platform = SYSTEMS.get(_system, sys.platform)

    def __getattr__(self, name):
        return getattr(sys, name)


def apply() -> None:
    whole = types.ModuleType("signal")
    vars(whole).update(vars(signal))
    subprocess.signal = whole
    for kind in ("macos", "windows") if _system == "windows" else (_system,):
        for module, names in ((os, OS[kind]), (signal, SIGNAL[kind])):
            for name in names:
                if hasattr(module, name):
                    _removed.append((module, name, getattr(module, name)))
                    delattr(module, name)
    os.environ.setdefault("USERNAME", "somebody")  # Windows sets it; without, getpass asks getuid
    _replace_popen()
    sys.addaudithook(_no_proc)

    def importing(name, globals=None, locals=None, fromlist=(), level=0):
        own = (globals or {}).get("__name__", "").partition(".")[0] in (*OURS, "__main__")
        if own and _system == "windows" and name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = _whole(name, globals, locals, fromlist, level) if own else None
        module = module or _import(name, globals, locals, fromlist, level)
        for asking in ASKING:
            if asking in sys.modules:
                sys.modules[asking].sys = Sys("sys")
        psutil = sys.modules.get("psutil")
        if psutil is not None and hasattr(psutil, "Process"):
            psutil.signal = whole
            if hasattr(psutil.Process, "cpu_affinity") and _system == "macos":
                del psutil.Process.cpu_affinity
        return module

    builtins.__import__ = importing


def _whole(name, *rest):
    """Import what decides by the system's name, which is not changed for it, what it asks for."""
    if name.partition(".")[0] != "copier":
        return None
    for module, lacking, value in _removed:
        setattr(module, lacking, value)
    try:
        return _import(name, *rest)
    finally:
        for module, lacking, _ in _removed:
            delattr(module, lacking)


def _no_proc(event, arguments) -> None:
    """Hide /proc from our modules, whatever they open it with."""
    if event not in ("open", "os.listdir", "os.scandir") or not arguments:
        return
    if not str(arguments[0]).startswith("/proc"):
        return
    frame = sys._getframe(1)
    while frame is not None:
        root = frame.f_globals.get("__name__", "").partition(".")[0]
        if root in OURS:
            raise FileNotFoundError(2, "No such file or directory", arguments[0])
        if root not in ("pathlib", "os", "io", "codecs", "glob"):
            return
        frame = frame.f_back


def _replace_popen() -> None:
    begin = subprocess.Popen.__init__

    def init(self, args, *rest, **options):
        if not isinstance(args, str):
            args = [os.fspath(word) for word in args]
            if args[1:3] == ["-I", "-S"]:
                args = [*args[:3], str(HERE / "guarded.py"), *args[3:]]
        if _system == "windows":
            if options.get("preexec_fn") is not None:
                raise ValueError("preexec_fn is not supported on Windows platforms")
            for name in ("start_new_session", "process_group", "creationflags"):
                options.pop(name, None)
            program = Path(args if isinstance(args, str) else args[0])
            if program.is_file() and program.read_bytes()[:4] != b"\x7fELF":
                raise OSError(8, "%1 is not a valid Win32 application")
        begin(self, args, *rest, **options)

    subprocess.Popen.__init__ = init
