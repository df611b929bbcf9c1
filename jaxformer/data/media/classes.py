"""The classes of a configuration whose `data.tokenizer` is `classes`: those of its sources."""

from typing import Any

from jaxformer.config import DataConfig
from jaxformer.config.data_kinds import CLASSES
from jaxformer.data.class_names import ClassNames, other_classes, unknown_class
from jaxformer.data.media.making import Recipe
from jaxformer.errors import UserError


def classes_of(data: DataConfig, recipe_of: type[Recipe[Any]]) -> ClassNames:
    """The classes of all training sources: the list that one of them has, or else all names that
    they have, sorted.

    Lists are read without the rows; texts in a column only once all rows have been read, so that
    these are decoded first.

    Raises:
        UserError: sources have different lists, or labels are numbers.
    """
    names = dict.fromkeys(entry.source for entry in data.all_sources)
    recipes = [recipe_of.of(name, data, None) for name in names]
    listed: tuple[str, ...] | None = None
    for recipe in recipes:
        labels = recipe.labels
        if labels.kind == "numbers":
            raise UserError(
                f"data source '{recipe.source.name}': column '{recipe.wanted.target}' has numbers "
                f"without names; give data.tokenizer=classes:N for labels from 0 to N - 1, or a "
                f"classes.json file with their names"
            )
        if labels.kind == "listed":
            assert labels.names is not None
            if listed is not None and labels.names != listed:
                raise other_classes(recipe.source.name, labels.names, listed)
            listed = labels.names
    if listed is not None:
        for recipe in recipes:
            for name in _names(recipe):
                if name not in listed:
                    raise unknown_class(recipe.source.name, name, listed)
        return ClassNames(CLASSES, listed)
    return ClassNames(CLASSES, sorted({name for recipe in recipes for name in _names(recipe)}))


def _names(recipe: Recipe[Any]) -> tuple[str, ...]:
    names = recipe.labels.names or recipe.open().manifest.classes
    assert names is not None
    return names
