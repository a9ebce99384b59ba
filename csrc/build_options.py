"""What to build, decided from the environment: torch, CUDA and its architectures. Used by setup.py."""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess

# The stable ABI that csrc/stable.h targets.
OLDEST_TORCH = (2, 11)

# Compiled where nvcc knows them, with PTX of the newest for GPUs yet to come.
DEFAULT_ARCHITECTURES = ("80", "86", "89", "90", "100", "120")

SANITIZERS = "address,undefined"


def torch_problem():
    """One sentence if the installed torch cannot be built against, else None."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return (
            f"fastnas: no torch is installed for this Python; install torch>={oldest} first"
            " (if it is, build with --no-build-isolation)."
        )
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        return f"fastnas: torch {version} is installed, but torch>={oldest} is needed; upgrade torch first."
    return None


def find_cuda_home():
    """The folder of a CUDA toolkit with nvcc and headers, or None."""
    nvcc = shutil.which("nvcc")
    candidates = [
        os.environ.get("CUDA_HOME"),
        os.environ.get("CUDA_PATH"),
        nvcc and os.path.dirname(os.path.dirname(os.path.realpath(nvcc))),
        "/usr/local/cuda",  # nvcc on the PATH may be a wrapper that lives elsewhere
    ]
    parts = (("bin", "nvcc"), ("include", "cuda_runtime_api.h"))
    for home in filter(None, candidates):
        if all(os.path.exists(os.path.join(home, *part)) for part in parts):
            return home
    return None


def want_cuda(setting, cuda_home, torch_cuda):
    """Whether to compile the CUDA sources.

    ``setting`` is the value of FASTNAS_CUDA (None: not set), ``cuda_home`` the toolkit's folder or None,
    ``torch_cuda`` the CUDA version of the installed torch or None. Stops the build with one sentence on
    an unknown setting, and on a wish for CUDA that cannot be met.
    """
    setting = (setting or "auto").strip().lower()
    if setting not in ("auto", "0", "1"):
        raise SystemExit(f"fastnas: FASTNAS_CUDA must be auto, 0 or 1, got '{setting}'.")
    if setting == "1" and cuda_home is None:
        raise SystemExit(
            "fastnas: FASTNAS_CUDA=1, but no CUDA toolkit was found; put nvcc on the PATH or set CUDA_HOME."
        )
    return setting == "1" or (setting == "auto" and cuda_home is not None and torch_cuda is not None)


def compile_flags(setting):
    """``(compiler's flags, linker's flags, sanitizers)`` by the value of FASTNAS_SANITIZE (None: not set).

    ``sanitizers`` is "" or as -fsanitize takes them. With 1, AddressSanitizer and UndefinedBehaviorSanitizer watch
    the code, and the first fault ends the process. Stops the build with one sentence on an unknown setting.
    """
    setting = (setting or "0").strip()
    if setting not in ("0", "1"):
        raise SystemExit(f"fastnas: FASTNAS_SANITIZE must be 0 or 1, got '{setting}'.")
    if setting == "0":
        return ["-O3", "-g0"], [], ""
    watch = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
    # Python's own flags hold -fwrapv, which makes signed overflow defined and so unseen.
    return ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-wrapv", *watch], watch, SANITIZERS


def gencode_flags(known):
    """nvcc's flags for those default architectures that are in ``known`` (as "90"), with PTX of the newest."""
    chosen = [arch for arch in DEFAULT_ARCHITECTURES if arch in known]
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in chosen]
    return [*flags, f"-gencode=arch=compute_{chosen[-1]},code=compute_{chosen[-1]}"]


def architectures(cuda_home):
    """``(flags, description)``: TORCH_CUDA_ARCH_LIST is left to torch to translate, else our defaults."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked:
        return [], asked
    nvcc = os.path.join(cuda_home, "bin", "nvcc")
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    flags = gencode_flags(re.findall(r"compute_(\d+)", listed))
    return flags, " ".join(re.findall(r",code=(\w+)", " ".join(flags)))


def git_commit(root):
    """The commit that is built, with ``+dirty`` where tracked files differ from it; "unknown" outside git."""

    def git(*arguments):
        command = ["git", "-C", root, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if os.path.realpath(git("rev-parse", "--show-toplevel")) != os.path.realpath(root):
            return "unknown"  # an unpacked sdist inside somebody else's repository
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def compiler_version(command):
    """The first line of what the compiler says of itself."""
    answer = subprocess.run([*shlex.split(command), "--version"], capture_output=True, text=True)
    return answer.stdout.splitlines()[0] if answer.stdout else "unknown"


def nvcc_version(cuda_home):
    """The toolkit's version, as "13.0"."""
    nvcc = os.path.join(cuda_home, "bin", "nvcc")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found.group(1) if found else "unknown"
