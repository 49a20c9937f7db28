"""Waits for the store and the cluster of end_to_end.sh, and makes the bucket.

    AWS_ENDPOINT_URL=http://127.0.0.1:9000 RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 \
        python examples/end_to_end/bucket.py avatars
"""

import os
import sys
import time
import urllib.request

SECONDS_TO_WAIT = 120


def answered(request: urllib.request.Request, until: float) -> None:
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except OSError as e:
            if time.monotonic() > until:
                sys.exit(f"{request.full_url} does not answer ({e}); store.log and cluster.log say why")
            time.sleep(0.5)


def main(bucket: str) -> None:
    store, cluster = os.environ["AWS_ENDPOINT_URL"], os.environ["RAY_API_SERVER_ADDRESS"]
    until = time.monotonic() + SECONDS_TO_WAIT
    answered(urllib.request.Request(f"{store}/{bucket}", method="PUT"), until)
    answered(urllib.request.Request(f"{cluster}/api/version"), until)
    print(f"s3://{bucket} at {store}, a cluster at {cluster}")


if __name__ == "__main__":
    main(sys.argv[1])
