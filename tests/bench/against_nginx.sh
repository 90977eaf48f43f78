#!/bin/sh
# CPU time of a request through portcullis and through nginx, in one run: both on one core with one worker, load and
# backend on another, rounds interleaved, the ratio taken round by round.
# Usage: against_nginx.sh [PORTCULLIS] [ROUNDS] [REQUESTS]
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
portcullis=${1:-$target/release/portcullis}
rounds=${2:-5}
requests=${3:-60000}
here=$(mktemp -d)
pids=""
trap 'kill $pids 2>/dev/null || true; rm -rf "$here"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=bench.test \
    -addext subjectAltName=DNS:bench.test -keyout "$here/key.pem" -out "$here/cert.pem" 2>/dev/null
body=$(head -c 768 /dev/zero | base64 -w 0)
cat > "$here/backend.conf" <<CONF
daemon off; pid backend.pid; error_log backend.log; worker_processes 1; events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000000; server { listen 127.0.0.1:9701 backlog=4096; location / { return 200 "$body"; } } }
CONF
cat > "$here/nginx.conf" <<CONF
daemon off; pid nginx.pid; error_log nginx.log; worker_processes 1; events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; scgi_temp_path s; uwsgi_temp_path u;
  upstream back { server 127.0.0.1:9701; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:9711; listen 127.0.0.1:9712 ssl http2;
    ssl_certificate $here/cert.pem; ssl_certificate_key $here/key.pem;
    location / {
      proxy_pass http://back; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host \$host; proxy_set_header X-Forwarded-For \$remote_addr;
      proxy_set_header X-Forwarded-Proto \$scheme; proxy_set_header X-Forwarded-Host \$host;
    }
  }
}
CONF
mkdir "$here/sites.d"
cat > "$here/portcullis.yaml" <<CONF
listeners: [{ address: "127.0.0.1:9721", max_requests: 1000000000 }, { address: "127.0.0.1:9722", tls: true }]
threads: 1
access_log: off
state_dir: state
sites: sites.d/*.yaml
CONF
cat > "$here/sites.d/bench.yaml" <<CONF
domains: [bench.test]
https_redirect: false
tls: { cert: ../cert.pem, key: ../key.pem }
backends: [127.0.0.1:9701]
CONF
taskset -c 1 nginx -p "$here" -c backend.conf -e start.log & pids="$pids $!"
taskset -c 0 nginx -p "$here" -c nginx.conf -e start.log & nginx=$!; pids="$pids $nginx"
taskset -c 0 "$portcullis" run -c "$here/portcullis.yaml" 2> "$here/portcullis.log" & ours=$!; pids="$pids $ours"
for port in 9711 9712 9721 9722; do
    until bash -c "exec 3<>/dev/tcp/127.0.0.1/$port" 2>/dev/null; do sleep 0.1; done
done
# Nanoseconds on a CPU of a process and its children (nginx's worker is one).
cpu() {
    for pid in $1 $(cat "/proc/$1/task/$1/children"); do cat /proc/"$pid"/task/*/schedstat; done | awk '{ sum += $1 } END { printf "%.0f", sum }'
}
load() { # PROTOCOL PORT
    case $1 in
        h1) taskset -c 1 h2load --h1 -n "$requests" -c 32 -t 1 --connect-to "127.0.0.1:$2" "http://bench.test:$2/" ;;
        h2) taskset -c 1 h2load -n "$requests" -c 8 -m 16 -t 1 --connect-to "127.0.0.1:$2" "https://bench.test:$2/" ;;
    esac | grep -q "$requests succeeded, 0 failed, 0 errored" || { echo "requests failed on port $2" >&2; exit 1; }
}
measure() { # PROTOCOL PID PORT
    before=$(cpu "$2")
    load "$1" "$3"
    echo $((($(cpu "$2") - before) / requests))
}
echo "protocol  round  nginx ns  portcullis ns  ratio"
for protocol in h1 h2; do
    [ $protocol = h1 ] && a=9711 b=9721 || { a=9712; b=9722; }
    load $protocol $a; load $protocol $b
    round=1
    : > "$here/ratios"
    while [ "$round" -le "$rounds" ]; do
        if [ $((round % 2)) = 1 ]; then x=$(measure $protocol $nginx $a); y=$(measure $protocol $ours $b)
        else y=$(measure $protocol $ours $b); x=$(measure $protocol $nginx $a); fi
        ratio=$(awk "BEGIN { printf \"%.3f\", $y / $x }")
        echo "$ratio" >> "$here/ratios"
        printf '%-8s  %5d  %8d  %13d  %5s\n' $protocol "$round" "$x" "$y" "$ratio"
        round=$((round + 1))
    done
    echo "$protocol median ratio $(sort -n "$here/ratios" | awk '{ r[NR] = $1 } END { print r[int((NR + 1) / 2)] }')"
done
