//! Behaviour as Eclipse Paho for Python sees it: each test runs one scenario of
//! `clients/paho_scenarios.py`, where the steps and the assertions are, in one protocol version.

use std::process::{Command, Stdio};

use crate::broker::Broker;
use crate::process::{Process, script, tools, unique};

#[test]
fn message_makes_a_round_trip_at_each_qos_in_v311() {
    run("311", "round_trip_at_each_qos");
}

#[test]
fn message_makes_a_round_trip_at_each_qos_in_v5() {
    run("5", "round_trip_at_each_qos");
}

#[test]
fn resumed_session_gets_its_queued_messages_in_v311() {
    run("311", "resumed_session_gets_its_queued_messages");
}

#[test]
fn resumed_session_gets_its_queued_messages_in_v5() {
    run("5", "resumed_session_gets_its_queued_messages");
}

#[test]
fn will_follows_a_lost_connection_and_not_a_clean_one_in_v311() {
    run("311", "will_follows_a_lost_connection_and_not_a_clean_one");
}

#[test]
fn will_follows_a_lost_connection_and_not_a_clean_one_in_v5() {
    run("5", "will_follows_a_lost_connection_and_not_a_clean_one");
}

#[test]
fn retained_message_is_kept_replaced_and_cleared_in_v311() {
    run("311", "retained_message_is_kept_replaced_and_cleared");
}

#[test]
fn retained_message_is_kept_replaced_and_cleared_in_v5() {
    run("5", "retained_message_is_kept_replaced_and_cleared");
}

#[test]
fn thousand_messages_at_qos_2_arrive_exactly_once_in_v311() {
    run("311", "thousand_messages_at_qos_2_arrive_exactly_once");
}

#[test]
fn thousand_messages_at_qos_2_arrive_exactly_once_in_v5() {
    run("5", "thousand_messages_at_qos_2_arrive_exactly_once");
}

#[test]
fn properties_are_forwarded_and_user_properties_keep_their_order() {
    run("5", "properties_are_forwarded_and_user_properties_keep_their_order");
}

fn run(version: &str, scenario: &str) {
    let broker = Broker::start();
    let addr = broker.addr();
    let mut command = Command::new(tools("venv/bin/python"));
    command.arg(script("paho_scenarios.py"));
    command.args([addr.ip().to_string(), addr.port().to_string()]);
    command.args([version, scenario, &unique("paho")]);
    Process::spawn(command.stdin(Stdio::null())).succeed();
    broker.stop();
}
