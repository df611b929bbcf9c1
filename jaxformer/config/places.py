"""Types for paths in a configuration: a path where nothing could be found or kept is refused."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator

from jaxformer.paths import fault_of_local_place, fault_of_place
from jaxformer.storage import fault_of_url


def _without(fault_of: Callable[[str], str | None]) -> AfterValidator:
    def check(value: str) -> str:
        if (fault := fault_of(value)) is not None:
            raise ValueError(fault)
        return value

    return AfterValidator(check)


AnyPlace = Annotated[str, _without(fault_of_place)]
LocalPlace = Annotated[str, _without(fault_of_local_place)]
StoragePlace = Annotated[str, _without(fault_of_url)]
