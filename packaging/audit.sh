#!/usr/bin/env bash
# Checks what is linked: licences, sources and duplicates by cargo-deny, known vulnerabilities by cargo-deny and
# cargo-audit. `just audit` calls it with the folder in which the two are installed.
#
# Vulnerabilities are looked up in the RustSec database, which is fetched. Where that fails they are not checked, which
# is said and is no failure; whatever else goes wrong is one.
set -euo pipefail

tools=$1
database=${CARGO_HOME:-$HOME/.cargo}/advisory-dbs/advisory-db-3157b0e258782691

main() {
    cd "$(dirname "$0")/.."
    installed cargo-deny 0.20.2
    deny bans licenses sources
    if ! "$tools/bin/cargo-deny" fetch db; then
        cat >&2 <<'END'

audit: ############################################################################
audit: ## Known vulnerabilities were NOT checked: the RustSec database could not ##
audit: ## be fetched. Run `just audit` where https://github.com can be reached.  ##
audit: ############################################################################
END
        return
    fi
    deny advisories
    installed cargo-audit 0.22.2 --no-default-features
    "$tools/bin/cargo-audit" audit --no-fetch --db "$database" --deny unsound
}

deny() {
    "$tools/bin/cargo-deny" --workspace --all-features check --hide-inclusion-graph "$@"
}

# Without optimisation, as that takes a third of the time, and in a folder of its own that goes again.
installed() {
    local name=$1 version=$2
    shift 2
    [[ $("$tools/bin/$name" --version 2>/dev/null) == *" $version" ]] && return
    echo "audit: installing $name $version into $tools" >&2
    env -u CARGO_TARGET_DIR CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --locked --debug --root "$tools" "$@" "$name@$version"
}

main
