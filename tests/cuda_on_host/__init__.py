"""CUDA sources compiled for the host: the headers here stand in for CUDA's."""

from fastnas.build_info import build_info


def sanitizer_flags() -> list[str]:
    """What watches such a library where the extension itself is watched (`make sanitize`), else nothing."""
    watched = build_info().sanitizers
    return [f"-fsanitize={watched}", "-fno-sanitize-recover=all", "-g"] if watched else []
