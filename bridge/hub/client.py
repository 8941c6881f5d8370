"""The hub's client: addresses, the token, and its errors in our words."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jaxmodels
from bridge.hub.limits import ANSWER, PATIENCE, limited
from jaxmodels.errors import NETWORK, USAGE, Problem

T = TypeVar("T")

# What the hub's client runs into where JSON is of another form than it expects.
_NONSENSE = (LookupError, TypeError, AttributeError, NameError, RuntimeError, AssertionError)
HOUSEKEEPING = ".gitattributes"  # the hub puts one into every repository


def repository(address: str) -> str:
    """The name in an address: "hf://owner/name" → "owner/name".

    Raises:
        Problem: (usage) it is no such address.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)", address, re.ASCII)
    if match is None or ".." in address or "--" in address:
        raise Problem(
            f"this is not the address of a repository: {address!r}",
            fix="write hf://owner/name",
            exit_code=USAGE,
        )
    return match[1]


def client() -> Any:
    """The hub's client; its token comes from HF_TOKEN or `hf auth login`."""
    from huggingface_hub import HfApi

    return HfApi(library_name="jaxmodels", library_version=jaxmodels.__version__)


def names(hub: Any, name: str, revision: str | None, private: bool) -> list[str]:
    """The files of a repository's branch; both are made if they are not there."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = hub.model_info(name, revision=revision)
    except RevisionNotFoundError:
        hub.create_branch(name, branch=revision, exist_ok=True)
        info = hub.model_info(name, revision=revision)
    except RepositoryNotFoundError:
        hub.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            hub.create_branch(name, branch=revision, exist_ok=True)
        return []
    names = [file.rfilename for file in info.siblings or ()]
    return [file for file in names if file != HOUSEKEEPING]


def ask(
    address: str,
    right: str,
    call: Callable[[], T],
    size: int = ANSWER,
    seconds: float = PATIENCE,
) -> T:
    """`hub_limits.limited`, with errors in our words.

    Raises:
        Problem: (network) the hub cannot be reached, or refuses, or makes no sense.
    """
    with asking(address, right):
        return limited(address, call, size, seconds)


@contextmanager
def asking(address: str, right: str) -> Iterator[None]:
    """Turns what the hub's client raises into our words; never shows the token."""
    from huggingface_hub import errors, get_token

    failures = (
        errors.HTTPError,
        errors.EntryNotFoundError,
        errors.LocalTokenNotFoundError,
        errors.XetDownloadError,
        ConnectionError,
        TimeoutError,
        ValueError,  # the hub's word on a model card
        *_NONSENSE,
    )
    try:
        yield
    except failures as error:
        what, fix = _advice(error, right)
        why = next((line for line in str(error).splitlines() if line.strip()), "")
        if token := get_token():
            why = why.replace(token, "(token)")
        why = why or type(error).__name__
        raise Problem(what, where=address, why=why, fix=fix, exit_code=NETWORK) from None


def _advice(error: Exception, right: str) -> tuple[str, str]:
    """What went wrong with the hub, and what to do."""
    from huggingface_hub import errors

    login = f"set HF_TOKEN to a token that may {right} there, or run `hf auth login`"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision", "check --revision"
    if isinstance(error, errors.GatedRepoError):
        return "its owner asks for consent first", f"agree on its page on the hub, and {login}"
    if status in (401, 403) and not isinstance(error, errors.RepositoryNotFoundError):
        return "the hub refuses access", login
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private",
            f"check the name; if it is private, {login}",
        )
    later = "see why; try again later if the hub is at fault"
    if status is not None or isinstance(error, ValueError):
        return "the hub refuses", later
    if isinstance(error, _NONSENSE):
        return "the hub's answer makes no sense", later
    return (
        "the hub cannot be reached",
        "check the network (and HF_ENDPOINT and HF_HUB_OFFLINE, if they are set); nothing was "
        "written",
    )
