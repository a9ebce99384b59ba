"""What runs in Triton's interpreter is collected there alone."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted.py"]
