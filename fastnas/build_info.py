"""What the native extension was built from, and what it runs on this machine."""

from dataclasses import dataclass, fields

from fastnas._extension import fastnas_C


@dataclass(frozen=True)
class BuildInfo:
    """One build of the native extension; ``str()`` is a report of one line per field.

    Attributes:
        version: fastnas's version.
        commit: the git commit, with ``+dirty`` where the sources differed from it; "unknown" outside git.
        torch: the torch that it was compiled against.
        cuda: the toolkit's version, "" in a build without CUDA.
        cuda_architectures: the GPU code inside, as "sm_90 compute_90" or as TORCH_CUDA_ARCH_LIST was given.
        compiler: the C++ compiler's own description.
        sanitizers: what watches the code, "address,undefined" in a build with FASTNAS_SANITIZE=1, else "".
        cpu_capability: the level of the CPU kernels in force ("baseline", "avx2" or "avx512").
        cpu_capabilities: the levels that this CPU can run, lowest first.
    """

    version: str
    commit: str
    torch: str
    cuda: str
    cuda_architectures: str
    compiler: str
    sanitizers: str
    cpu_capability: str
    cpu_capabilities: tuple[str, ...]

    def __str__(self) -> str:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["cpu_capabilities"] = " ".join(self.cpu_capabilities)
        return "\n".join(f"{name:<19} {value or 'none'}" for name, value in values.items())


def build_info() -> BuildInfo:
    """The build of the native extension that is loaded.

    Returns:
        A :class:`BuildInfo`.

    Example:
        >>> build_info().cpu_capability in ("baseline", "avx2", "avx512")
        True
    """
    return BuildInfo(
        **fastnas_C.build_info(),
        cpu_capability=fastnas_C.cpu_capability(),
        cpu_capabilities=tuple(fastnas_C.cpu_capabilities()),
    )


if __name__ == "__main__":
    print(build_info())
