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

#[test]
fn acknowledgements_say_what_became_of_the_request() {
    run("5", "acknowledgementsSayWhatBecameOfTheRequest");
}

#[test]
fn one_copy_carries_the_identifiers_of_all_subscriptions_that_match() {
    run("5", "oneCopyCarriesTheIdentifiersOfAllSubscriptionsThatMatch");
}

#[test]
fn aliases_are_assigned_by_the_client_and_moved_when_there_are_no_more() {
    run("5", "aliasesAreAssignedByTheClientAndMovedWhenThereAreNoMore");
}

#[test]
fn aliases_that_the_caller_has_set_are_used_by_the_client() {
    run("5", "aliasesThatTheCallerHasSetAreUsedByTheClient");
}

#[test]
fn broker_uses_as_many_aliases_as_the_client_takes() {
    run("5", "brokerUsesAsManyAliasesAsTheClientTakes");
}

#[test]
fn client_that_reconnects_goes_on_with_its_session() {
    run("5", "clientThatReconnectsGoesOnWithItsSession");
}

#[test]
fn session_ends_at_its_expiry_and_its_will_does_not_wait_for_longer() {
    run("5", "sessionEndsAtItsExpiryAndItsWillDoesNotWaitForLonger");
}

#[test]
fn group_shares_messages() {
    run("5", "groupSharesMessages");
}

#[test]
fn client_is_told_that_its_session_was_taken_over() {
    run("5", "clientIsToldThatItsSessionWasTakenOver");
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
