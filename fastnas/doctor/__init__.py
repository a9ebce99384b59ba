"""Is this machine's fastnas right? Every operator against its reference, on this device."""

from fastnas.doctor.first_use import check_first_use

__all__ = ["check_first_use"]
