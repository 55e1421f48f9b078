"""`segclip web`: a page and an endpoint on one port."""

from segclip.commands.options import HeadName
from segclip.web.server import serve


def web(
    port: int = 7860,
    host: str = "127.0.0.1",
    model: tuple[str, ...] = ("mini",),
    head: HeadName = None,
    device: str = "auto",
    allow_host: tuple[str, ...] = (),
    label_studio: str = "",
) -> int:
    """Serve a page where photos are dropped and labels typed, and an endpoint for programs. docs/web.md tells more.

    Args:
        port: To listen at; 0: any that is free, which is printed.
        host: Address to listen at. 127.0.0.1: this computer alone. 0.0.0.0: whoever can reach it, without a password.
        model: What can be chosen, the first at the start: mini, vit-b16, files of weights, Hugging Face hub ids.
        head: Of plain CLIPs, if all are: see segclip segment.
        device: auto, cpu, cuda, mps ...
        allow_host: Names by which the server is asked for, besides localhost, its own name and numeric addresses: that
            of a proxy in front of it.
        label_studio: Address of a Label Studio whose photos the server may fetch, such as http://localhost:8080; its
            key is read from LABEL_STUDIO_API_KEY.
    """
    return serve(port, host, model, device, allow_host, label_studio, head)
