//! `mailboxqtt health`, by which a container or a service manager finds out whether a broker works.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use crate::broker::Broker;
use crate::process::Process;

#[test]
fn broker_that_serves_is_healthy_and_needs_to_know_nobody() {
    let broker = Broker::start();
    assert_eq!(health(broker.addr()), (true, String::new()));
    broker.stop();
}

#[test]
fn where_nobody_answers_the_exit_code_and_a_sentence_say_so() {
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (is_healthy, said) = health(addr);
    assert!(!is_healthy);
    assert!(said.starts_with(&format!("mailboxqtt: no broker works at {addr}: ")), "{said}");
}

fn health(addr: SocketAddr) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.args(["health", &addr.to_string()]).stdin(Stdio::null());
    let (status, _, stderr) = Process::spawn(&mut command).finish_with_stderr();
    (status.success(), stderr)
}
