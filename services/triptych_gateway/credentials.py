"""Who calls: what the coordinator is told of it."""

from __future__ import annotations

from starlette.requests import Request

from triptych.client import Metadata
from triptych.serving.logs import REQUEST_ID
from triptych_gateway.errors import HttpError
from triptych_gateway.observed import REQUEST_ID_KEY
from triptych_gateway.settings import GatewaySettings


class Credentials:
    """Clients' credentials, for a coordinator to which nobody can listen in."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._handed_on = settings.hands_on_credentials()

    def of(self, request: Request) -> Metadata:
        """A client's credential and the request's id, as metadata of a call of the coordinator.

        Raises HttpError for what no metadata can hold.
        """
        name = (REQUEST_ID, request.scope[REQUEST_ID_KEY])
        credential = request.headers.get("authorization")
        if credential is None or not self._handed_on:
            return (name,)
        if not (credential.isascii() and credential.isprintable()):
            raise HttpError(401, "the header Authorization is 'Bearer ' and a key", "invalid_api_key")
        return (name, ("authorization", credential))
