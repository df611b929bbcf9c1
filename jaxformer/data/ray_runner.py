"""Prepares parts of token stores on a Ray cluster, which runs again what dies."""

import importlib.util

from jaxformer.config import Config
from jaxformer.data.commands import merge_parts, prepare_part
from jaxformer.errors import RunFailed, UserError
from jaxformer.terminal import progress

RETRIES = 20  # of a part whose worker dies


def prepare_on_ray(config: Config, parts: int, shard_bytes: int) -> None:
    """Prepares each part as a task of one core, on the cluster of RAY_ADDRESS, or else on this
    machine; then merges them here.

    Raises:
        UserError: Ray is missing, a row is wrong, or the place is not one that all machines have.
        RunFailed: a part's workers died again and again.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("--runner ray needs another package: pip install 'jaxformer[ray]'")
    import ray
    from ray.exceptions import RayTaskError, WorkerCrashedError

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_part)
    waiting = [
        task.remote(config.model_dump_json(), part, parts, shard_bytes) for part in range(parts)
    ]
    with progress("parts on Ray", parts) as report:
        while waiting:
            ended, waiting = ray.wait(waiting)
            try:
                failed = ray.get(ended[0])
            except (WorkerCrashedError, RayTaskError) as error:
                raise RunFailed(
                    f"a part failed on Ray ({str(error).strip().splitlines()[-1]}); run the same "
                    f"command again: what is done is kept"
                ) from None
            if failed is not None:
                raise UserError(failed)
            report(parts - len(waiting))
    merge_parts(config, shard_bytes)


def _part(config: str, part: int, parts: int, shard_bytes: int) -> str | None:
    """In a task: make a part; → what is wrong with the source, if anything is."""
    try:
        prepare_part(Config.model_validate_json(config), part, parts, shard_bytes, cores=1)
    except UserError as error:
        return str(error)
    return None
