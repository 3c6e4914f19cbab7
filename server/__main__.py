"""The server's command line: ``python -m server COMMAND``; ``--help`` lists the commands."""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback out of an import; `up` takes the signals over

import argparse
import json
import sys
from pathlib import Path

from fedasym.ops.app_bundle import PROJECT


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the process's exit code."""
    options = _parser().parse_args(arguments)
    from fedasym.ops.flower_cli import FlowerError
    from fedasym.ops.supervisor import ServiceError
    from server.deploy import keys
    from server.deploy.home import add_site, read_home
    from server.deploy.nginx import ProxyError
    from server.deploy.registrar import remove_site
    from server.deploy.status import status, status_words
    from server.deploy.up import certificate_words, print_words, up

    try:
        if options.command == "pins":
            return _pins(options)
        if options.command == "init":
            return _init(options)
        home = read_home(options.home)
        if options.command == "add":
            add_site(home, options.name, options.public_key)
            _say(f"kit {home.folder / 'sites' / options.name}; a running server registers it within seconds")
        elif options.command == "remove":
            node = remove_site(home, options.name)
            barred = f"node {node} is unregistered, and its key stays barred for good" if node else "it had no node yet"
            _say(f"site {options.name} is removed: {barred}")
            _say(f"its kit in {home.folder / 'sites' / options.name}, with our copy of its key, is deleted")
        elif options.command == "renew":
            keys.renew_server_certificate(home.folder, home.hosts)
            _say(f"{certificate_words(home)}; restart `python -m server up` for it to be used")
        elif options.command == "status":
            found = status(home)
            _say(json.dumps(found, indent=1) if options.json else status_words(found))
            return 0 if found["up"] else 1
        elif options.print:
            _say(print_words(home, options.listen, proxy=options.proxy))
        else:
            return up(home, options.listen, _say, proxy=options.proxy)
    except (ValueError, OSError, ModuleNotFoundError, FlowerError, ProxyError, ServiceError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


def _init(options: argparse.Namespace) -> int:
    from server.deploy.home import Home, create_home
    from server.deploy.nginx import write_configuration

    port = options.port
    internal = options.internal_port or (port + 1 if port < 65535 else port - 1)
    folder = options.home.expanduser().absolute()
    home = Home(folder, options.host, port, internal, options.listen, options.sites)
    create_home(home)
    write_configuration(home, home.listen)
    _say(f"home {folder} for {home.address} with sites {', '.join(home.sites) or '(none yet)'}")
    _say(f"next: python -m server up {folder}")
    return 0


def _pins(options: argparse.Namespace) -> int:
    """Print what the other side can compare before it takes part: the app's digest and the contract's hash."""
    from fedasym.files import read_toml
    from fedasym.ops.app_bundle import bundle_digest
    from fedasym.settings import from_run_config
    from server.session import prepare  # torch and transformers, which no other command needs

    table = {} if options.config is None else read_toml(options.config)
    settings = from_run_config(table).resolved()
    pins = {"app": bundle_digest(options.app.resolve()), "contract": prepare(settings).contract.hash}
    _say(json.dumps(pins) if options.json else "\n".join(f"{key:8} {value}" for key, value in pins.items()))
    return 0


def _say(line: str) -> None:
    print(line, flush=True)  # a supervisor's reader sees each line at once


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    init = commands.add_parser("init", help="make a server's home folder: keys, settings, a kit for each site")
    init.add_argument("home", type=Path)
    init.add_argument("--host", type=_names, required=True, help="by which sites reach it; some by commas")
    init.add_argument("--port", type=int, default=8443, help="public, of the proxy (8443)")
    init.add_argument("--internal-port", type=int, default=0, help="of the SuperLink on the loopback (the next one)")
    init.add_argument("--listen", default="0.0.0.0", help="address of the proxy (0.0.0.0)")
    init.add_argument("--sites", type=_names, default=(), help="names by commas")

    add = commands.add_parser("add", help="make a kit for one more site")
    add.add_argument("home", type=Path)
    add.add_argument("name")
    add.add_argument("--public-key", type=Path, help="the site's own; its private key then never leaves it")

    remove = commands.add_parser("remove", help="bar a site's key for good and take the site out; the server must run")
    remove.add_argument("home", type=Path)
    remove.add_argument("name")

    renew = commands.add_parser("renew", help="replace the server's certificate by one that lasts longer")
    renew.add_argument("home", type=Path)

    run = commands.add_parser("up", help="run the server and keep it alive until Ctrl-C or SIGTERM")
    run.add_argument("home", type=Path)
    run.add_argument("--listen", help="address of the proxy instead of server.toml's")
    run.add_argument("--no-proxy", dest="proxy", action="store_false", help="start no nginx; publish it otherwise")
    run.add_argument("--print", action="store_true", help="print the commands and start nothing")

    show = commands.add_parser("status", help="say which sites are online and how far the newest run is")
    show.add_argument("home", type=Path)
    show.add_argument("--json", action="store_true")

    pins = commands.add_parser("pins", help="print the app's digest and the contract's hash of some settings")
    pins.add_argument("-c", "--config", type=Path, help="TOML file of settings; all defaults if left out")
    pins.add_argument("--app", type=Path, default=PROJECT, help="a checkout (this one)")
    pins.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
