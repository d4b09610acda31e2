//! Behaviour as MQTT.js sees it: each test runs one scenario of `clients/mqttjs_scenarios.mjs`,
//! where the steps and the assertions are, in one protocol version.

use std::process::{Command, Stdio};

use crate::broker::Broker;
use crate::process::{Process, script, tools, unique};

#[test]
fn message_makes_a_round_trip_at_each_qos_in_v311() {
    run("4", "roundTripAtEachQos");
}

#[test]
fn message_makes_a_round_trip_at_each_qos_in_v5() {
    run("5", "roundTripAtEachQos");
}

#[test]
fn resumed_session_gets_its_queued_messages_in_v311() {
    run("4", "resumedSessionGetsItsQueuedMessages");
}

#[test]
fn resumed_session_gets_its_queued_messages_in_v5() {
    run("5", "resumedSessionGetsItsQueuedMessages");
}

#[test]
fn will_follows_a_lost_connection_and_not_a_clean_one_in_v311() {
    run("4", "willFollowsALostConnectionAndNotACleanOne");
}

#[test]
fn will_follows_a_lost_connection_and_not_a_clean_one_in_v5() {
    run("5", "willFollowsALostConnectionAndNotACleanOne");
}

#[test]
fn retained_message_is_kept_replaced_and_cleared_in_v311() {
    run("4", "retainedMessageIsKeptReplacedAndCleared");
}

#[test]
fn retained_message_is_kept_replaced_and_cleared_in_v5() {
    run("5", "retainedMessageIsKeptReplacedAndCleared");
}

#[test]
fn thousand_messages_at_qos_2_arrive_exactly_once_in_v311() {
    run("4", "thousandMessagesAtQos2ArriveExactlyOnce");
}

#[test]
fn thousand_messages_at_qos_2_arrive_exactly_once_in_v5() {
    run("5", "thousandMessagesAtQos2ArriveExactlyOnce");
}

#[test]
fn properties_are_forwarded_and_user_properties_keep_their_order() {
    run("5", "propertiesAreForwardedAndUserPropertiesKeepTheirOrder");
}

fn run(version: &str, scenario: &str) {
    let broker = Broker::start();
    let addr = broker.addr();
    let mut command = Command::new("node");
    command.arg(script("mqttjs_scenarios.mjs")).arg(tools("mqttjs"));
    command.args([addr.ip().to_string(), addr.port().to_string()]);
    command.args([version, scenario, &unique("mqttjs")]);
    Process::spawn(command.stdin(Stdio::null())).succeed();
    broker.stop();
}
