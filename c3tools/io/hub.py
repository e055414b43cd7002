"""Names that moved to `c3tools.io.artifact`; this module goes when the last caller has moved."""

from .artifact import (  # noqa: F401
    CARD_FILE,
    CONFIG_FILE,
    HUB,
    Card,
    HubRepository,
    answers,
    class_of,
    download_repository,
    local_folder,
)
