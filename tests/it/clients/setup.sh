#!/usr/bin/env bash
# Installs what `tests/it` needs: the mosquitto clients and Chromium from the system's package manager, Paho
# for Python in a virtual environment, MQTT.js by npm. `just setup` calls this with the folder for the
# last two. What is there already is left alone, so a second run needs neither network nor rights.
set -euo pipefail

tools=$1
clients=$(cd "$(dirname "$0")" && pwd)

main() {
    local packages=()
    have mosquitto_pub mosquitto_sub mosquitto_rr || packages+=("$(name mosquitto)")
    have stdbuf || packages+=(coreutils)
    # Debian splits venv's `ensurepip` off into a package of its own.
    python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=("$(name python)")
    have node || packages+=("$(name node)")
    have chromium || packages+=("$(name browser)")
    if ((${#packages[@]})); then
        # One entry may name several packages.
        # shellcheck disable=SC2046
        install $(printf '%s\n' "${packages[@]}")
    fi
    # Only afterwards, because some packages of Node.js bring npm and exclude one of its own.
    have npm || install npm
    check
    mkdir -p "$tools"
    rust_components
    paho
    mqttjs
}

have() {
    local command
    for command; do
        command -v "$command" >/dev/null || return 1
    done
}

say() { echo "setup: $*" >&2; }

fail() {
    say "$@"
    exit 1
}

manager() {
    local candidate
    for candidate in apt-get dnf pacman brew; do
        if have "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo none
}

# The packages that bring a tool, in the words of this system's package manager.
name() {
    case "$(manager):$1" in
    apt-get:mosquitto) echo mosquitto-clients ;;
    *:mosquitto) echo mosquitto ;;
    apt-get:python) echo python3 python3-venv ;;
    dnf:python) echo python3 ;;
    *:python) echo python ;;
    brew:node) echo node ;;
    *:node) echo nodejs ;;
    *:browser) echo chromium ;;
    esac
}

install() {
    local by
    by=$(manager)
    [[ $by != none ]] || fail "no apt-get, dnf, pacman or brew here; please install: $*"
    local root=()
    if [[ $by != brew && $(id -u) != 0 ]]; then
        have sudo || fail "please install as root: $*"
        root=(sudo)
    fi
    say "installing $* by $by"
    case $by in
    apt-get)
        local apt=(${root[@]+"${root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -q)
        # Package lists may be missing or old; a failure here shows when installing.
        "${apt[@]}" update || true
        "${apt[@]}" install -y --no-install-recommends "$@"
        ;;
    dnf) ${root[@]+"${root[@]}"} dnf install -y "$@" ;;
    pacman) ${root[@]+"${root[@]}"} pacman -S --needed --noconfirm "$@" ;;
    brew) brew install "$@" ;;
    esac || fail "$by could not install $*; the tests need them"
}

# A package may have been installed and still not be what is found first.
check() {
    local command
    for command in mosquitto_pub mosquitto_sub mosquitto_rr stdbuf python3 node npm chromium; do
        have "$command" || fail "\`$command\` is not on the PATH; the tests need it"
    done
    python3 -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$(command -v python3) cannot make virtual environments;" \
            "please install its ensurepip and venv (Debian: python3-venv)"
    node -e 'process.exit(parseInt(process.versions.node) < 16 ? 1 : 0)' ||
        fail "MQTT.js needs Node.js 16 or later, here is $(node --version)"
}

rust_components() {
    local component
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 && continue
        have rustup || fail "\`cargo $component\` is missing and no rustup here to install it"
        rustup component add "${component/#fmt/rustfmt}"
    done
}

# The copy of the list of requirements is made last: it says that the installation is complete.
paho() {
    local venv=$tools/venv
    if cmp -s "$clients/requirements.txt" "$venv/requirements.txt" &&
        "$venv/bin/python" -c 'import paho.mqtt.client' 2>/dev/null; then
        return
    fi
    say "installing $(tr '\n' ' ' <"$clients/requirements.txt")into $venv"
    python3 -m venv --clear "$venv" || fail "python3 could not make $venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$clients/requirements.txt" || fail "pip could not install paho"
    cp "$clients/requirements.txt" "$venv/requirements.txt"
}

# As above, with the copy of the lock.
mqttjs() {
    local folder=$tools/mqttjs
    if cmp -s "$clients/package-lock.json" "$folder/complete.json" &&
        [[ -d $folder/node_modules/mqtt ]]; then
        return
    fi
    say "installing MQTT.js into $folder"
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$clients/package.json" "$clients/package-lock.json" "$folder"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) ||
        fail "npm could not install MQTT.js"
    cp "$folder/package-lock.json" "$folder/complete.json"
}

main
