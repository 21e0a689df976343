"""The guard of a SuperLink: an nginx that lets SuperNodes through to their interface, and nobody to anything else.

Flower's control interface, by which runs are submitted, asks for no password and is on the same port as the nodes'. So
the SuperLink listens where its operator alone gets at it, and strangers meet the guard.
"""

from __future__ import annotations

CONFIG = r"""# The guard of a SuperLink, for nginx 1.18 or newer: it lets SuperNodes through to /v1/fleet/, whose
# requests they sign with their keys, and answers everything else with 403. Flower's control interface, by which nodes
# are let in and runs submitted, asks for no password: the SuperLink must listen where its operator alone reaches it.
# {start}

daemon off;
pid {scratch}/nginx.pid;
error_log stderr warn;
worker_processes auto;

events {{
  worker_connections 1024;
}}

http {{
  access_log off;
  server_tokens off;
  client_body_temp_path {scratch}/body;
  proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi;
  scgi_temp_path {scratch}/scgi;

  upstream superlink {{
    server {superlink};  # a connection for each request: one that the SuperLink has just closed would cost a reply
  }}

  server {{
    listen {listen} ssl;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {files}/server.crt;
    ssl_certificate_key {files}/server.key;
    client_max_body_size 0;

    location / {{
      return 403;
    }}

    # What is passed on is the path that matched, never the one that was written: no encoding of it leads elsewhere.
    location ~ ^/v1/fleet/[a-z-]+\z {{
      limit_except POST {{
        deny all;
      }}
      proxy_pass https://superlink$uri;
      proxy_ssl_verify on;
      proxy_ssl_name superlink;
      proxy_ssl_trusted_certificate {files}/ca.crt;
      proxy_http_version 1.1;
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_read_timeout 300s;
    }}
  }}
}}
"""

IN_COMPOSE = {
    "start": "It is used by compose.server.yaml.",
    "scratch": "/tmp",
    "superlink": "superlink:8000",
    "listen": "8000",
    "files": "/run/secrets",
}
"""What stands in ``docker/compose.guard.conf``."""


def guard_config(listen: str, superlink: str) -> str:
    """Return the guard's configuration for processes; its paths are those of the deployment's folder.

    Args:
        listen: Port, or address and port, that SuperNodes reach.
        superlink: ``HOST:PORT`` of the SuperLink, which nobody else reaches.
    """
    start = "In the folder above this one's: nginx -p FOLDER/ -c guard.conf"
    return CONFIG.format(start=start, scratch=".", superlink=superlink, listen=listen, files="certificates")
