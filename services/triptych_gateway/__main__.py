"""Runs the gateway: python -m triptych_gateway --coordinator 127.0.0.1:50050 --listen 127.0.0.1:8000."""

from triptych.serving.settings import read_settings
from triptych_gateway.settings import GatewaySettings


def main() -> None:
    """The command line."""
    settings = read_settings(GatewaySettings, "triptych_gateway")
    from triptych_gateway.server import run  # imports what --help does not need

    run(settings)


if __name__ == "__main__":
    main()
