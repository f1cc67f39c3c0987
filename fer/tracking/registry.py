"""MLflow's registry: a registered model a dataset, and who is its champion.

The alias `champion` moves to a new version only where its accuracy on validation is above that of the version that has
it. The test split has no part in it, nor have models of rendered faces, nor those without a validation result of their
own weights (`protocol: published`, `selection: refit`). Each version says why it became the champion, or why not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fer.tracking import compat

ALIAS = "champion"


@dataclass(frozen=True)
class Candidate:
    """A model that is registered.

    Attributes:
        dataset: name of the registered model.
        validation: accuracy of these weights on the validation split, 0 .. 1; None where there is none.
        data_digest: of the shards.
        synthetic: whether they hold rendered faces.
    """

    dataset: str
    validation: float | None
    data_digest: str
    synthetic: bool


def register(client: Any, uri: str, run_id: str, model_uri: str, candidate: Candidate) -> None:
    """Registers a logged model as a version, once, and moves the alias where it is better.

    Args:
        client: MLflow's, of the store at `uri`.
        run_id, model_uri: of the logged model, models:/<id>.
    """
    from mlflow.exceptions import MlflowException

    name = candidate.dataset
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if any(one.name == name for one in client.search_model_versions(f"run_id = '{run_id}'")):
        return
    champion = _champion(client, name)
    wins, why = verdict(candidate, None if champion is None else (champion.version, champion.tags))
    tags = {"data_digest": candidate.data_digest, ALIAS: why}
    if candidate.validation is not None:
        tags["val_accuracy"] = repr(candidate.validation)
    version = compat.create_version(client, uri, name, model_uri, run_id, tags)
    if wins:
        client.set_registered_model_alias(name, ALIAS, version)


def verdict(candidate: Candidate, champion: tuple[str, dict[str, str]] | None) -> tuple[bool, str]:
    """Whether a model becomes the champion, and why or why not.

    Args:
        champion: version and tags of the one that is; None where there is none.
    """
    value = candidate.validation
    if candidate.synthetic:
        return False, "no: rendered faces say nothing about accuracy on people"
    if value is None:
        return False, "no: these weights have no validation result of their own"
    if champion is None:
        return True, f"yes: the first, validation accuracy {value:.4f}"
    version, tags = champion
    if tags.get("data_digest") != candidate.data_digest:
        return True, f"yes: version {version} was trained on other data; validation accuracy {value:.4f}"
    best = float(tags["val_accuracy"])
    if value > best:
        return True, f"yes: validation accuracy {value:.4f}, version {version} has {best:.4f}"
    return False, f"no: validation accuracy {value:.4f}, version {version} has {best:.4f}"


def _champion(client: Any, name: str) -> Any:
    """The version that has the alias; None where none has, or its tags are not those of `register`."""
    version = client.get_registered_model(name).aliases.get(ALIAS)
    found = client.get_model_version(name, version) if version else None
    return found if found is not None and "val_accuracy" in found.tags else None
