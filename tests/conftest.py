"""A store and a cluster for the tests that need one, each of which starts at its first use and serves the whole run;
and one thread for those whose pictures are small."""

import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.builders.store import FaultyStore


@pytest.fixture(scope="session")
def s3() -> Iterator["FaultyStore"]:
    """An S3 server on loopback; the environment points every S3 client of this process and its children at it."""
    for package in ("moto", "werkzeug", "s3fs"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; tests against S3 need s3fs and moto[server]")
    import fsspec

    from tests.builders.store import FaultyStore, environment

    with FaultyStore() as store, environment(store.environment):
        yield store
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def faulty_store(s3: "FaultyStore") -> Iterator["FaultyStore"]:
    """The same server for a test that makes it fail; sound again afterwards."""
    s3.heal()
    yield s3
    s3.heal()


@pytest.fixture
def s3_bucket(s3: "FaultyStore") -> str:
    """URL of an empty bucket of its own."""
    return s3.new_bucket()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For pictures that are too small to be shared out among processors."""
    import numba
    import torch

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """One local Ray of four processors, which this process has joined; its address, for other processes."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    if importlib.util.find_spec("moto") is not None:
        request.getfixturevalue("s3")  # its address must be in the environment that the workers inherit
    root = str(request.config.rootpath)
    os.environ.update(
        RAY_AUTH_MODE="disabled",  # a local cluster asks for tokens otherwise
        RAY_DATA_USE_DATASOURCE_V2="0",
        RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        PYTHONPATH=os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
    )
    import ray

    folder = tempfile.mkdtemp(prefix="ray-")  # short: the path of a Unix socket has a narrow limit
    try:
        ray.init(
            address="local",
            num_cpus=4,
            object_store_memory=120 * 2**20,
            _temp_dir=folder,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
