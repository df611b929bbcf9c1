"""Parts as tasks of a Ray cluster, which runs again what dies."""

import threading
import time

import pytest

from jaxformer.cli import main
from tests.data.test_parts import contents
from tests.data.test_store import write_rows

ray = pytest.importorskip("ray", reason="pip install 'jaxformer[ray]'")

WORKERS = 2


@pytest.fixture
def cluster():
    """Two nodes of one core each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(WORKERS)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def test_a_store_made_on_ray_is_the_same_when_a_worker_dies(tmp_path, cluster) -> None:
    write_rows(tmp_path / "rows.jsonl", 20_000)
    words = ["data", "prepare", "configs/quickstart.yaml", f"data.source=jsonl:{tmp_path}/*.jsonl"]
    words += [f"data.cache_dir={tmp_path / 'cache'}", "--shard-bytes=200000", "--parts"]
    assert main([*words, "1", "--out", str(tmp_path / "here")]) == 0
    there, nodes = cluster
    out = tmp_path / "ray"

    def kill_one() -> None:
        while not list(out.rglob("*.json")):
            time.sleep(0.05)
        there.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert main([*words, "6", "--runner", "ray", "--out", str(out)]) == 0
    killer.join()
    assert contents(out) == contents(tmp_path / "here")
