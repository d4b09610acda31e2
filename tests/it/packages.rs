//! What the image and the packages rely on: `mailboxqtt health`, and settings that are in order.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use crate::broker::Broker;
use crate::process::Process;

#[test]
fn broker_that_serves_is_healthy_and_needs_to_know_nobody() {
    let broker = Broker::start();
    assert_eq!(health(broker.addr()), (true, String::new()));
    let log = broker.stderr();
    assert!(!log.contains("connection closed"), "it is asked all day: {log}");
    broker.stop();
}

#[test]
fn where_nobody_answers_the_exit_code_and_a_sentence_say_so() {
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (is_healthy, said) = health(addr);
    assert!(!is_healthy);
    assert!(said.starts_with(&format!("mailboxqtt: no broker works at {addr}: ")), "{said}");
}

#[test]
fn settings_of_the_debian_package_are_in_order() {
    let (is_success, said) = run(&["--config", "packaging/mailboxqtt.toml", "--check"], &[]);
    assert!(is_success, "{said}");
}

#[test]
fn image_listens_to_all_and_has_its_data_in_the_volume() {
    let dockerfile = include_str!("../../Dockerfile");
    let variables = dockerfile.split_whitespace().filter_map(|word| word.split_once('='));
    let mut variables: Vec<_> =
        variables.filter(|(name, _)| name.starts_with("MAILBOXQTT_")).collect();
    let settings = variables.iter_mut().find(|(name, _)| *name == "MAILBOXQTT_CONFIG").unwrap();
    assert!(dockerfile.contains(&format!("packaging/container.toml /image{}", settings.1)));
    settings.1 = "packaging/container.toml";
    let (is_success, printed) = run(&["--print-config"], &variables);
    assert!(is_success, "{printed}");
    for expected in ["listen = \"0.0.0.0:1883\"", "allow_anonymous = true", "data_dir = \"/data\""]
    {
        assert!(printed.lines().any(|line| line.starts_with(expected)), "{expected}: {printed}");
    }
    // What is mounted in place of the settings is not opened by anything that is left.
    let consents = variables.iter().any(|(name, _)| name.contains("ANONYMOUS"));
    assert!(!consents, "the environment wins over the settings: {variables:?}");
}

/// From the root of the repository: whether it succeeded, and all that it said.
fn run(args: &[&str], variables: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.args(args).envs(variables.iter().copied()).stdin(Stdio::null());
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    let (status, lines, stderr) = Process::spawn(&mut command).finish_with_stderr();
    (status.success(), lines.join("\n") + &stderr)
}

fn health(addr: SocketAddr) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.args(["health", &addr.to_string()]).stdin(Stdio::null());
    let (status, _, stderr) = Process::spawn(&mut command).finish_with_stderr();
    (status.success(), stderr)
}
