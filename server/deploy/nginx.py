"""The nginx in front of the SuperLink: TLS to the sites, and of Flower's one port nothing but the sites' part.

Flower's port also serves its control and runtime interfaces, which ask nobody who they are; whoever reached them
could run code here. nginx passes on the paths under ``/v1/fleet/`` alone. A site signs the time with its key and sends
both as headers, which nginx leaves alone, so that Flower's check of the sites survives the way through it.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.deploy.home import Home

# Bytes. Flower cuts arrays into pieces of 5 MiB and sends each in a request of its own, so a body's size does not grow
# with the model; lists of pieces and records are far smaller.
_BODY_BYTES = 8 * 2**20
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class ProxyError(RuntimeError):
    """nginx is not there."""


@dataclass(frozen=True)
class Limits:
    """What one address may ask of the proxy.

    Attributes:
        body_bytes: the largest request.
        idle_seconds: without a byte moving, after which a connection is closed; it does not bound a slow transfer.
        requests: a second, in the long run.
        burst: requests above that which are let through at once: a round's messages come together.
        connections: at the same time.
    """

    body_bytes: int
    idle_seconds: int
    requests: int
    burst: int
    connections: int


def limits_for(sites: int) -> Limits:
    """Size the limits for some sites, all being behind one address.

    Returns:
        Bodies of 8 MiB, and per site 20 requests a second, 100 at once, 16 connections (a SuperNode asks for work
        every 3 s, and moves a message by some tens of requests over 8 connections).
    """
    sites = max(1, sites)
    return Limits(_BODY_BYTES, 60, 20 * sites, 100 * sites, 16 * sites)


def nginx_configuration(home: Home, listen: str, limits: Limits) -> str:
    """Return the text of ``nginx.conf``; every path in it is relative to the home folder.

    Args:
        home: its ports and hosts.
        listen: the address to listen on.
        limits: of one address.
    """
    where = f"[{listen}]" if ":" in listen else listen
    temporary = "\n".join(f"    {name}_temp_path tmp/{name};" for name in _TEMPORARY)
    return f"""\
# Written by `python -m server` from server.toml at every start; change it there.
daemon off;
worker_processes 2;
pid tmp/nginx.pid;
error_log stderr warn;

events {{
    worker_connections 1024;
}}

http {{
    access_log off;
{temporary}
    server_tokens off;
    default_type text/plain;

    # What is passed on is routine; what is refused is worth a line. Refusals for want of patience are 503, after which
    # a SuperNode waits and asks again; any other code would end it.
    map $status $worth_a_line {{ ~^2 0; default 1; }}
    limit_req_zone $binary_remote_addr zone=requests:10m rate={limits.requests}r/s;
    limit_conn_zone $binary_remote_addr zone=connections:10m;

    upstream superlink {{
        server 127.0.0.1:{home.internal_port};
        keepalive 16;
    }}

    server {{
        listen {where}:{home.port} ssl;
        access_log logs/refused.log combined if=$worth_a_line;

        ssl_certificate server.crt;
        ssl_certificate_key server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:sessions:2m;
        ssl_session_tickets off;

        client_max_body_size {limits.body_bytes};
        client_header_timeout {limits.idle_seconds}s;
        client_body_timeout {limits.idle_seconds}s;
        send_timeout {limits.idle_seconds}s;
        keepalive_timeout {limits.idle_seconds}s;
        limit_req zone=requests burst={limits.burst} nodelay;
        limit_conn connections {limits.connections};

        location /v1/fleet/ {{
            limit_except POST {{ deny all; }}
            proxy_pass https://superlink;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate ca.crt;
            proxy_ssl_name localhost;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_connect_timeout 5s;
            proxy_send_timeout {limits.idle_seconds}s;
            proxy_read_timeout {limits.idle_seconds}s;
        }}

        location = /v1/fleet {{  # which nginx would redirect
            return 404;
        }}

        location / {{
            return 404;
        }}
    }}
}}
"""


def nginx_command(home: Home, nginx: str) -> Sequence[str]:
    """Return the command that runs nginx in the foreground with everything it writes inside the home folder."""
    # Workers of a master that is root would become another user, who cannot enter the home folder.
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    return [nginx, "-p", f"{home.folder}/", "-c", "nginx.conf", "-e", "stderr", *user]


def find_nginx() -> str:
    """Return the path of nginx.

    Raises:
        ProxyError: there is none.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])  # often not on users' paths
    found = shutil.which("nginx", path=path)
    if not found:
        raise ProxyError(
            "nginx is not installed; `apt-get install nginx-light`, or give --no-proxy and publish only /v1/fleet/ "
            "of the SuperLink's port through a TLS proxy of your own"
        )
    return found


def write_configuration(home: Home, listen: str) -> Path:
    """Write ``nginx.conf`` and the folders it names; return its path."""
    for name in ("logs", "tmp"):
        (home.folder / name).mkdir(exist_ok=True, mode=0o700)
    path = home.folder / "nginx.conf"
    path.write_text(nginx_configuration(home, listen, limits_for(len(home.sites))))
    return path
