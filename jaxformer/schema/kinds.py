"""Sections whose `kind` chooses a class from a registry, which users may extend."""

import functools
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from jaxformer.schema.base import Schema

PLACEHOLDER = "registered"  # stands in a JSON schema for the classes in `registry`


class Kind(Schema):
    """A base class with a `registry` of its own stands for all classes in it: a field of its type
    takes a section of any of them, looked up when the section is read.

    `registry` is a list of classes, or a dictionary from classes to what they build.
    """

    registry: ClassVar[Collection[type[Any]]]

    kind: str

    @classmethod
    def registered(cls) -> tuple[type["Kind"], ...]:
        """The classes that this one stands for; none for a class that is in a registry."""
        return tuple(vars(cls).get("registry", ()))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if "registry" not in vars(cls):
            return handler(source)
        return core_schema.no_info_plain_validator_function(cls._choose)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {PLACEHOLDER: cls.__name__} if "registry" in vars(cls) else handler(schema)

    @classmethod
    def _choose(cls, value: Any) -> Self:
        chosen: Self = (
            value if isinstance(value, cls) else _validator(cls.registered()).validate_python(value)
        )
        return chosen


@functools.cache
def _validator(classes: tuple[type[Kind], ...]) -> SchemaValidator:
    """A validator for a section of any of these classes. The location of an error names the kind,
    as for any union."""
    choices: dict[Any, Mapping[str, Any]] = {
        kind: core_schema.no_info_plain_validator_function(each.model_validate)
        for each in classes
        for kind in get_args(each.model_fields["kind"].annotation)
    }
    return SchemaValidator(core_schema.tagged_union_schema(choices, discriminator="kind"))
