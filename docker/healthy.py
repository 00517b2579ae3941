"""Exit code 0 where the server of this container answers on its health route."""

import os
import sys
import urllib.error
import urllib.request

address = f"http://{os.environ['MEGATRON_FORK_HOST']}:{os.environ['MEGATRON_FORK_PORT']}/health"
try:
    with urllib.request.urlopen(address, timeout=10) as answer:
        sys.exit(answer.status != 200)
except (urllib.error.URLError, OSError, ValueError) as error:
    sys.exit(f"{address}: {error}")
