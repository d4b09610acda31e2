//! The load generator as a process, and what it prints. For all tests that start it.

use std::net::SocketAddr;
use std::process::{Command, Output};

use serde_json::Value;

/// Against `broker`. A default is given where the arguments do not say otherwise.
pub(crate) fn loadgen(broker: SocketAddr, defaults: [[&str; 2]; 3], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(["--addr", &broker.to_string()]);
    for default in defaults {
        if !arguments.contains(&default[0]) {
            command.args(default);
        }
    }
    command.args(arguments).output().unwrap()
}

/// The object that `--json` prints.
pub(crate) fn report(output: &Output) -> Value {
    let error = || format!("no report, but: {}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", error()))
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
